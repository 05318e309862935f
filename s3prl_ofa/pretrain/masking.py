"""Span masking for sequences of any length, drawn from torch's generator.

fairseq's masks fail when a whole sequence is masked, which happens to short compressed sequences, and come from a
generator that is not saved in checkpoints.
"""

import torch
from torch import Tensor

from s3prl_ofa.model.packing import valid_mask

MIN_SPANS = 2
MIN_FRAMES = 3  # shorter sequences are not masked: two targets need at least one frame of context


def draw_spans(lengths: Tensor, longest: int, probability: float, span: int) -> Tensor:
    """(batch, longest) bool: True in spans of ``span`` frames with random starts, which may overlap.

    lengths: (batch,) on the CPU. As in wav2vec 2.0 (arXiv 2006.11477), probability * length / span spans are drawn,
    rounded up or down at random, but at least two. A span covers at most half of its sequence, and at least one frame
    stays unmasked; sequences of fewer than 3 frames are not masked.
    """
    batch = len(lengths)
    spans = torch.minimum(torch.full_like(lengths, span), (lengths // 2).clamp(min=1))
    num_spans = torch.floor(probability * lengths / spans + torch.rand(batch)).long().clamp(min=MIN_SPANS)
    starts = lengths - spans + 1  # number of positions where a span can begin
    num_spans = torch.where(lengths >= MIN_FRAMES, torch.minimum(num_spans, starts), 0)

    # Drawing without replacement: the positions with the largest random scores.
    scores = torch.rand(batch, longest).masked_fill_(~valid_mask(starts, longest), -1.0)
    max_spans = int(num_spans.max())
    chosen = scores.topk(max_spans, dim=1).indices
    begins = torch.zeros(batch, longest, dtype=torch.long)
    begins.scatter_(1, chosen, (torch.arange(max_spans) < num_spans[:, None]).long())

    # A frame is masked if a span begins on it or on one of the span - 1 frames before it.
    begun = torch.nn.functional.pad(begins.cumsum(1), (1, 0))
    frame = torch.arange(longest)
    before = (frame + 1 - spans[:, None]).clamp(min=0)
    masked = begun[:, 1:] > begun.gather(1, before)
    masked &= valid_mask(lengths, longest)

    kept = (torch.rand(batch) * lengths).long().clamp(max=longest - 1)
    fully_masked = masked.sum(1) == lengths
    masked[fully_masked, kept[fully_masked]] = False
    return masked


def equalize_shares(masked: Tensor, lengths: Tensor) -> Tensor:
    """(batch, longest) bool: unmasks random frames until all sequences have the smallest share of masked frames.

    This is fairseq's ``require_same_masks``, which leaves the same number of masked frames in sequences of the same
    length; here lengths (batch,), on the CPU, may differ. A frame that is unmasked within a span gives it much context:
    a small model learns several times faster at first. At least two frames stay masked if two were.
    """
    counts = masked.sum(1)
    maskable = lengths >= MIN_FRAMES
    if not bool(maskable.any()):
        return masked
    least = torch.where(maskable, counts / lengths, torch.inf).argmin()
    # integer arithmetic, so that the sequence with the smallest share loses nothing
    kept = (counts[least] * lengths // lengths[least]).clamp(min=MIN_SPANS)
    scores = torch.rand(masked.shape).masked_fill_(~masked, -1.0)
    rank = scores.argsort(1, descending=True).argsort(1)
    return masked & (rank < kept[:, None])


def draw_negatives(counts: Tensor, negatives: int, across: int) -> Tensor:
    """(negatives + across, rows) int64: for every masked row of a batch, other masked rows.

    counts: (batch,), number of masked rows of each utterance, on the CPU; rows are sorted by utterance. The first
    ``negatives`` come from the row's utterance, which needs at least two rows, the others from the whole batch.
    """
    rows = int(counts.sum())
    start = torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
    count = torch.repeat_interleave(counts, counts)
    row = torch.arange(rows)

    def others(number: int, first: Tensor, size: Tensor) -> Tensor:
        # one of the other size - 1 rows: indices from the row itself on are shifted by one
        drawn = (torch.rand(number, rows, dtype=torch.float64) * (size - 1)).long()
        return first + drawn + (drawn >= row - first)

    within = others(negatives, start, count)
    return torch.cat([within, others(across, torch.zeros_like(row), torch.full_like(row, rows))])
