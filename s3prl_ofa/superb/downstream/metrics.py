"""Measures what a run of S3PRL scores and costs, and writes it to the experiment's folder as ``measured_<split>.json``.

Speed is the time spent in the upstream, and in featurizer and downstream model, without reading audio, from the second
batch on, because the first one also pays for one-time set-up. Where features come from a cache, some batches are
computed all the same, so that there is something to measure.
"""

import dataclasses
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from tensorboardX.record_writer import RecordWriter
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from s3prl_ofa.device import device_name, now
from s3prl_ofa.io.files import write_json
from s3prl_ofa.io.tensorboard import outlast_full_disk
from s3prl_ofa.model.config import SAMPLE_RATE
from s3prl_ofa.superb.downstream.utterances import Records, utterance_scores
from s3prl_ofa.superb.upstream.expert import Measured, unwrapped

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None

logger = logging.getLogger(__name__)

COMPUTED_EVERY = 10  # batches, and the first two
COUNTED_BATCHES = 4  # of an upstream that does not count its MACs itself


class Meter:
    """Measures the models of an S3PRL runner. scores: the value that was logged last under each tag."""

    def __init__(self, runner: Any, scores: dict[str, float]) -> None:
        self.runner, self.scores = runner, scores
        self.device = torch.device(runner.args.device)
        self.utterances = self.frames = 0
        # seconds of audio, of the upstream (NaN where it did not run), of the downstream model
        self.batches: list[list[float]] = []
        self.training: list[float] = []  # seconds from one training batch to the next
        self.moments: list[float] = []  # of the current batch: before the upstream, after it
        self.last_training: float | None = None
        self.counted: list[list[Tensor]] = []  # the waves of the first batches
        self.records: Records = {}
        self.upstream = unwrapped(runner.upstream.model)
        if hasattr(self.upstream, "measured"):
            self.upstream.measured = Measured()  # without the second of noise with which the featurizer finds its width
        caches = (getattr(self.upstream, name, None) for name in ("cache", "front_end_cache"))
        self.caches = [cache for cache in caches if cache is not None]
        upstream, downstream = runner.upstream.model, runner.downstream.model
        self.hooks = []
        if runner.args.mode == "evaluate":
            self.keep_records(runner.downstream.model)
            self.hooks = [
                upstream.register_forward_pre_hook(self.before_upstream),
                upstream.register_forward_hook(self.after_upstream),
                runner.featurizer.model.register_forward_hook(self.after_featurizer),
                downstream.register_forward_hook(self.after_downstream),
            ]
        elif runner.args.mode == "train":
            self.hooks = [downstream.register_forward_hook(self.after_training_batch)]

    def keep_records(self, downstream: nn.Module) -> None:
        """Keeps the task's records of the utterances when it logs its scores."""
        log_records = downstream.log_records

        def log(split: str, *args: Any, records: Records, **kwargs: Any) -> Any:
            self.records = records
            return log_records(split, *args, records=records, **kwargs)

        downstream.log_records = log

    def before_upstream(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        for cache in self.caches:
            cache.recompute = len(self.batches) < 2 or len(self.batches) % COMPUTED_EVERY == 0
        self.moments = [now(self.device)]

    def after_upstream(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.moments.append(now(self.device))
        waves = args[0]
        self.utterances += len(waves)
        self.batches.append([sum(map(len, waves)) / SAMPLE_RATE])
        if len(self.counted) < COUNTED_BATCHES:
            self.counted.append(waves)

    def after_featurizer(self, module: nn.Module, args: tuple[Any, ...], features: Sequence[Tensor]) -> None:
        self.frames += sum(map(len, features))

    def after_downstream(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        before, between = self.moments
        overhead = sum(cache.overhead for cache in self.caches)
        self.batches[-1] += [between - before - overhead, now(self.device) - between]

    def after_training_batch(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        moment = time.perf_counter()
        if module.training and self.last_training is not None:
            self.training.append(moment - self.last_training)
        self.last_training = moment if module.training else None  # evaluations do not count

    def write(self) -> None:
        """Writes what was measured to the experiment's folder; for the inference of a file there is nothing.

        learnt_lambd: of an adaptive rate, whose frame_period_ms in training is that of the last batches.
        """
        for hook in self.hooks:
            hook.remove()
        args = self.runner.args
        if args.mode == "evaluate":
            found, split = self.evaluated(), args.evaluate_split
            if scores := utterance_scores(self.records, list(found["scores"])):
                write_json(utterances_path(args.expdir, split), scores, indent=None)
        elif args.mode == "train" and self.training:
            found, split = {"seconds_per_batch": sum(self.training) / len(self.training)}, "train"
        else:
            return
        rate = self.runner.learned_rate
        found = {"learnt_lambd": None} | ({} if rate is None else rate.measured()) | found
        found |= {"device": device_name(self.device), "peak_memory_mb": peak_memory_mb(self.device)}
        write_json(measured_path(args.expdir, split), found)

    def evaluated(self) -> dict[str, Any]:
        """Counts, the options of our upstream, the scores by metric, and per second of audio the MACs and the
        wall-clock seconds of upstream and downstream model. frames: after compression, before any repetition."""
        split = self.runner.args.evaluate_split
        upstream, measured = self.upstream, getattr(self.upstream, "measured", None)
        audio = sum(batch[0] for batch in self.batches)
        steady = self.batches[1:] or self.batches
        ran = [batch for batch in steady if not math.isnan(batch[1])]
        frames = self.frames if measured is None else measured.frames
        macs = count_macs(upstream, self.counted) if measured is None else measured.macs / max(measured.seconds, 1e-9)
        scores = {tag.rpartition("/")[2].removeprefix(f"{split}-"): value for tag, value in self.scores.items()}
        return {
            "split": split,
            "utterances": self.utterances,
            "batches": len(self.batches),
            "audio_seconds": audio,
            "frames": frames,
            "frame_period_ms": 1000 * audio / frames if frames else None,
            "macs_per_second": macs,
            "upstream_seconds_per_second": seconds_per_second(ran, 1),
            "downstream_seconds_per_second": seconds_per_second(steady, 2),
            "options": None if measured is None else dataclasses.asdict(upstream.options),
            # JSON has no NaN
            "scores": {name: value if math.isfinite(value) else None for name, value in scores.items()},
        }


def seconds_per_second(batches: list[list[float]], column: int) -> float | None:
    """A column of ``Meter.batches`` per second of audio; None without batches."""
    return sum(batch[column] for batch in batches) / sum(batch[0] for batch in batches) if batches else None


def measured_path(expdir: str | os.PathLike, split: str) -> pathlib.Path:
    return pathlib.Path(expdir) / f"measured_{split.replace(os.sep, '_')}.json"


def utterances_path(expdir: str | os.PathLike, split: str) -> pathlib.Path:
    return pathlib.Path(expdir) / f"utterances_{split.replace(os.sep, '_')}.json"


def keeping_scores(writer: type, scores: dict[str, float]) -> type:
    """tensorboardX's ``SummaryWriter``, to which every S3PRL task logs its scores, made to keep the last ones in
    ``scores`` too."""
    outlast_full_disk(RecordWriter)

    class KeepingWriter(writer):
        def add_scalar(self, tag: str, scalar_value: Any, *args: Any, **kwargs: Any) -> None:
            scores[tag] = float(scalar_value)
            super().add_scalar(tag, scalar_value, *args, **kwargs)

    return KeepingWriter


@torch.no_grad()
def count_macs(upstream: nn.Module, batches: list[list[Tensor]]) -> float | None:
    """MACs per second of audio of an S3PRL upstream: those of matrix products, convolutions and attention in a few
    batches, as counted by PyTorch; None if that fails."""
    seconds = sum(len(wave) for waves in batches for wave in waves) / SAMPLE_RATE
    try:
        with FlopCounterMode(display=False) as counter:
            for waves in batches:
                upstream(waves)
    except Exception as error:  # of code that is not ours; the scores are worth more than their cost
        logger.warning("the MACs of the upstream cannot be counted: %s", error)
        return None
    return counter.get_total_flops() / 2 / seconds if seconds else None


def peak_memory_mb(device: torch.device) -> float | None:
    """In MiB: on a GPU the peak of torch's allocations, on the CPU that of the whole process; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
