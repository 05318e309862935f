"""The rate as a parameter of the downstream task: ``--lambd adaptive``.

The parameter lives in S3PRL's featurizer, which its runner trains, saves and restores together with the downstream
model; the upstream reads it and stays as it is. A term of the loss makes frames cost something:

    loss = the task's loss + rate_weight * frames out / 20 ms frames in

Both parts of the loss depend on the number of frames, a step function of lambd without a gradient, and the task's also
on where frames begin. Going back through the compressor finds the second alone, and mostly noise: a small step of
lambd moves all later frames along. So the task's loss is measured as a curve over [0, 1] (LossCurve), and lambd goes
down along it. In the first half of training each batch runs at two lambds drawn from its range, the task's model is
trained at the first, and the difference of the two losses is what the curve is fitted to. The task's model so learns
to do at any rate; one that is trained at lambd alone comes to do best just there, and holds the rate wherever it is.
In the second half the curve stays as it is, lambd comes to rest on it, and the task's model is trained at lambd alone.

In the second term the sum of the weights that are integrated stands for the number of frames, of which it is the whole
part: over a batch, sum(weights) / sum(T) with T frames of 20 ms and alphas that sum to A an utterance, and
sum(weights) = T - lambd (T - A).
"""

import collections
import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Polynomial
from numpy.polynomial.polynomial import polyvander
from torch import Tensor, nn

from s3prl_ofa.errors import UsageError
from s3prl_ofa.model.config import MIN_FRAME_PERIOD_MS, SAMPLE_RATE
from s3prl_ofa.model.ofa import ExtractOutput, OFAWav2Vec2
from s3prl_ofa.superb.upstream.rate_options import RateOptions

logger = logging.getLogger(__name__)

MARGIN = 1e-3  # how far from 0 and 1 a start is kept: at the ends themselves rounding decides where the map turns
LARGEST = 1.0  # difference of a batch's two losses that counts: in their first steps some tasks' fall by tens
SEARCH = 0.5  # of a training's batches run at two lambds
MEMORY = 0.2  # of the training so far, after which a batch counts for 1/e in the curve
SHORTEST_MEMORY = 20  # training batches
FLATTEST = 0.25  # slope of the map that gradients see at its ends
DAMPING = 0.1  # of the raw parameter's gradient
RECENT = 20  # training batches over which the frame period is measured


class AdaptiveRate(nn.Module):
    """One lambd from 0, no compression, to ``most``: lambd = most (1 + sin(2 raw)) / 2.

    most is at most 1, the model's own alpha. Beyond 1 lambd leaves alpha, and what the model was trained for. The sine
    reaches both ends at finite values and turns back there, where a sigmoid would be drawn on into the region in which
    its gradient is nothing. Its slope is ``most`` in the middle and never more, so a step of the optimizer, which
    S3PRL gives one learning rate for all, moves lambd by at most its own size: with Adam by about the learning rate.
    Towards the ends the slope that gradients see falls to FLATTEST, not to 0: Adam measures a step by the gradients
    before it, and would stay where they come to nothing.

    S3PRL clips the gradient of all parameters as one, so the rate would take from the downstream model's; its own is
    made smaller by DAMPING, which Adam does not notice (plain SGD moves lambd the less).

    start: lambd at first, from 0 to most. weight: of the mean frame rate in the loss, 0 or more. In evaluation mode (as
    it is made) lambd is a constant.
    """

    def __init__(self, start: float, weight: float, most: float = 1.0) -> None:
        super().__init__()
        self.weight, self.most = weight, most
        inside = min(max(start / most, MARGIN), 1 - MARGIN)
        self.raw = nn.Parameter(torch.tensor(math.asin(2 * inside - 1) / 2, dtype=torch.float32))
        self.curve = LossCurve()
        self.search = math.inf  # training batches for which the curve is measured
        self.elsewhere: float | None = None  # the other lambd, while a batch is run at it
        self.batch: Batch | None = None  # whose loss is still to come
        self.features: list[Tensor] = []  # of that batch, as the featurizer gave them
        # samples of the last training batches, and the frames that they would have at lambd
        self.recent: collections.deque[tuple[int, float]] = collections.deque(maxlen=RECENT)
        self.eval()

    @classmethod
    def asked_for(cls, upstream: Any) -> "AdaptiveRate | None":
        """The rate for an ``UpstreamExpert`` whose options ask for one, which will follow it; None for any other."""
        options = getattr(upstream, "options", None)
        if not getattr(options, "adaptive", False):
            return None
        rate = cls(options.lambd_start, options.rate_weight, options.lambd_max)
        upstream.follow(rate)
        return rate

    def forward(self) -> Tensor:
        """lambd, a scalar in float64."""
        raw = self.raw.double()
        here = raw.detach()
        true = torch.cos(2 * here)
        slope = torch.where(true < 0, true.clamp(max=-FLATTEST), true.clamp(min=FLATTEST))
        return self.most * ((1 + torch.sin(2 * here)) / 2 + DAMPING * slope * (raw - here))

    @property
    def value(self) -> float:
        """lambd as a number."""
        return float(self().detach())

    def extract(self, model: OFAWav2Vec2, wavs: list[Tensor]) -> ExtractOutput:
        """The model's output at this rate."""
        if self.elsewhere is not None:
            return model.extract(wavs, lambd=self.elsewhere)
        if not self.training:
            return model.extract(wavs, lambd=self.value)
        here, there = self.two_lambds() if self.curve.batches < self.search else (self.value, None)
        out = model.extract(wavs, lambd=here)
        alpha_sum = model.alpha(wavs)[0].sum(1) if out.alpha_sum is None else out.alpha_sum  # None at lambd 0
        self.batch = Batch(wavs, here, there, out.input_lengths.double(), alpha_sum.detach())
        frames = float(self.batch.share(self().detach()) * self.batch.frames.sum())
        self.recent.append((sum(map(len, wavs)), frames))
        return out

    def seen(self, features: list[Tensor]) -> list[Tensor]:
        """Keeps the featurizer's features, and returns them with the rate in their graph: there, and not in the loss,
        DistributedDataParallel looks for parameters that will get a gradient."""
        if not self.training:
            return features
        self.features = [features[0] + (0 * self()).to(features[0].dtype), *features[1:]]
        return self.features

    def two_lambds(self) -> tuple[float, float]:
        """At which a batch runs: uniform from 0 to most, by torch's generator."""
        here, there = (self.most * torch.rand(2, dtype=torch.float64)).tolist()
        return here, there

    def with_terms(self, loss: Tensor, difference: float | None) -> Tensor:
        """The loss of a training batch with what gives the rate its gradient; the batch is then used up.

        difference: of the task's loss of that batch, at the other lambd less at the one at which it ran; None where it
        ran at lambd alone.
        """
        lambd, batch = self(), self.batch
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


