"""The guidance losses against what the reference computes."""

import numpy as np
import pytest
import torch
from paths import GOLDEN

from s3prl_ofa.guidance.layout import alpha_of
from s3prl_ofa.pretrain.dataset import crop_boundaries
from s3prl_ofa.pretrain.losses import cardinality_loss, frame_loss, segment_loss

CORE = np.load(GOLDEN / "ref_core_golden.npz")
TARGET_RATIO = 0.25


@pytest.mark.parametrize("case", ["same", "short", "long"])
def test_losses_match_the_reference(case):
    """card, seg and frame match the golden values to 1e-6 relative, also if lengths differ."""
    alpha = torch.from_numpy(CORE[f"loss/{case}/alpha"])
    pseudo_alpha = torch.from_numpy(CORE["loss/pseudo_alpha"])
    boundaries = torch.from_numpy(CORE["loss/boundaries"])
    lengths = torch.full((len(alpha),), alpha.shape[1])
    card = cardinality_loss(alpha, lengths, TARGET_RATIO)
    assert card.item() == pytest.approx(float(CORE[f"loss/{case}/card"]), rel=1e-6)
    assert segment_loss(alpha, boundaries).item() == pytest.approx(float(CORE[f"loss/{case}/seg"]), rel=1e-6)
    assert frame_loss(alpha, pseudo_alpha).item() == pytest.approx(float(CORE[f"loss/{case}/frame"]), rel=1e-6)


def test_losses_have_gradients():
    """All three losses train alpha, and a padded boundary slot does not."""
    alpha = torch.full((2, 6), 0.3, requires_grad=True)
    boundaries = torch.tensor([[3, 9], [2, -1]])
    segment_loss(alpha, boundaries).backward()
    assert (alpha.grad[0] != 0).all()
    assert (alpha.grad[1, 2:] == 0).all()
    for loss in (cardinality_loss(alpha, torch.tensor([6, 6]), 0.25), frame_loss(alpha, torch.rand(2, 8))):
        alpha.grad = None
        loss.backward()
        assert alpha.grad.abs().sum() > 0


def test_seg_loss_of_a_crop():
    """alpha that is right for an utterance is right for every crop of it: both losses are zero."""
    boundaries = torch.tensor([4, 6, 14, 15, 20])
    alpha = alpha_of(boundaries, 20)
    assert segment_loss(alpha[None], boundaries[None]).item() == pytest.approx(0, abs=1e-6)
    for start in range(19):
        for frames in range(1, 21 - start):
            inside, first_part = crop_boundaries(boundaries, start, frames)
            cropped = alpha[None, start : start + frames]
            loss = segment_loss(cropped, inside[None], torch.tensor([first_part]))
            assert loss.item() == pytest.approx(0, abs=1e-6), (start, frames)
            if len(inside) and first_part < 1:
                assert segment_loss(cropped, inside[None]).item() > 0.1 * (1 - first_part)


def test_boundaries_past_the_end_count_as_the_end():
    """No IndexError; such a boundary gets the sum over all frames."""
    alpha = torch.full((1, 4), 0.5)
    assert segment_loss(alpha, torch.tensor([[2, 9]])).item() == segment_loss(alpha, torch.tensor([[2, 4]])).item() == 0


def test_no_slots_no_loss():
    """If no utterance of a batch has guidance, the losses are 0 and train nothing; they are not NaN."""
    alpha = torch.full((2, 6), 0.3, requires_grad=True)
    loss = segment_loss(alpha, torch.zeros(2, 0, dtype=torch.long), torch.ones(2)) + frame_loss(
        alpha, torch.zeros(2, 0)
    )
    loss.backward()
    assert loss.item() == 0 and not alpha.grad.any()
