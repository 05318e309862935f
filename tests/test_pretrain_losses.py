"""The guidance losses against what the reference computes."""

import pathlib

import numpy as np
import pytest
import torch

from s3prl_ofa.pretrain.losses import cardinality_loss, frame_loss, segment_loss

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "ref_core_golden.npz")
TARGET_RATIO = 0.25


@pytest.mark.parametrize("case", ["same", "short", "long"])
def test_losses_match_the_reference(case):
    """Promise: card, seg and frame match the golden values to 1e-6 relative, also where lengths differ."""
    alpha = torch.from_numpy(GOLDEN[f"loss/{case}/alpha"])
    pseudo_alpha = torch.from_numpy(GOLDEN["loss/pseudo_alpha"])
    boundaries = torch.from_numpy(GOLDEN["loss/boundaries"])
    lengths = torch.full((len(alpha),), alpha.shape[1])
    card = cardinality_loss(alpha, lengths, TARGET_RATIO)
    assert card.item() == pytest.approx(float(GOLDEN[f"loss/{case}/card"]), rel=1e-6)
    assert segment_loss(alpha, boundaries).item() == pytest.approx(float(GOLDEN[f"loss/{case}/seg"]), rel=1e-6)
    assert frame_loss(alpha, pseudo_alpha).item() == pytest.approx(float(GOLDEN[f"loss/{case}/frame"]), rel=1e-6)


def test_losses_have_gradients():
    """Promise: all three losses train alpha, and a padded boundary slot does not."""
    alpha = torch.full((2, 6), 0.3, requires_grad=True)
    boundaries = torch.tensor([[3, 9], [2, -1]])
    segment_loss(alpha, boundaries).backward()
    assert (alpha.grad[0] != 0).all()
    assert (alpha.grad[1, 2:] == 0).all()
    for loss in (cardinality_loss(alpha, torch.tensor([6, 6]), 0.25), frame_loss(alpha, torch.rand(2, 8))):
        alpha.grad = None
        loss.backward()
        assert alpha.grad.abs().sum() > 0
