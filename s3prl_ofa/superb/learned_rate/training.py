"""Trains the rate of an upstream together with S3PRL's downstream model, and checks which changes of it are allowed."""

import collections
import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ofa.errors import UsageError
from s3prl_ofa.model.config import MIN_FRAME_PERIOD_MS
from s3prl_ofa.superb.learned_rate.rate import AdaptiveRate
from s3prl_ofa.superb.upstream.expert import unwrapped
from s3prl_ofa.superb.upstream.rate_options import RateOptions

logger = logging.getLogger(__name__)

SEARCH = 0.5  # of a training's batches run at two lambds
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def train_rate(runner: Any, rate: AdaptiveRate) -> None:
    """Adds the terms of the rate to the loss of an S3PRL runner's downstream model, and lambd to what it logs.

    runner: its models have been built, and its ``rate`` is the entry of ``rate``. The terms are part of what the
    downstream model returns, so that gradient accumulation and loss scaling apply to them too. The losses at two lambds
    are those of the features before SpecAug, without dropout, and do not change the statistics of the task's batch
    normalization.
    """
    settings = runner.config["runner"]
    rate.search = SEARCH * settings["total_steps"] * (settings.get("gradient_accumulate_steps") or 1)
    features: list[Tensor] = []

    def keep_features(module: nn.Module, args: tuple[Any, ...], output: list[Tensor]) -> None:
        features[:] = output

    def add_terms(module: nn.Module, args: tuple[Any, ...], loss: Tensor) -> Tensor:
        if rate.batch is None:  # in evaluation
            return loss
        difference = None if rate.batch.there is None else loss_difference(runner, rate, module, args, list(features))
        return runner.rate.model(loss, difference)

    runner.featurizer.model.register_forward_hook(keep_features)
    downstream = runner.downstream.model
    downstream.register_forward_hook(add_terms)
    downstream.log_records = logging_rate(downstream.log_records, rate, runner)
    fixed = "" if runner.args.mode == "train" else "fixed, "
    origin = "as learnt" if runner.init_ckpt.get("Rate") else "where it starts"
    logger.info("adaptive rate: lambd %.4f, %s%s", rate.value, fixed, origin)


def loss_difference(
    runner: Any, rate: AdaptiveRate, module: nn.Module, args: tuple[Any, ...], here: list[Tensor]
) -> float:
    """The task's loss of the current batch at its second lambd minus that at its first, with features ``here``.

    module, args: the downstream model and its arguments.
    """
    split, _, *others = args
    forward = unwrapped(module).forward  # without hooks
    devices = [here[0].device] if here[0].is_cuda else []
    losses = []
    with torch.no_grad(), dropout_disabled(module):
        rate.probe_lambd = rate.batch.there
        try:
            there = runner.featurizer.model(rate.batch.waves, runner.upstream.model(rate.batch.waves))
        finally:
            rate.probe_lambd = None
        for features in (here, there):
            with torch.random.fork_rng(devices):
                losses.append(float(forward(split, features, *others, records=collections.defaultdict(list))))
    return losses[1] - losses[0]


@contextlib.contextmanager
def dropout_disabled(module: nn.Module) -> Iterator[None]:
    """Puts dropout and batch normalization within ``module`` into evaluation mode; the rest stays in training mode."""
    parts = [part for part in module.modules() if isinstance(part, DROPOUT + BATCH_NORM) and part.training]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True


def logging_rate(log_records: Callable[..., Any], rate: AdaptiveRate, runner: Any) -> Callable[..., Any]:
    """A task's ``log_records`` that also logs lambd and its frame period with the training scores."""
    train_split = runner.config["runner"].get("train_dataloader", "train")

    @functools.wraps(log_records)
    def log(split: str, *args: Any, **kwargs: Any) -> Any:
        found = log_records(split, *args, **kwargs)
        if split == train_split:
            lambd, period = rate.value, rate.frame_period_ms
            step, name = kwargs["global_step"], f"{runner.args.downstream}/{split}"
            kwargs["logger"].add_scalar(f"{name}-lambd", lambd, global_step=step)
            kwargs["logger"].add_scalar(f"{name}-frame_period_ms", period, global_step=step)
            logger.info("step %d: lambd %.4f, %.2f ms per frame", step, lambd, period)
        return found

    return log


def check_change(before: RateOptions, after: RateOptions, mode: str) -> None:
    """Raises UsageError if an experiment that was trained at ``before`` cannot be run at ``after``."""
    if after.layers != before.layers:
        count = "all" if before.layers is None else f"{before.layers}"
        raise UsageError(f"layers is for a new training: this one weighs the hidden states of {count} layers")
    if after.adaptive and not before.adaptive:
        raise UsageError(f"the experiment was trained at {before}; lambd adaptive needs a new training")
    if before.adaptive and not after.adaptive and mode == "train":
        raise UsageError(f"the experiment trains its rate and cannot resume at {after}; train a new one (-n or -p)")
    if after.adaptive and after.lambd_start != before.lambd_start:
        raise UsageError(
            f"lambd_start is for a new training: this one began at {before.lambd_start:g} and resumes where "
            "it is; leave it out"
        )
    if after.adaptive and after.lambd_max != before.lambd_max:
        raise UsageError(f"lambd_max is for a new training: in this one it is {before.lambd_max:g}; leave it out")


def at_max_lambd(options: RateOptions) -> RateOptions:
    """The options at the lowest frame rate that training can reach, where CTC must still have enough frames."""
    if not options.adaptive:
        return options
    return RateOptions(lambd=options.lambd_max, output_frames=options.output_frames, repeat=options.repeat)


def initial_frame_period(options: RateOptions, period_ms: float) -> float:
    """The mean frame period in ms at which training starts, from that at ``at_max_lambd``; see rate.py's formula."""
    if not options.adaptive:
        return period_ms
    part = options.lambd_start / options.lambd_max
    return MIN_FRAME_PERIOD_MS / (1 - part * (1 - MIN_FRAME_PERIOD_MS / period_ms))
