"""From a grid file to its points. What is wrong with the file alone is a UsageError here, one sentence that begins with
the key, as in ``tasks.asr.repeat``; what needs checkpoints, data or S3PRL is checked in validation.py."""

import itertools
import os
import pathlib
import re
from collections.abc import Collection, Iterator
from typing import Any

import yaml

from s3prl_ofa.checkpoint.bounded_yaml import read_yaml
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.upstream.output_frames import usual_output_frames, why_not_native
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE, NATIVE
from s3prl_ofa.sweep.grid.schema import Grid, Rates, Task, validated
from s3prl_ofa.sweep.job import OFA, Point, usual_repeat

KNOWN = {
    "asr": {"metric": "wer", "dev": "dev-clean", "test": "test-clean"},
    "pr": {"metric": "per", "dev": "dev", "test": "test"},
    "sid": {"metric": "acc", "dev": "dev", "test": "test"},
}
DEFAULTS = {"rates": Rates(), "learning_rates": (None,), "lambd_starts": (None,), "seeds": (1,), "test": "test"}
# words that make a metric an error
LOWER_IS_BETTER = frozenset(("wer", "cer", "uer", "eer", "der", "mindcf", "loss", "nll", "ppl", "perplexity"))
LOWER_IS_BETTER |= {"mse", "rmse", "mae", "mcd", "error", "errors", "err"}


class UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which PyYAML would silently take the last one."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index] and key != "<<":
                mark = node.value[index][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} is given twice", mark)
        return node


def read_grid(path: str | os.PathLike) -> Grid:
    """The grid in a YAML file. Paths in it stay as they are; validation.py makes them absolute."""
    path = pathlib.Path(path)
    try:
        loaded = read_yaml(path.read_text("utf-8"), UniqueKeys)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); a grid file is expected") from None
    except ValueError as error:
        raise UsageError(f"{path} is not YAML: {error}") from None
    try:
        return grid_from(loaded)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def grid_from(loaded: Any) -> Grid:
    """The grid in what YAML gave, with every setting of its tasks filled in."""
    grid = validated(loaded)
    if not grid.checkpoints and not grid.baselines:
        raise UsageError("checkpoints: give at least one, as NAME: PATH, or one of baselines")
    taken = [*grid.checkpoints, *(baseline.name for baseline in grid.baselines)]
    for name in taken:
        if taken.count(name) > 1:
            raise UsageError(f"baselines: the name {name} is taken twice; give one another name")
    return grid.model_copy(update={"tasks": {name: filled(name, task, grid) for name, task in grid.tasks.items()}})


def filled(name: str, task: Task, grid: Grid) -> Task:
    """The task with the grid's axes, or the default ones, in place of what it does not give."""
    known = KNOWN.get(name, {})
    for key in () if known else ("config", "metric"):
        if getattr(task, key) is None:
            raise UsageError(f"tasks.{name}.{key} is missing; only {', '.join(KNOWN)} come with one")
    own = {key: value for key, value in task if value is not None}
    axes = {key: value for key, value in grid if value is not None and key in Task.model_fields}
    usual = {**DEFAULTS, **known, "output_frames": (usual_output_frames(name),), "repeat": (usual_repeat(name),)}
    usual["higher_is_better"] = not is_error(task.metric or known["metric"])
    filled_in = task.model_copy(update={**usual, **axes, **own})
    check_task(name, filled_in, own)
    if grid.checkpoints and not filled_in.rates.pairs():
        raise UsageError(f"tasks.{name}.rates is missing: at least one of {', '.join(Rates.model_fields)} is expected")
    return filled_in


def check_task(name: str, task: Task, own: Collection[str]) -> None:
    """Raises UsageError for settings that do not suit the task. own: those that the task gives, not the grid."""

    def key(setting: str) -> str:
        return f"tasks.{name}.{setting}" if setting in own else setting

    if reason := why_not_native(name):
        if NATIVE in task.output_frames:
            raise UsageError(f"{key('output_frames')}: {reason}")
        if "repeat" in own and task.repeat != (1,):
            raise UsageError(f"{key('repeat')}: {reason}, whose repeat is 1")
    for setting, default in () if task.rates.adaptive else (("lambd_starts", (None,)), ("lambd_max", None)):
        if getattr(task, setting) != default:
            raise UsageError(f"{key(setting)} is for adaptive rates, and {name} has none")
    if len(task.learning_rates) > 1 and task.dev is None:
        raise UsageError(f"tasks.{name}.dev is missing: the split on which the best of learning_rates is chosen")


def is_error(metric: str) -> bool:
    """Whether less of it is better: EER, slot_value_cer, st_loss, word_error_rate and the like."""
    words = [word for word in re.split(r"[^a-z0-9]+", metric.lower()) if word]
    return words[-1:] == ["per"] or not LOWER_IS_BETTER.isdisjoint(words)  # per is also a word of its own


def points_of(grid: Grid) -> list[Point]:
    """All points, the first seed of everything before the second, so that a sweep that is stopped has a table.

    Raises UsageError for a rate that run_downstream would refuse.
    """
    found = [point for name, task in grid.tasks.items() for point in task_points(grid, name, task)]
    for point in found:
        point.checked_options()
    return sorted(found, key=lambda point: grid.tasks[point.task].seeds.index(point.seed))


def task_points(grid: Grid, name: str, task: Task) -> Iterator[Point]:
    for learning_rate, seed in itertools.product(task.learning_rates, task.seeds):
        common = {"task": name, "learning_rate": learning_rate, "seed": seed}
        for (model, checkpoint), (rate, value), frames in itertools.product(
            grid.checkpoints.items(), task.rates.pairs(), task.output_frames
        ):
            ofa = {"model": model, "upstream": OFA, "checkpoint": checkpoint, "rate": rate, "value": value}
            # a repeat is for native frames; upsampled ones are as many as at 20 ms
            repeats = task.repeat if frames == NATIVE else (1,)
            adaptive = {"lambd_max": task.lambd_max} if rate == ADAPTIVE else {}
            starts = task.lambd_starts if rate == ADAPTIVE else (None,)
            for repeat, start in itertools.product(repeats, starts):
                yield Point(**common, **ofa, **adaptive, lambd_start=start, output_frames=frames, asked_repeat=repeat)
        for baseline in grid.baselines:
            yield Point(**common, model=baseline.name, upstream=baseline.upstream, checkpoint=baseline.checkpoint)
