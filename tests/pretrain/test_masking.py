"""Masks and negatives of sequences of any length, and how lambd is drawn."""

import numpy as np
import pytest
import torch

from s3prl_ofa.pretrain.masking import draw_negatives, draw_spans, equalize_shares
from s3prl_ofa.pretrain.rates import DISTRIBUTIONS, draw_lambd


@pytest.mark.parametrize("span", [1, 2, 10])
@pytest.mark.parametrize("probability", [0.01, 0.3, 0.65, 0.9, 1.0])
def test_never_a_whole_sequence(probability, span):
    """Of 3 or more frames at least two are masked and one is not, of fewer none; padding never is."""
    torch.manual_seed(0)
    lengths = torch.arange(1, 51).repeat(20)
    masked = draw_spans(lengths, 60, probability, span)
    counts = masked.sum(1)
    assert not masked[torch.arange(60) >= lengths[:, None]].any()
    assert (counts < lengths).all()
    assert (counts[lengths < 3] == 0).all()
    assert (counts[lengths >= 3] >= min(2, span + 1)).all()


@pytest.mark.parametrize(("probability", "span"), [(0.65, 10), (0.3, 5), (0.065, 1)])
def test_as_many_frames_as_fairseq_masks(probability, span):
    """In long sequences the masked fraction is that of fairseq's compute_mask_indices."""
    from fairseq.data.data_utils import compute_mask_indices

    torch.manual_seed(0)
    frames, draws = 800, 60
    ours = draw_spans(torch.full((draws,), frames), frames, probability, span).float().mean().item()
    fixed = {"min_masks": 2, "epoch": 0, "indices": torch.zeros(1)}
    theirs = np.mean(
        [compute_mask_indices((1, frames), None, probability, span, seed=n, **fixed).mean() for n in range(draws)]
    )
    assert ours == pytest.approx(theirs, rel=0.04)


def test_masks_are_spans_anywhere():
    """Masks are spans of the given length, and every frame can be masked or not."""
    torch.manual_seed(0)
    masked = draw_spans(torch.full((3000,), 40), 40, 0.3, 5)
    often = masked.float().mean(0)
    assert (often > 0.05).all() and (often < 0.6).all()
    edges = torch.nn.functional.pad(masked.int(), (1, 1)).diff(dim=1)
    begins, ends = (edges == 1).nonzero(), (edges == -1).nonzero()
    runs = ends[:, 1] - begins[:, 1]
    assert int(runs.min()) == 5


def test_masks_come_from_torch_alone():
    """The same torch seed gives the same masks, independently of numpy's generator."""
    lengths = torch.tensor([50, 20, 3])
    torch.manual_seed(4)
    first = draw_spans(lengths, 50, 0.65, 10)
    np.random.seed(7)
    torch.manual_seed(4)
    assert torch.equal(first, draw_spans(lengths, 50, 0.65, 10))
    assert not torch.equal(first, draw_spans(lengths, 50, 0.65, 10))


def test_as_many_frames_as_fairseq_masks_in_a_batch():
    """As with fairseq's require_same_masks, sequences of equal length have equally many masked frames, as
    many as the one with the fewest; others are unmasked at random, within their spans too."""
    from fairseq.data.data_utils import compute_mask_indices

    torch.manual_seed(0)
    lengths, fixed = torch.full((8,), 199), {"min_masks": 2, "epoch": 0, "indices": torch.arange(8)}
    theirs = [compute_mask_indices((8, 199), None, 0.65, 10, seed=n, **fixed).sum(1) for n in range(100)]
    ours = []
    for _ in range(100):
        spans = draw_spans(lengths, 199, 0.65, 10)
        masked = equalize_shares(spans, lengths)
        assert not (masked & ~spans).any()
        assert set(masked.sum(1).tolist()) == {int(spans.sum(1).min())}
        ours.append(int(masked[0].sum()))
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.03)
    # What is shown lies anywhere in a span: as often in its middle as at an end.
    spans = torch.zeros(2000, 40, dtype=torch.bool)
    spans[:, 10:20], spans[0] = True, False
    spans[0, 10:15] = True
    shown = 1 - equalize_shares(spans, torch.full((2000,), 40))[1:, 10:20].double().mean(0)
    assert shown.tolist() == pytest.approx([0.5] * 10, abs=0.05)


def test_the_equalize_shares_in_unequal_lengths():
    """Of sequences of different lengths the same share is masked, up to a frame; the smallest share stays, at
    least two frames stay masked, and sequences too short for a mask do not count."""
    torch.manual_seed(0)
    lengths = torch.tensor([200, 100, 31, 12, 2, 1])
    for _ in range(50):
        spans = draw_spans(lengths, 200, 0.65, 10)
        masked = equalize_shares(spans, lengths)
        shares, counts = (spans.sum(1) / lengths)[:4], masked.sum(1)
        assert not (masked & ~spans).any()
        assert counts[shares.argmin()] == spans.sum(1)[shares.argmin()]
        assert all(
            abs(int(count) - float(shares.min() * length)) <= 1 or count == 2
            for count, length in zip(counts[:4], lengths[:4], strict=True)
        )
        assert counts.tolist()[4:] == [0, 0] and (counts[:4] >= 2).all()
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    assert torch.equal(equalize_shares(nothing, torch.tensor([2, 1])), nothing)


def test_negatives():
    """Negatives come from the row's utterance and are never the row itself; those across may be any other row."""
    torch.manual_seed(0)
    counts = torch.tensor([2, 0, 7, 30, 3])
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    row = torch.arange(len(owner))
    drawn = draw_negatives(counts, 300, 300)
    assert drawn.shape == (600, len(owner))
    assert (drawn != row).all()
    assert (owner[drawn[:300]] == owner).all()
    for own in range(len(owner)):
        others = set((owner == owner[own]).nonzero().flatten().tolist()) - {own}
        assert set(drawn[:300, own].tolist()) == others
        assert len(set(drawn[300:, own].tolist())) == len(owner) - 1
    assert draw_negatives(torch.tensor([0, 0]), 10, 0).shape == (10, 0)


# lowest, highest and mean of lambd; that of uniform-fr is 9/7 (1 - 20 E[1/period]), E[1/period] = ln(90/20) / 70
RANGES = {
    "uniform": (0.0, 1.0, 0.5),
    "uniform-fr": (0.0, 1.0, 9 / 7 * (1 - 20 * np.log(4.5) / 70)),
    "scale": (1.0, 2.0, 1.5),
    "both": (0.0, 1.6, 0.8),
}


@pytest.mark.parametrize("name", RANGES)
def test_lambd_distributions(name):
    """Every distribution of the reference, in its range and with its mean."""
    assert set(DISTRIBUTIONS) == set(RANGES)
    torch.manual_seed(0)
    low, high, mean = RANGES[name]
    drawn = draw_lambd(name, 40_000, 1.6)
    assert drawn.shape == (40_000,)
    assert low <= float(drawn.min()) < low + 0.01 and high - 0.01 < float(drawn.max()) < high
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.01)


def test_uniform_frame_periods_are_uniform():
    """uniform-fr draws the frame period uniformly from 20 to 90 ms, by the reference's formula."""
    torch.manual_seed(0)
    period_ms = 20 / (1 - draw_lambd("uniform-fr", 40_000, 2.0) * 7 / 9)
    counts = torch.histc(period_ms.float(), 7, 20, 90)
    assert (counts / 40_000 - 1 / 7).abs().max() < 0.01
