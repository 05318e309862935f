"""A task's loss as a curve over lambd, fitted while the task is trained."""

import math

import numpy as np
import torch
from numpy.polynomial import Polynomial
from numpy.polynomial.polynomial import polyvander
from torch import nn

MAX_DIFFERENCE = 1.0  # of a batch's two losses; in the first steps of some tasks the loss falls by tens
MEMORY = 0.2  # of the batches so far, after which a batch counts for 1/e in the curve
MIN_MEMORY = 20  # batches


class LossCurve(nn.Module):
    """A task's loss over lambd in [0, 1] as c1 x + c2 x^2 + c3 x^3 with x = 2 lambd - 1, up to a constant.

    Fitted to differences of the loss by recursive least squares with forgetting (Ljung, System Identification, 11.2).
    The fit follows the task's model as it learns: fast in its first steps, when frames cost differently than later, and
    with less noise the longer it is trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gram", torch.zeros(3, 3, dtype=torch.float64))
        self.register_buffer("moment", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("batches", torch.zeros((), dtype=torch.float64))

    def add(self, here: float, there: float, difference: float) -> None:
        """Adds the loss at lambd ``there`` minus that at ``here``; one that is not finite is only counted."""
        self.batches.add_(1)
        if not math.isfinite(difference):
            return
        powers = polyvander(2 * np.array([here, there]) - 1, 3)
        row = self.moment.new_tensor(powers[1, 1:] - powers[0, 1:])
        keep = math.exp(-1 / max(MIN_MEMORY, MEMORY * float(self.batches)))
        self.gram.mul_(keep).add_(torch.outer(row, row))
        self.moment.mul_(keep).add_(row, alpha=max(-MAX_DIFFERENCE, min(MAX_DIFFERENCE, difference)))

    def slope(self, lambd: float) -> float:
        """The slope of the curve at ``lambd``; 0 before the first batch.

        A unit matrix in the normal equations weighs as much as one batch in favour of a flat curve, which matters while
        there are fewer batches than unknowns.
        """
        gram, moment = self.gram.cpu(), self.moment.cpu()
        coefficients = torch.linalg.solve(gram + torch.eye(3, dtype=gram.dtype), moment).tolist()
        return float(Polynomial([0, *coefficients], domain=(0, 1)).deriv()(lambd))