class LossCurve(nn.Module):
    """A task's loss over lambd in [0, 1] as c1 x + c2 x^2 + c3 x^3 with x = 2 lambd - 1, up to a constant.

    Fitted to differences of the loss by recursive least squares with forgetting (Ljung, System Identification, 11.2),
    which follow the task's model as it learns: fast in its first steps, in which frames cost differently than later,
    and with less noise the longer it is trained. Its state is saved with the featurizer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gram", torch.zeros(3, 3, dtype=torch.float64))
        self.register_buffer("moment", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("batches", torch.zeros((), dtype=torch.float64))

    def add(self, here: float, there: float, difference: float) -> None:
        """Takes the loss at lambd ``there`` less that at ``here``; one that is not finite is counted, not used."""
        self.batches.add_(1)
        if not math.isfinite(difference):
            return
        powers = polyvander(2 * np.array([here, there]) - 1, 3)
        row = self.moment.new_tensor(powers[1, 1:] - powers[0, 1:])
        keep = math.exp(-1 / max(SHORTEST_MEMORY, MEMORY * float(self.batches)))
        self.gram.mul_(keep).add_(torch.outer(row, row))
        self.moment.mul_(keep).add_(row, alpha=max(-LARGEST, min(LARGEST, difference)))

    def slope(self, lambd: float) -> float:
        """Of the curve at ``lambd``; 0 before anything is known. The unit matrix in the equations weighs as much as a
        single batch against a curve that is not flat, for the time in which there are fewer batches than unknowns."""
        gram, moment = self.gram.cpu(), self.moment.cpu()
        coefficients = torch.linalg.solve(gram + torch.eye(3, dtype=gram.dtype), moment).tolist()
        return float(Polynomial([0, *coefficients], domain=(0, 1)).deriv()(lambd))


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a training batch's loss needs to know of it: waves, the lambd at which it ran and the other one, if there is
    one, 20 ms frames and sums of alpha (batch,), float64."""

    wavs: list[Tensor]
    here: float
    there: float | None
    frames: Tensor
    alpha_sum: Tensor

    def share(self, lambd: Tensor) -> Tensor:
        """sum(weights) / sum(T), in (0, 1], with a gradient with respect to lambd; see above."""
        return (self.frames - lambd * (self.frames - self.alpha_sum)).sum() / self.frames.sum()


