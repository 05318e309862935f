"""How lambd is drawn in training (arXiv 2211.02332); every draw comes from torch's generator on the CPU."""

import torch
from torch import Tensor

MIN_PERIOD_MS, MAX_PERIOD_MS = 20.0, 90.0
# At a mean alpha of 2/9, where lambd 1 gives 90 ms: period = 20 / (1 - lambd 7/9).
PERIOD_SLOPE = 9 / 7


def lambd_of_period(period_ms: Tensor) -> Tensor:
    """The lambd of a frame period at a mean alpha of 2/9."""
    return PERIOD_SLOPE * (1 - MIN_PERIOD_MS / period_ms)


# From u ~ U(0, 1) and the largest lambd of the configuration.
DISTRIBUTIONS = {
    "uniform": lambda u, upper: u,
    "uniform-fr": lambda u, upper: lambd_of_period(MIN_PERIOD_MS + (MAX_PERIOD_MS - MIN_PERIOD_MS) * u),
    "scale": lambda u, upper: 1 + u,  # U(1, 2): alpha made smaller
    "both": lambda u, upper: upper * u,
}


def draw_lambd(distribution: str, count: int, upper: float) -> Tensor:
    """(count,) float64 draws in [0, 2). ``distribution`` is one of DISTRIBUTIONS; ``upper`` matters for "both" only."""
    return DISTRIBUTIONS[distribution](torch.rand(count, dtype=torch.float64), upper)
