"""Span masking for sequences of any length, drawn from torch's generator.

fairseq's own masks fail when a whole sequence is masked, which short compressed sequences meet, and come from a
generator that is not part of a checkpoint.
"""

import torch
from torch import Tensor

from s3prl_ofa.model.packing import valid_mask

MIN_SPANS = 2
SHORTEST = 3  # a sequence of fewer frames is not masked: two targets need at least one frame of context


def draw_spans(lengths: Tensor, longest: int, probability: float, span: int) -> Tensor:
    """(batch, longest) bool: True in spans of ``span`` frames with random starts, which may overlap.

    lengths: (batch,) on the CPU. As in wav2vec 2.0 (arXiv 2006.11477) probability * length / span spans are drawn,
    rounded up or down at random, at least two. A span is at most half of its sequence, and at least one frame stays
    unmasked; a sequence of fewer than 3 frames has no mask.
    """
    batch = len(lengths)
    spans = torch.minimum(torch.full_like(lengths, span), (lengths // 2).clamp(min=1))
    wanted = torch.floor(probability * lengths / spans + torch.rand(batch)).long().clamp(min=MIN_SPANS)
    starts = lengths - spans + 1  # places where a span can begin
    wanted = torch.where(lengths >= SHORTEST, torch.minimum(wanted, starts), 0)

    # The places with the largest of random scores are drawn without replacement.
    scores = torch.rand(batch, longest).masked_fill_(~valid_mask(starts, longest), -1.0)
    most = int(wanted.max())
    chosen = scores.topk(most, dim=1).indices
    begins = torch.zeros(batch, longest, dtype=torch.long)
    begins.scatter_(1, chosen, (torch.arange(most) < wanted[:, None]).long())

    # A frame is masked when a span began on it or on one of the span - 1 frames before it.
    begun = torch.nn.functional.pad(begins.cumsum(1), (1, 0))
    frame = torch.arange(longest)
    before = (frame + 1 - spans[:, None]).clamp(min=0)
    masked = begun[:, 1:] > begun.gather(1, before)
    masked &= valid_mask(lengths, longest)

    kept = (torch.rand(batch) * lengths).long().clamp(max=longest - 1)
    everything = masked.sum(1) == lengths
    masked[everything, kept[everything]] = False
    return masked


def same_share(masked: Tensor, lengths: Tensor) -> Tensor:
    """(batch, longest) bool: masks with random frames taken out, until all sequences have the smallest one's share.

    It is fairseq's ``require_same_masks``, which leaves equally many masked frames in sequences of equal lengths; here
    lengths (batch,), on the CPU, may differ. A frame that it shows within a span is much of the span's context: a small
    model learns several times faster at first. At least two frames stay masked where two were.
    """
    counts = masked.sum(1)
    maskable = lengths >= SHORTEST
    if not bool(maskable.any()):
        return masked
    least = torch.where(maskable, counts / lengths, torch.inf).argmin()
    # in whole numbers, so that the smallest share itself loses nothing
    kept = (counts[least] * lengths // lengths[least]).clamp(min=MIN_SPANS)
    scores = torch.rand(masked.shape).masked_fill_(~masked, -1.0)
    rank = scores.argsort(1, descending=True).argsort(1)
    return masked & (rank < kept[:, None])


def draw_negatives(counts: Tensor, negatives: int, across: int) -> Tensor:
    """(negatives + across, rows) int64: for every masked row of a batch, other masked rows.

    counts: (batch,) masked rows of each utterance, on the CPU; rows stand utterance after utterance. The first
    ``negatives`` are of the row's own utterance, which needs at least two rows; the others of the whole batch.
    """
    rows = int(counts.sum())
    start = torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
    count = torch.repeat_interleave(counts, counts)
    row = torch.arange(rows)

    def others(number: int, first: Tensor, size: Tensor) -> Tensor:
        # one of the other size - 1 rows; those from the row itself on move up by one
        drawn = (torch.rand(number, rows, dtype=torch.float64) * (size - 1)).long()
        return first + drawn + (drawn >= row - first)

    own = others(negatives, start, count)
    return torch.cat([own, others(across, torch.zeros_like(row), torch.full_like(row, rows))])
