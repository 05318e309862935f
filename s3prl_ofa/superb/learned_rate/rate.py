"""The rate as a parameter that is trained with the downstream task: ``--lambd adaptive``.

The upstream runs at this rate and is not trained itself. Frames have a price in the loss:

    loss = the task's loss + rate_weight * frames out / 20 ms frames in

Both terms depend on the number of frames, a step function of lambd that has no gradient; the task's loss also depends
on where frames begin. Backpropagation through the compressor would only see the latter, and that is mostly noise: a
small step of lambd shifts all later frames. So the task's loss is measured as a curve over [0, 1] (LossCurve), along
which lambd descends. In the first half of training each batch runs at two lambds drawn from its range: the task's model
is trained at the first, and the curve is fitted to the difference of the two losses. That way the task's model learns
to work at any rate; a model trained only at the current lambd would come to work best there, and keep the rate where it
is. In the second half the curve is fixed, lambd settles on it, and the task's model is trained at lambd.

In the second term the number of frames is replaced by the sum of the integrated weights, of which it is the integer
part: over a batch, sum(weights) / sum(T) with T frames of 20 ms and alphas that sum to A per utterance, and
sum(weights) = T - lambd (T - A).
"""

import collections
import dataclasses
import math

import numpy as np
import torch
from numpy.polynomial import Polynomial
from numpy.polynomial.polynomial import polyvander
from torch import Tensor, nn

from s3prl_ofa.model.config import SAMPLE_RATE
from s3prl_ofa.model.ofa import ExtractOutput, OFAWav2Vec2

MARGIN = 1e-3  # a start is kept this far from 0 and 1: at the ends rounding would decide where the map turns
MIN_SLOPE = 0.25  # of the map, for gradients
DAMPING = 0.1  # of the raw parameter's gradient
RECENT = 20  # training batches over which the frame period is measured
MAX_DIFFERENCE = 1.0  # of a batch's two losses; in the first steps of some tasks the loss falls by tens
MEMORY = 0.2  # of the batches so far, after which a batch counts for 1/e in the curve
MIN_MEMORY = 20  # batches


class LossCurve(nn.Module):
    """A task's loss over lambd in [0, 1] as c1 x + c2 x^2 + c3 x^3 with x = 2 lambd - 1, up to a constant.

    Fitted to differences of the loss by recursive least squares with forgetting (Ljung, System Identification, 11.2).
    The fit follows the task's model as it learns: quickly in its first steps, when the effect of frames still changes,
    and with less noise the longer it is trained.
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

        A unit matrix in the normal equations favors a flat curve with the weight of one batch, which matters while
        there are fewer batches than unknowns.
        """
        gram, moment = self.gram.cpu(), self.moment.cpu()
        coefficients = torch.linalg.solve(gram + torch.eye(3, dtype=gram.dtype), moment).tolist()
        return float(Polynomial([0, *coefficients], domain=(0, 1)).deriv()(lambd))


@dataclasses.dataclass(frozen=True)
class Batch:
    """What the loss of a training batch depends on: its waves, the lambd at which it ran, the second lambd at which its
    loss is to be measured (if any), and per utterance the 20 ms frames and the sum of alpha (batch,), float64."""

    waves: list[Tensor]
    here: float
    there: float | None
    frames: Tensor
    alpha_sum: Tensor

    def share(self, lambd: Tensor) -> Tensor:
        """sum(weights) / sum(T), in (0, 1], differentiable in lambd; see above."""
        return (self.frames - lambd * (self.frames - self.alpha_sum)).sum() / self.frames.sum()


