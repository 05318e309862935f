"""Continuous integrate-and-fire: frames of varying weight become frames of weight one (Dong & Xu, arXiv 1905.11235).

Picture the weights of an utterance laid end to end on a line. Frame t covers the interval from ``begin[t]`` to
``end[t]``; every unit interval [k, k + 1] of the line becomes one output frame, the sum of the frames on it, each
weighted by the length it covers there. A weight is at most 1, so a frame overlaps at most two units: the one in which
it begins and, if it crosses an integer, the next. These two overlaps are computed for all frames at once. What lies
after the last integer (the tail) is dropped.
"""

import dataclasses

import torch
from torch import Tensor

from s3prl_ofa.model.packing import pad, starts_of, unpad, valid_mask

# Weights that should sum to an integer miss it by rounding errors: half a unit in the last place of a float32 per frame
# (0.7 x 1000 is 699.99999 in float32). Sums are in float64; one that is this close to an integer counts as the integer.
RELATIVE_SLACK = 2.0**-24
MAX_SLACK = 2.0**-6  # never more than a 64th of a frame, however long the utterance
TINY = torch.finfo(torch.float64).tiny  # keeps divisions by zero finite where their result is not used


@dataclasses.dataclass(frozen=True)
class CifPlan:
    """Which input frames make up which output frame, and with which weights.

    begin, end: (batch, frames) float64, the interval of each input frame; that of padding is empty.
    lengths: (batch,) int64, output frames, at least one per utterance.
    input_lengths: (batch,) int64, input frames.
    """

    begin: Tensor
    end: Tensor
    lengths: Tensor
    input_lengths: Tensor


def plan_cif(weights: Tensor, input_lengths: Tensor) -> CifPlan:
    """Integrates weights (batch, frames), each in [0, 1], over time.

    Weights beyond ``input_lengths`` (batch,) are ignored. An utterance whose weights sum to less than 1 still gets one
    output frame: its weights are scaled to sum to 1.
    """
    weights = weights.double()
    valid = valid_mask(input_lengths, weights.shape[1])
    weights = torch.where(valid, weights, 0.0)
    total = weights.sum(1)
    slack = (total.detach() * RELATIVE_SLACK).clamp(max=MAX_SLACK)
    fires = torch.floor(total.detach() + slack).long()
    # All weights are zero, which the predictor never gives: average the frames.
    uniform = valid / input_lengths[:, None]
    scaled = torch.where(total[:, None] > 0, weights / total.clamp(min=TINY)[:, None], uniform)
    weights = torch.where(fires[:, None] > 0, weights, scaled)
    end = weights.cumsum(1)
    begin = torch.cat([torch.zeros_like(end[:, :1]), end[:, :-1]], 1)
    return CifPlan(begin, end, torch.minimum(fires.clamp(min=1), input_lengths), input_lengths)


def fixed_plan(input_lengths: Tensor, longest: int, size: int) -> CifPlan:
    """The plan that averages every ``size`` frames into one, without alpha; the last mean may be of fewer frames.

    With a size of 1 every frame fires, which is lambd 0. longest: the largest input length.
    """
    frame = torch.arange(longest, device=input_lengths.device)
    lengths, group, place = input_lengths[:, None], frame // size, frame % size
    members = (lengths - size * group).clamp(1, size).double()  # frames in each mean; of padding, anything but 0
    outputs = -(-lengths // size)
    begin, end = (torch.minimum(group + step / members, outputs.double()) for step in (place, place + 1))
    return CifPlan(begin, end, outputs[:, 0], input_lengths)


def apply_cif(rows: Tensor, plan: CifPlan) -> Tensor:
    """Compresses rows (input frames of the batch, dim) to (output frames of the batch, dim), in the rows' dtype.

    Differentiable in the rows and in the weights behind the plan.
    """
    # Only the number of outputs waits for a GPU.
    batch, longest = plan.begin.shape
    number = torch.arange(batch, device=rows.device)
    utterance = torch.repeat_interleave(number, plan.input_lengths, output_size=len(rows))
    place = torch.arange(len(rows), device=rows.device) + (number * longest - starts_of(plan.input_lengths))[utterance]
    begin, end = plan.begin.flatten()[place], plan.end.flatten()[place]
    first_output = starts_of(plan.lengths)
    outputs = int(plan.lengths.sum())

    # The unit in which a frame begins. One that begins on an integer is counted in the unit before, with weight 0. That
    # changes no value, but the gradient at lambd 0 needs it: there all frames do, and a larger lambd moves them back.
    unit = (torch.ceil(begin.detach()) - 1).clamp(min=0)
    crosses = end > unit + 1
    # Half precision would lose what many small weights add up to.
    dtype = torch.promote_types(rows.dtype, torch.float32)
    wide = rows.to(dtype)
    # The extra row collects the tail, which is dropped.
    compressed = wide.new_zeros(outputs + 1, rows.shape[1])
    for unit_index, weight in (
        (unit, torch.where(crosses, unit + 1, end) - begin),
        (unit + 1, torch.where(crosses, end - (unit + 1), 0.0)),
    ):
        inside = unit_index < plan.lengths[utterance]
        target = torch.where(inside, first_output[utterance] + unit_index.long(), outputs)
        compressed.index_add_(0, target, weight.to(dtype)[:, None] * wide)
    return compressed[:outputs].to(rows.dtype)


def crossing_times(plan: CifPlan, longest: int | None = None) -> Tensor:
    """Where each output frame starts and ends, in input frames: (batch, longest, 2) float64; padding is 0.

    An output frame starts and ends where the running sum of the weights crosses an integer.
    """
    begin, end = plan.begin.detach(), plan.end.detach()
    longest = int(plan.lengths.max()) if longest is None else longest
    integers = torch.arange(longest + 1, device=end.device, dtype=end.dtype).expand(len(end), -1).contiguous()
    frame = torch.searchsorted(end, integers).clamp(max=end.shape[1] - 1)
    width = (end - begin).gather(1, frame)
    within = (integers - begin.gather(1, frame)) / width.clamp(min=TINY)
    times = torch.minimum(frame + within.clamp(0.0, 1.0), plan.input_lengths[:, None].double())
    times[:, 0] = 0.0  # input frames of weight zero at the start belong to the first output frame
    return torch.stack([times[:, :-1], times[:, 1:]], -1) * valid_mask(plan.lengths, longest)[..., None]


def frame_index(plan: CifPlan) -> Tensor:
    """The output frame that holds the middle of each input frame: (batch, input frames) int64; padding is 0.

    The dropped tail belongs to the last output frame.
    """
    middle = torch.floor((plan.begin.detach() + plan.end.detach()) / 2).long()
    owner = torch.minimum(middle, plan.lengths[:, None] - 1)
    return owner * valid_mask(plan.input_lengths, owner.shape[1])


def cif(frames: Tensor, weights: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compresses a padded batch.

    frames: (batch, frames, dim). weights: (batch, frames), each in [0, 1]. lengths: (batch,) valid frames, all if None.
    Returns (batch, output frames, dim), zeros after each utterance's end, and the output lengths (batch,). Raises
    ValueError for shapes that do not match and for weights outside [0, 1].
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
