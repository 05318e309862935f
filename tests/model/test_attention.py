"""Attention as two products and a softmax, which some CPUs do faster than torch's fused kernel."""

import pytest
import torch
import torch.nn.functional as F

from s3prl_ofa.model import attention


@pytest.mark.parametrize("max_scores", [1, 3 * 70**2, 2**22])  # one head at a time, three, all
def test_products_are_attention(max_scores, monkeypatch):
    monkeypatch.setattr(attention, "MAX_SCORES", max_scores)
    query, key, value = torch.randn(3, 2, 4, 70, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attention.attend_by_products(query, key, value), expected)


@pytest.mark.parametrize(("bfloat16", "amx"), [(True, False), (True, True), (False, False)])
def test_where_products_are_used(bfloat16, amx, monkeypatch):
    """In bfloat16, on CPUs with instructions for it but without AMX, for inference, not for very long utterances."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    query = torch.zeros(1, 2, 5, 4, dtype=torch.bfloat16)
    assert attention.uses_products(query) == (bfloat16 and not amx)
    assert not attention.uses_products(query.float())
    assert not attention.uses_products(query.requires_grad_(True))
    assert not attention.uses_products(torch.zeros(1, 2, 4000, 4, dtype=torch.bfloat16))
