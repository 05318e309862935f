"""What a sweep varies, as dataclasses, and the points that come of it. reading.py makes them from a YAML file."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from s3prl_ofa.superb.tasks.configs import CTC_TASKS
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE, NATIVE, RATE_KEYS
from s3prl_ofa.superb.upstream.task_frames import usual_frames

OURS = "ofa_wav2vec2"
AUTO = "auto"  # the repeat that CTC needs
DATA = ("librispeech", "voxceleb1", "prepared", "bucket", "lexicon", "speaker_list", "splits")
KINDS = ("local", "slurm", "debug")


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of a task. unit: what its scores are multiplied by to be percent."""

    metric: str
    higher_is_better: bool
    dev: str
    test: str
    unit: float


KNOWN = {
    "asr": Known("wer", False, "dev-clean", "test-clean", 1),
    "pr": Known("per", False, "dev", "test", 100),
    "sid": Known("acc", True, "dev", "test", 100),
}
RATES = (*RATE_KEYS, ADAPTIVE)
RATE_NAMES = {"lambd": "lambd{:g}", "frame_period_ms": "{:g}ms", "pool": "pool{:g}", ADAPTIVE: "adaptive{:g}"}
# words of a metric's name that tell it to be an error
LOWER_IS_BETTER = frozenset(("wer", "cer", "uer", "eer", "der", "mindcf", "loss", "nll", "ppl", "perplexity"))
LOWER_IS_BETTER |= {"mse", "rmse", "mae", "mcd", "error", "errors", "err"}


@dataclasses.dataclass(frozen=True)
class Rates:
    """Of our own model: lambd in [0, 2), mean frame periods in ms, average pooling of so many 20 ms frames, and weights
    of the frame rate with which the task learns its own lambd."""

    lambd: tuple[float, ...] = ()
    frame_period_ms: tuple[float, ...] = ()
    pool: tuple[int, ...] = ()
    adaptive: tuple[float, ...] = ()

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return ((key, value) for key in RATES for value in getattr(self, key))


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Another upstream of S3PRL's; checkpoint: for those that want one (``-k``)."""

    name: str
    upstream: str
    checkpoint: str | None = None


@dataclasses.dataclass(frozen=True)
class Axes:
    """What is varied. A repeat of "auto" is what CTC needs at the rate; a learning rate of None is the config's, and a
    start of None, of adaptive rates alone, run_downstream's."""

    rates: Rates
    frames: tuple[str, ...]
    repeat: tuple[int | str, ...]
    learning_rates: tuple[float | None, ...]
    lambd_starts: tuple[float | None, ...]
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task and its own settings; ``axes`` are the grid's with the task's own in their place."""

    name: str
    axes: Axes
    config: str | None
    mini: bool
    steps: int | None
    overrides: dict[str, Any]
    metric: str
    higher_is_better: bool
    lambd_max: float | None  # of adaptive rates
    dev: str | None
    test: str


@dataclasses.dataclass(frozen=True)
class Executor:
    """Who runs the points. parallel: how many at a time. gpus: local, how many of the machine's GPUs are dealt out, one
    a point; slurm, GPUs a point. cpus: threads a point. The rest is for slurm."""

    kind: str = "local"
    parallel: int | None = None
    gpus: int | None = None
    cpus: int | None = None
    partition: str | None = None
    hours: float = 24.0
    memory_gb: float | None = None
    account: str | None = None
    qos: str | None = None
    setup: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Point:
    """One training and its evaluation. Its name is the folder's; a baseline has no rate, frames or repeat."""

    task: str
    model: str
    upstream: str
    checkpoint: str | None
    rate: str | None
    value: float | None
    frames: str | None
    repeat: int | str | None
    learning_rate: float | None
    seed: int
    lambd_start: float | None = None

    @property
    def name(self) -> str:
        """What differs from the task's usual is said, whatever else the grid holds: the same point, the same name."""
        parts = [self.task, self.model]
        if self.rate is not None:
            parts.append(RATE_NAMES[self.rate].format(self.value))
        if self.lambd_start is not None:
            parts.append(f"start{self.lambd_start:g}")
        if self.frames not in (None, usual_frames(self.task)):
            parts.append(self.frames)
        if self.repeat not in (None, usual_repeat(self.task)) and self.frames == NATIVE:
            parts.append(f"repeat{self.repeat}")
        if self.learning_rate is not None:
            parts.append(f"lr{self.learning_rate:g}")
        return "_".join([*parts, f"seed{self.seed}"])


@dataclasses.dataclass(frozen=True)
class Grid:
    checkpoints: dict[str, str]
    tasks: dict[str, Task]
    baselines: tuple[Baseline, ...]
    data: dict[str, str]
    executor: Executor
    device: str
    out: str | None
    cache_gb: float | None = None  # for features of frozen upstreams, of all points together

    def points(self) -> list[Point]:
        """All points, the first seed of everything before the second, so that a sweep that is stopped has a table."""
        found = [point for task in self.tasks.values() for point in task_points(self, task)]
        seeds = {task.name: task.axes.seeds for task in self.tasks.values()}
        return sorted(found, key=lambda point: seeds[point.task].index(point.seed))


def task_points(grid: Grid, task: Task) -> Iterator[Point]:
    axes = task.axes
    for learning_rate, seed in itertools.product(axes.learning_rates, axes.seeds):
        for (model, checkpoint), (rate, value), frames in itertools.product(
            grid.checkpoints.items(), axes.rates, axes.frames
        ):
            # a repeat is for native frames; upsampled ones are as many as at 20 ms
            repeats = axes.repeat if frames == NATIVE else (1,)
            starts = axes.lambd_starts if rate == ADAPTIVE else (None,)
            for repeat, start in itertools.product(repeats, starts):
                yield Point(task.name, model, OURS, checkpoint, rate, value, frames, repeat, learning_rate, seed, start)
        for baseline in grid.baselines:
            given = (baseline.name, baseline.upstream, baseline.checkpoint)
            yield Point(task.name, *given, None, None, None, None, learning_rate, seed)


def usual_repeat(task: str) -> int | str:
    return AUTO if task in CTC_TASKS else 1
