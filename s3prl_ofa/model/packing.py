"""Packs utterances of different lengths end to end, so that no frame of padding is ever computed.

Everything between the wave and the hidden states works on *rows*: the frames of all utterances of a batch, one after
the other, (frames of the whole batch, dim). Only operations along time need to know where an utterance ends; they get a
layout with gaps of zeros from :func:`spread`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def starts_of(lengths: Tensor, gap: int = 0) -> Tensor:
    """(batch,) position of each utterance's first row, with ``gap`` rows between utterances."""
    return torch.cumsum(lengths + gap, 0) - (lengths + gap)


def positions_of(lengths: Tensor, starts: Tensor) -> Tensor:
    """(rows,) position of each row in a layout in which utterance b begins at ``starts[b]``."""
    shift = torch.repeat_interleave(starts - starts_of(lengths), lengths)
    return torch.arange(shift.numel(), device=lengths.device) + shift


def spread(rows: Tensor, lengths: Tensor, gap: int) -> tuple[Tensor, Tensor | None]:
    """Lays rows (rows, dim) out with ``gap`` rows of zeros between utterances, for a convolution along time.

    Returns the layout (positions, dim) and the position of each row in it, or None where they are the same.
    """
    if len(lengths) == 1:
        return rows, None
    positions = positions_of(lengths, starts_of(lengths, gap)).to(rows.device, non_blocking=True)
    layout = rows.new_zeros(int((lengths + gap).sum()) - gap, rows.shape[1])
    return layout.index_copy_(0, positions, rows), positions


def pad(rows: Tensor, lengths: Tensor) -> Tensor:
    """From rows (rows, ...) to (batch, longest, ...), with zeros after each utterance's end; a view where possible."""
    return pad_all([rows], lengths)[0]


def pad_all(states: Sequence[Tensor], lengths: Tensor) -> list[Tensor]:
    """:func:`pad` for several rows of the same utterances, whose positions are computed and moved once."""
    batch, longest = len(lengths), int(lengths.max())
    if len(states[0]) == batch * longest:
        return [rows.view(batch, longest, *rows.shape[1:]) for rows in states]
    starts = torch.arange(batch, device=lengths.device) * longest
    places = positions_of(lengths, starts).to(states[0].device, non_blocking=True)
    layouts = (rows.new_zeros(batch * longest, *rows.shape[1:]).index_copy_(0, places, rows) for rows in states)
    return [layout.view(batch, longest, *layout.shape[1:]) for layout in layouts]


def unpad(padded: Tensor, lengths: Tensor) -> Tensor:
    """From (batch, longest, ...) to rows (rows, ...), dropping the padding: the inverse of :func:`pad`."""
    batch, longest = padded.shape[:2]
    rows = padded.reshape(batch * longest, *padded.shape[2:])
    if int(lengths.sum()) == batch * longest:
        return rows
    starts = torch.arange(batch, device=lengths.device) * longest
    return rows[positions_of(lengths, starts).to(rows.device, non_blocking=True)]


def valid_mask(lengths: Tensor, longest: int | None = None) -> Tensor:
    """(batch, longest) True where an utterance has a frame."""
    longest = int(lengths.max()) if longest is None else longest
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def similar_groups(lengths: Tensor, ratio: float) -> list[Tensor]:
    """Splits utterances of ``lengths`` (batch,) into groups in which none is more than ``ratio`` times the shortest.

    Returns each group's indices into the batch: those of the whole batch in its order where one group is enough, else
    by length.
    """
    if int(lengths.max()) <= ratio * int(lengths.min()):
        return [torch.arange(len(lengths))]
    ordered, order = lengths.sort()
    groups, begin = [], 0
    while begin < len(order):
        end = int((ordered <= ratio * ordered[begin]).sum())
        groups.append(order[begin:end])
        begin = end
    return groups