class AdaptiveRate(nn.Module):
    """One lambd from 0, no compression, to ``max_lambd``: lambd = max_lambd (1 + sin(2 raw)) / 2.

    max_lambd is at most 1, where the weights are the model's alpha; beyond 1 the model was not trained. The sine
    reaches both ends at finite values and turns back there; a sigmoid would drift into the region where its gradient
    vanishes. Its slope is at most ``max_lambd``, so a step of the optimizer, which has one learning rate for all
    parameters, moves lambd by at most that step: with Adam by about the learning rate. Towards the ends the slope that
    gradients see falls to MIN_SLOPE, not to 0: Adam scales a step by earlier gradients and would get stuck there.

    S3PRL clips the norm of all gradients together, so the rate's gradient would shrink that of the downstream model; it
    is scaled by DAMPING, which makes no difference to Adam (and slows lambd down with plain SGD).

    start: initial lambd, from 0 to max_lambd. weight: of the mean frame rate in the loss, 0 or more. In evaluation mode
    (as it is built) lambd is a constant.
    """

    def __init__(self, start: float, weight: float, max_lambd: float = 1.0) -> None:
        super().__init__()
        self.weight, self.max_lambd = weight, max_lambd
        inside = min(max(start / max_lambd, MARGIN), 1 - MARGIN)
        self.raw = nn.Parameter(torch.tensor(math.asin(2 * inside - 1) / 2, dtype=torch.float32))
        self.curve = LossCurve()
        self.search = math.inf  # training batches during which the curve is measured
        self.probe_lambd: float | None = None  # the second lambd, while a batch runs at it
        self.batch: Batch | None = None  # the training batch whose loss is still to come
        # samples of the last training batches, and the frames that they would have at lambd
        self.recent: collections.deque[tuple[int, float]] = collections.deque(maxlen=RECENT)
        self.eval()

    def lambd(self) -> Tensor:
        """lambd with its gradient, a scalar in float64."""
        raw = self.raw.double()
        here = raw.detach()
        slope = torch.cos(2 * here)
        slope = torch.where(slope < 0, slope.clamp(max=-MIN_SLOPE), slope.clamp(min=MIN_SLOPE))
        return self.max_lambd * ((1 + torch.sin(2 * here)) / 2 + DAMPING * slope * (raw - here))

    @property
    def value(self) -> float:
        """lambd as a number."""
        return float(self.lambd().detach())

    def extract(self, model: OFAWav2Vec2, waves: list[Tensor]) -> ExtractOutput:
        """The model's output at this rate; in training at a random one during the search."""
        if self.probe_lambd is not None:
            return model.extract(waves, lambd=self.probe_lambd)
        if not self.training:
            return model.extract(waves, lambd=self.value)
        here, there = self.draw_lambds() if self.curve.batches < self.search else (self.value, None)
        out = model.extract(waves, lambd=here)
        alpha_sum = model.alpha(waves)[0].sum(1) if out.alpha_sum is None else out.alpha_sum  # None at lambd 0
        self.batch = Batch(waves, here, there, out.input_lengths.double(), alpha_sum.detach())
        frames = float(self.batch.share(self.lambd().detach()) * self.batch.frames.sum())
        self.recent.append((sum(map(len, waves)), frames))
        return out

    def draw_lambds(self) -> tuple[float, float]:
        """The two lambds of a batch: uniform from 0 to max_lambd, from torch's generator."""
        here, there = (self.max_lambd * torch.rand(2, dtype=torch.float64)).tolist()
        return here, there

    def forward(self, loss: Tensor, difference: float | None) -> Tensor:
        """The loss of a training batch with the terms that give the rate its gradient; each batch can be used once.

        difference: the task's loss of that batch at the second lambd minus ``loss``; None where there is no second one.
        """
        lambd, batch = self.lambd(), self.batch
        if difference is not None:
            self.curve.add(batch.here, batch.there, difference)
        slope = self.curve.slope(float(lambd.detach()))
        share, self.batch = batch.share(lambd), None
        return loss + (slope * (lambd - lambd.detach()) + self.weight * share).to(loss.dtype)

    @property
    def frame_period_ms(self) -> float:
        """The mean frame period of the last training batches; NaN before the first."""
        samples, frames = (sum(column) for column in zip(*self.recent, strict=True)) if self.recent else (math.nan, 1.0)
        return 1000 * samples / SAMPLE_RATE / frames

    def measured(self) -> dict[str, float]:
        """learnt_lambd, and after training the frame_period_ms of its last batches."""
        period = {"frame_period_ms": self.frame_period_ms} if self.recent else {}
        return {"learnt_lambd": self.value, **period}
