"""Long utterances in overlapping windows: attention in linear time, bounded memory, and the same frames.

Only the encoder, whose attention sees every frame, works on windows. Front end, alpha and integrate-and-fire before it
see the whole utterance, so the number of frames and their times are those without windows.
"""

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from s3prl_ofa.model.encoder import Encoder
from s3prl_ofa.model.packing import positions_of, starts_of

MOST_FRAMES = 2**31  # of a window; times in seconds that would be more mean the whole utterance
OVERLAP_S = 4.0  # 2 to 10 s made no difference on read speech
# Frames that the encoder gets at once, one window at least: on a CPU few, which takes less memory and is no slower; on
# a GPU enough to keep kernel launches few.
ROWS_AT_A_TIME = {"cpu": 2048, "cuda": 8192}


def check_window(window_s: float | None, overlap_s: float) -> None:
    """Raises ValueError if the windows do not advance."""
    numbers = all(isinstance(value, Real) for value in (window_s, overlap_s))
    if window_s is not None and not (numbers and 0 <= overlap_s < window_s < math.inf):
        raise ValueError(
            f"window_s must be finite and greater than overlap_s, which must be 0 or more; found {window_s!r} and "
            f"{overlap_s!r}"
        )


def cut(lengths: Tensor, window: Tensor, overlap: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Windows of utterances of ``lengths`` (batch,) frames; one that fits into a window is left whole.

    window, overlap: (batch,) frames per window, and how many of them the next window shares; each of the two drops half
    of those. All int64, on the CPU. Returns (windows,) each: the first row that a window reads and how many it reads,
    the first row that it outputs and how many it outputs. Every row is output once, in order.
    """
    step = window - overlap
    counts = torch.where(lengths <= window, 1, (lengths - overlap + step - 1).div(step, rounding_mode="floor"))
    utterance = torch.repeat_interleave(torch.arange(len(lengths)), counts)
    index = torch.arange(len(utterance)) - starts_of(counts)[utterance]
    length, first, last = lengths[utterance], index == 0, index == counts[utterance] - 1
    begin = index * step[utterance]
    end = torch.where(last, length, begin + window[utterance])
    half = overlap[utterance] // 2
    given = torch.where(first, 0, begin + half)
    given_end = torch.where(last, length, begin + step[utterance] + half)
    offset = starts_of(lengths)[utterance]
    return offset + begin, end - begin, offset + given, given_end - given


def encode_in_windows(
    encoder: Encoder, rows: Tensor, lengths: Tensor, states: Sequence[int], window: Tensor, overlap: Tensor
) -> list[Tensor]:
    """``encoder(rows, lengths, states)`` with attention within windows. window, overlap: as in ``cut``."""
    starts, sizes, given_starts, given_sizes = cut(lengths, window, overlap)
    outputs: list[Tensor] = []
    at_a_time = ROWS_AT_A_TIME.get(rows.device.type, ROWS_AT_A_TIME["cuda"])
    group = torch.div(torch.cumsum(sizes, 0) - 1, at_a_time, rounding_mode="floor")
    for number in group.unique().tolist():
        chosen = group == number
        size, read = sizes[chosen], starts[chosen]
        encoded = encoder(rows[positions_of(size, read).to(rows.device, non_blocking=True)], size, states)
        keep = positions_of(given_sizes[chosen], starts_of(size) + given_starts[chosen] - read).to(rows.device)
        # filled part by part: at the end torch.cat would need the memory of all parts twice
        outputs = outputs or [state.new_empty(len(rows), state.shape[1]) for state in encoded]
        begin = int(given_starts[chosen][0])
        for output, state in zip(outputs, encoded, strict=True):
            output[begin : begin + len(keep)] = state[keep]
    return outputs