def with_adaptive_rate(get_downstream: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wraps ``Runner._get_downstream`` of S3PRL's, after which all models are there, to bring in the rate's term.

    It is added to what the downstream model returns, so that gradient accumulation and loss scaling hold for it too.
    The losses at two rates are of the features before SpecAug, without dropout, and leave the task's own statistics
    (batch norm) alone.
    """

    @functools.wraps(get_downstream)
    def get(runner: Any) -> Any:
        entry = get_downstream(runner)
        rate = rate_of(runner)
        if rate is not None:
            check_frozen(runner.upstream.trainable)
            rate.search = SEARCH * training_batches(runner.config["runner"])
            entry.model.register_forward_hook(functools.partial(add_terms, rate, runner))
            entry.model.log_records = logging_rate(entry.model.log_records, rate, runner)
            fixed = "" if runner.args.mode == "train" else "fixed, "
            learnt = "as learnt" if runner.init_ckpt.get("Featurizer") else "where it starts"
            logger.info("adaptive rate: lambd %.4f, %s%s", rate.value, fixed, learnt)
        return entry

    get.adds_adaptive_rate = True
    return get


def add_terms(rate: AdaptiveRate, runner: Any, module: nn.Module, args: tuple[Any, ...], loss: Tensor) -> Tensor:
    """A forward hook of the downstream model: the loss with the rate's terms in training, as it is otherwise."""
    if rate.batch is None:
        return loss
    if rate.batch.there is None:
        return rate.with_terms(loss, None)
    split, _, *others = args
    forward = getattr(module, "module", module).forward  # without this hook
    devices = [loss.device] if loss.device.type == "cuda" else []
    here = rate.features
    losses = []
    with torch.no_grad(), calm(module):
        rate.elsewhere = rate.batch.there
        try:
            there = runner.featurizer.model(rate.batch.wavs, runner.upstream.model(rate.batch.wavs))
        finally:
            rate.elsewhere = None
        for features in (here, there):
            with torch.random.fork_rng(devices):
                losses.append(float(forward(split, features, *others, records=collections.defaultdict(list))))
    return rate.with_terms(loss, losses[1] - losses[0])


@contextlib.contextmanager
def calm(module: nn.Module) -> Iterator[None]:
    """Dropout and batch norm within ``module`` as in evaluation; the rest of it may ask whether it is trained."""
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    lively = [part for part in module.modules() if issubclass(type(part), kinds) and part.training]
    for part in lively:
        part.training = False
    try:
        yield
    finally:
        for part in lively:
            part.training = True


def rate_of(runner: Any) -> AdaptiveRate | None:
    """The adaptive rate of a runner of S3PRL's, where it has one."""
    featurizer = runner.featurizer.model
    return getattr(getattr(featurizer, "module", featurizer), "rate", None)


def logging_rate(log_records: Callable[..., Any], rate: AdaptiveRate, runner: Any) -> Callable[..., Any]:
    """A task's ``log_records`` that after its own training scores logs lambd and the frame period that it gives."""
    train_split = runner.config["runner"].get("train_dataloader", "train")

    @functools.wraps(log_records)
    def log(split: str, *args: Any, **kwargs: Any) -> Any:
        found = log_records(split, *args, **kwargs)
        if split == train_split:
            lambd, period = rate.value, rate.frame_period_ms
            step, name = kwargs["global_step"], f"{runner.args.downstream}/{split}"
            kwargs["logger"].add_scalar(f"{name}-lambd", lambd, global_step=step)
            kwargs["logger"].add_scalar(f"{name}-frame_period_ms", period, global_step=step)
            logger.info("step %d: lambd %.4f, %.2f ms a frame", step, lambd, period)
        return found

    return log


def training_batches(settings: dict[str, Any]) -> int:
    """Of a whole training with these settings of S3PRL's runner."""
    return settings["total_steps"] * (settings.get("gradient_accumulate_steps") or 1)


def check_frozen(trainable: bool) -> None:
    """Raises UsageError where the upstream is trained itself (``-f``)."""
    if trainable:
        raise UsageError("lambd adaptive trains the rate of an upstream that itself stays as it is: leave out -f")


def check_change(before: RateOptions, after: RateOptions, mode: str) -> None:
    """Raises UsageError for what an experiment that was trained at ``before`` cannot do at ``after``."""
    if after.adaptive and not before.adaptive:
        raise UsageError(f"the experiment was trained at {before}; lambd adaptive needs a training of its own")
    if before.adaptive and not after.adaptive and mode == "train":
        raise UsageError(f"the experiment trains its rate and cannot go on at {after}; train anew with -n or -p")
    if after.adaptive and after.lambd_start != before.lambd_start:
        raise UsageError(
            f"lambd_start is for a new training: this one began at {before.lambd_start:g} and goes on where it is"
        )
    if after.adaptive and after.lambd_max != before.lambd_max:
        raise UsageError(f"lambd_max is for a new training: in this one it is {before.lambd_max:g}")


def slowest(options: RateOptions) -> RateOptions:
    """The options at the lowest rate that training can come to, at which CTC must still find its frames."""
    if not options.adaptive:
        return options
    return RateOptions(lambd=options.lambd_max, frames=options.frames, repeat=options.repeat)


def period_at_start(options: RateOptions, slowest_ms: float) -> float:
    """The mean frame period in ms at which training starts, from that at ``slowest``; see the formula above."""
    if not options.adaptive:
        return slowest_ms
    part = options.lambd_start / options.lambd_max
    return MIN_FRAME_PERIOD_MS / (1 - part * (1 - MIN_FRAME_PERIOD_MS / slowest_ms))
