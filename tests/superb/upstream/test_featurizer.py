"""The featurizer sums the layers as S3PRL's does, to the same bits, in less time and memory."""

import pytest
import torch
from s3prl.upstream.interfaces import Featurizer
from torch import nn

from s3prl_ofa.superb.upstream.featurizer import LengthAwareFeaturizer

LAYERS, SHAPE = 4, (3, 50, 24)


class Upstream(nn.Module):
    """The least that S3PRL's Featurizer asks of an upstream."""

    def forward(self, waves):
        return {"hidden_states": list(torch.zeros(LAYERS, len(waves), 50, 24)), "hidden_states_len": torch.tensor([50])}

    def get_downsample_rates(self, key):
        return 320


def made(kind: type, normalize: bool) -> Featurizer:
    featurizer = kind(Upstream(), upstream_device="cpu", normalize=normalize)
    nn.init.normal_(featurizer.weights, generator=torch.Generator().manual_seed(1))
    return featurizer


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_weighted_sum_of_s3prl(normalize, trained):
    generator = torch.Generator().manual_seed(0)
    states, gradient = torch.randn(LAYERS, *SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    found = []
    for kind in (LengthAwareFeaturizer, Featurizer):
        featurizer, layers = made(kind, normalize), [state.clone().requires_grad_(trained) for state in states]
        weighted = featurizer._weighted_sum(layers)
        weighted.backward(gradient)
        found.append((weighted.detach(), featurizer.weights.grad, [layer.grad for layer in layers]))
    ours, theirs = found
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=1e-5, atol=1e-6)


def test_states_in_16_bits():
    """As autocast gives them: the sum is in float32."""
    states = list(torch.randn(LAYERS, *SHAPE, generator=torch.Generator().manual_seed(0)).half())
    ours, theirs = (made(kind, False)._weighted_sum(states) for kind in (LengthAwareFeaturizer, Featurizer))
    assert ours.dtype == torch.float32 and torch.equal(ours, theirs)


def test_another_number_of_layers():
    with pytest.raises(AssertionError, match="layerdrop"):
        made(LengthAwareFeaturizer, False)._weighted_sum([torch.zeros(SHAPE)] * 3)
