"""Continuous integrate-and-fire: frames of varying weight become frames of weight one (Dong & Xu, arXiv 1905.11235).

Picture the weights of an utterance laid end to end on a line. Frame t covers the interval from ``begin[t]`` to
``end[t]``; every unit interval [k, k + 1] of the line becomes one output frame, the sum of the frames on it, each
weighted by the length it covers there. A weight is at most 1, so a frame touches at most two units: the one in which it
begins and, when it crosses an integer, the next. That is all there is to compute, for all frames at once. What lies
after the last integer (the tail) is dropped.
"""

import dataclasses

import torch
from torch import Tensor

from s3prl_ofa.model.packing import pad, unpad, valid_mask

# Weights that should sum to an integer miss it by rounding: by half a unit in the last place of a float32 for every
# frame (0.7 x 1000 is 699.99999 in float32). Sums are made in float64; one that lies this close to an integer is it.
RELATIVE_SLACK = 2.0**-24
MAX_SLACK = 2.0**-6  # never more than a 64th of a frame, however long the utterance
TINY = torch.finfo(torch.float64).tiny  # keeps a division by zero finite where its result is not used


@dataclasses.dataclass(frozen=True)
class CifPlan:
    """Which input frame goes into which output frame with which weight.

    begin, end: (batch, frames) float64, the interval of each input frame; padding frames have no width.
    lengths: (batch,) int64, output frames; at least one an utterance.
    input_lengths: (batch,) int64, input frames.
    """

    begin: Tensor
    end: Tensor
    lengths: Tensor
    input_lengths: Tensor


def plan_cif(weights: Tensor, input_lengths: Tensor) -> CifPlan:
    """Integrates weights (batch, frames), each in [0, 1], over time.

    Weights at and after ``input_lengths`` (batch,) are ignored. An utterance whose weights do not reach one output
    frame gets one all the same: its weights are scaled to sum to 1.
    """
    weights = weights.double()
    valid = valid_mask(input_lengths, weights.shape[1])
    weights = torch.where(valid, weights, 0.0)
    total = weights.sum(1)
    slack = (total.detach() * RELATIVE_SLACK).clamp(max=MAX_SLACK)
    fires = torch.floor(total.detach() + slack).long()
    # All weights zero (possible only for hand-made weights): every frame counts the same.
    uniform = valid / input_lengths[:, None]
    scaled = torch.where(total[:, None] > 0, weights / total.clamp(min=TINY)[:, None], uniform)
    weights = torch.where(fires[:, None] > 0, weights, scaled)
    end = weights.cumsum(1)
    begin = torch.cat([end.new_zeros(len(end), 1), end[:, :-1]], 1)
    return CifPlan(begin, end, torch.minimum(fires.clamp(min=1), input_lengths), input_lengths)


def apply_cif(rows: Tensor, plan: CifPlan) -> Tensor:
    """Compresses rows (input frames of the batch, dim) to (output frames of the batch, dim), in the rows' dtype.

    Differentiable in the rows and in the weights behind the plan.
    """
    valid = valid_mask(plan.input_lengths, plan.begin.shape[1])
    begin, end = plan.begin[valid], plan.end[valid]
    first_output = torch.cumsum(plan.lengths, 0) - plan.lengths
    utterance = torch.repeat_interleave(torch.arange(len(plan.lengths), device=rows.device), plan.input_lengths)
    outputs = int(plan.lengths.sum())

    # The unit in which a frame begins. One that begins on an integer touches the unit before with weight 0: nothing at
    # this rate, but what the gradient needs at lambd 0, where all frames do and any other lambd moves them back.
    unit = (torch.ceil(begin.detach()) - 1).clamp(min=0)
    crosses = end > unit + 1
    # half precision would lose what small weights add up to
    dtype = torch.promote_types(rows.dtype, torch.float32)
    wide = rows.to(dtype)
    # one row more than needed takes what is dropped: the tail
    compressed = wide.new_zeros(outputs + 1, rows.shape[1])
    for unit_index, weight in (
        (unit, torch.where(crosses, unit + 1, end) - begin),
        (unit + 1, torch.where(crosses, end - (unit + 1), 0.0)),
    ):
        inside = unit_index < plan.lengths[utterance]
        target = torch.where(inside, first_output[utterance] + unit_index.long(), outputs)
        compressed = compressed.index_add(0, target, weight.to(dtype)[:, None] * wide)
    return compressed[:outputs].to(rows.dtype)


def crossing_times(plan: CifPlan) -> Tensor:
    """(batch, most output frames, 2): where each output frame starts and ends, counted in input frames; float64.

    An output frame starts and ends where the running sum of the weights crosses an integer. Padding is 0.
    """
    begin, end = plan.begin.detach(), plan.end.detach()
    most = int(plan.lengths.max())
    integers = torch.arange(most + 1, device=end.device, dtype=end.dtype).expand(len(end), -1).contiguous()
    frame = torch.searchsorted(end, integers).clamp(max=end.shape[1] - 1)
    width = (end - begin).gather(1, frame)
    within = (integers - begin.gather(1, frame)) / width.clamp(min=TINY)
    times = torch.minimum(frame + within.clamp(0.0, 1.0), plan.input_lengths[:, None].double())
    times[:, 0] = 0.0  # frames of weight zero before the first weight belong to the first output frame
    return torch.stack([times[:, :-1], times[:, 1:]], -1) * valid_mask(plan.lengths, most)[..., None]


def owners(plan: CifPlan) -> Tensor:
    """(batch, input frames) int64: the output frame on which the middle of each input frame falls.

    The dropped tail belongs to the last output frame. Padding is 0.
    """
    middle = torch.floor((plan.begin.detach() + plan.end.detach()) / 2).long()
    owner = torch.minimum(middle, plan.lengths[:, None] - 1)
    return owner * valid_mask(plan.input_lengths, owner.shape[1])


def cif(frames: Tensor, weights: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compresses a padded batch.

    frames: (batch, frames, dim). weights: (batch, frames), each in [0, 1]. lengths: (batch,) valid frames, all if None.
    Returns (batch, most output frames, dim), zeros after each utterance's end, and the output lengths (batch,).
    Raises ValueError for shapes that do not fit and for weights outside [0, 1].
    """
    if frames.dim() != 3 or weights.shape != frames.shape[:2] or frames.shape[1] < 1:
        raise ValueError(
            f"frames must be (batch, frames, dim) and weights (batch, frames) with at least one frame, "
            f"found {tuple(frames.shape)} and {tuple(weights.shape)}"
        )
    if lengths is None:
        lengths = torch.full((len(frames),), frames.shape[1])
    lengths = lengths.to(frames.device)
    if lengths.shape != (len(frames),) or not bool(((lengths >= 1) & (lengths <= frames.shape[1])).all()):
        raise ValueError(f"lengths must be {len(frames)} numbers from 1 to {frames.shape[1]}, found {lengths.tolist()}")
    valid = valid_mask(lengths, frames.shape[1])
    if not bool(((weights >= 0) & (weights <= 1) | ~valid).all()):
        raise ValueError("weights must be in [0, 1]: a frame can fire at most once")
    plan = plan_cif(weights, lengths)
    return pad(apply_cif(unpad(frames, lengths), plan), plan.lengths), plan.lengths
