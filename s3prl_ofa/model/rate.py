"""The rate: how ``lambd`` and the frame period turn the predictor's alpha into the weights that are integrated.

For lambd in [0, 1] the weight of a frame is (1 - lambd) + lambd * alpha: at 0 every frame fires (20 ms), at 1 the
model's alpha alone decides. For lambd in [1, 2) it is (2 - lambd) * alpha: fewer and fewer frames (arXiv 2211.02332).
The number of output frames is the sum of the weights, linear in lambd, so a wanted number has a lambd in closed form.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from s3prl_ofa.model.cif import TINY
from s3prl_ofa.model.config import MIN_FRAME_PERIOD_MS

MAX_LAMBD = 2.0  # exclusive: at 2 no frames would be left


def per_utterance(value: float | Sequence[float] | Tensor, batch: int, name: str) -> Tensor:
    """A number, or one per utterance, as float64 (batch,); keeps the gradient of a tensor.

    Raises ValueError if it is neither.
    """
    try:
        values = value.double() if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be a number, or one number per utterance, found {value!r}") from None
    if values.shape not in ((), (batch,)):
        raise ValueError(f"{name} must be one number or {batch} (one per utterance), found shape {tuple(values.shape)}")
    return values.expand(batch)


def check_lambd(lambd: float | Sequence[float] | Tensor, batch: int) -> Tensor:
    """lambd as float64 (batch,). Raises ValueError if a value lies outside [0, 2)."""
    values = per_utterance(lambd, batch, "lambd")
    if not bool((allowed := (values >= 0) & (values < MAX_LAMBD)).all()):
        raise ValueError(f"lambd must be in [0, {MAX_LAMBD:g}), found {values[~allowed][0]:g}")
    return values


def check_frame_period(frame_period_ms: float | Sequence[float] | Tensor, batch: int) -> Tensor:
    """Frame periods as float64 (batch,), in ms. Raises ValueError for one below 20 ms or not finite."""
    values = per_utterance(frame_period_ms, batch, "frame_period_ms")
    if not bool((allowed := (values >= MIN_FRAME_PERIOD_MS) & (values < math.inf)).all()):
        found = values[~allowed][0]
        raise ValueError(
            f"frame_period_ms must be a finite number of at least {MIN_FRAME_PERIOD_MS:g}, found {found:g}"
        )
    return values


def mix(alpha: Tensor, lambd: Tensor) -> Tensor:
    """Weights (batch, frames) from alpha (batch, frames) and lambd (batch,), in float64; exactly 1 at lambd 0."""
    alpha, lambd = alpha.double(), lambd.double()[:, None]
    return torch.where(lambd <= 1, (1 - lambd) + lambd * alpha, (MAX_LAMBD - lambd) * alpha)


def wanted_frames(seconds: Tensor, frame_period_ms: Tensor, input_lengths: Tensor) -> Tensor:
    """(batch,) int64: 1000 seconds / frame_period_ms, rounded; from 1 to all input frames."""
    frames = torch.round(1000.0 * seconds.double() / frame_period_ms).long()
    return torch.minimum(frames.clamp(min=1), input_lengths)


def solve_lambd(
    frames: Tensor, alpha_sum: Tensor, input_lengths: Tensor, allow_beyond_one: bool = False
) -> tuple[Tensor, Tensor]:
    """The lambd (batch,) that gives exactly the wanted number of frames (batch,), and whether it is reachable.

    With T input frames, N wanted and A the sum of alpha, lambd = (T - N) / (T - A), from the sum of the weights
    T - lambd (T - A) = N. Fewer than floor(A) frames need lambd above 1, lambd = 2 - N / A; without
    ``allow_beyond_one`` such an utterance gets lambd 1, the nearest rate, and counts as not reachable.
    """
    wanted, total, alpha_sum = frames.double(), input_lengths.double(), alpha_sum.double()
    up_to_one = ((total - wanted) / (total - alpha_sum).clamp(min=TINY)).clamp(0.0, 1.0)
    # lambd 1 drops the tail, so it gives floor(A) frames, and at least one
    reached_by_one = wanted >= torch.floor(alpha_sum).clamp(min=1)
    if not allow_beyond_one:
        return up_to_one, reached_by_one
    beyond_one = (MAX_LAMBD - wanted / alpha_sum.clamp(min=TINY)).clamp(1.0, MAX_LAMBD - 1e-9)
    return torch.where(reached_by_one, up_to_one, beyond_one), torch.ones_like(reached_by_one)
