"""How lambd is drawn in training (arXiv 2211.02332); every draw comes from torch's generator on the CPU."""

import torch
from torch import Tensor

MIN_PERIOD_MS, MAX_PERIOD_MS = 20.0, 90.0
# A mean alpha of 2/9, at which lambd 1 gives 90 ms: period = 20 / (1 - lambd 7/9).
PERIOD_SLOPE = 9 / 7


def uniform(count: int, upper: float) -> Tensor:
    """U(0, 1)."""
    return torch.rand(count, dtype=torch.float64)


def uniform_frame_period(count: int, upper: float) -> Tensor:
    """The lambd of a frame period from U(20, 90) ms, at a mean alpha of 2/9."""
    period_ms = MIN_PERIOD_MS + (MAX_PERIOD_MS - MIN_PERIOD_MS) * torch.rand(count, dtype=torch.float64)
    return PERIOD_SLOPE * (1 - MIN_PERIOD_MS / period_ms)


def scale(count: int, upper: float) -> Tensor:
    """U(1, 2): alpha made smaller."""
    return 1 + torch.rand(count, dtype=torch.float64)


def both(count: int, upper: float) -> Tensor:
    """U(0, upper)."""
    return upper * torch.rand(count, dtype=torch.float64)


DISTRIBUTIONS = {"uniform": uniform, "uniform-fr": uniform_frame_period, "scale": scale, "both": both}


def draw_lambd(distribution: str, count: int, upper: float) -> Tensor:
    """(count,) float64 draws in [0, 2). ``distribution`` is one of DISTRIBUTIONS; ``upper`` matters for both only."""
    return DISTRIBUTIONS[distribution](count, upper)
