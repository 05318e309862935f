"""From a grid file to its points. What is wrong with the file alone is a UsageError here, one sentence that begins with
the key, as in ``tasks.asr.repeat``; what needs checkpoints, data or S3PRL is checked in validation.py."""

import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import yaml

from s3prl_ofa.checkpoint.bounded_yaml import read_yaml
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.upstream.output_frames import usual_output_frames, why_not_native
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE, NATIVE
from s3prl_ofa.sweep.grid.schema import Grid, Rates, Task, validated
from s3prl_ofa.sweep.job import OFA, Point, usual_repeat


class Known(NamedTuple):
    """What is known of a task. unit: what turns its scores into percent."""

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
    known = KNOWN.get(name)
    for key in () if known else ("config", "metric"):
        if getattr(task, key) is None:
            raise UsageError(f"tasks.{name}.{key} is missing; only {', '.join(KNOWN)} come with one")
    metric = task.metric or known.metric
    is_usual = known is not None and metric == known.metric
    defaults = {
        "rates": Rates(),
        "output_frames": (usual_output_frames(name),),
        "repeat": (usual_repeat(name),),
        "learning_rates": (None,),
        "lambd_starts": (None,),
        "seeds": (1,),
        "mini": False,
        "metric": metric,
        "higher_is_better": known.higher_is_better if is_usual else not is_error(metric),
        "dev": known and known.dev,
        "test": known.test if known else "test",
    }
    filled_in = {
        key: next((value for layer in (task, grid) if (value := getattr(layer, key, None)) is not None), default)
        for key, default in defaults.items()
    }
    own = task.model_fields_set
    if why_not_native(name) and "repeat" not in own:
        filled_in["repeat"] = (1,)
    task = task.model_copy(update=filled_in)
    check_task(name, task, lambda key: f"tasks.{name}.{key}" if key in own else key)
    if grid.checkpoints and not task.rates.pairs():
        key = f"tasks.{name}.rates" if "rates" in own else "rates"
        raise UsageError(f"{key} is missing: at least one of {', '.join(Rates.model_fields)} is expected")
    return task


def check_task(name: str, task: Task, key: Callable[[str], str]) -> None:
    """Raises UsageError for settings of a task that do not fit together. key: where the file gives a setting."""
    if reason := why_not_native(name):
        if NATIVE in task.output_frames:
            raise UsageError(f"{key('output_frames')}: {reason}")
        if task.repeat != (1,):
            raise UsageError(f"{key('repeat')}: {reason}, whose repeat is 1")
    for setting, default in () if task.rates.adaptive else (("lambd_starts", (None,)), ("lambd_max", None)):
        if getattr(task, setting) != default:
            raise UsageError(f"{key(setting)} is for adaptive rates, and {name} has none")
    late = [start for start in task.lambd_starts if None not in (start, task.lambd_max) and start > task.lambd_max]
    if late:
        raise UsageError(f"{key('lambd_max')} is {task.lambd_max:g}, and of lambd_starts {late[0]:g} is above it")
    if len(task.learning_rates) > 1 and task.dev is None:
        raise UsageError(f"tasks.{name}.dev is missing: the split on which the best of learning_rates is chosen")


def is_error(metric: str) -> bool:
    """Whether less of it is better: EER, slot_value_cer, st_loss, word_error_rate and the like."""
    words = [word for word in re.split(r"[^a-z0-9]+", metric.lower()) if word]
    return words[-1:] == ["per"] or not LOWER_IS_BETTER.isdisjoint(words)  # per is also a word of its own


def points_of(grid: Grid) -> list[Point]:
    """All points, the first seed of everything before the second, so that a sweep that is stopped has a table."""
    found = [point for name, task in grid.tasks.items() for point in task_points(grid, name, task)]
    return sorted(found, key=lambda point: grid.tasks[point.task].seeds.index(point.seed))


def task_points(grid: Grid, name: str, task: Task) -> Iterator[Point]:
    for learning_rate, seed in itertools.product(task.learning_rates, task.seeds):
        common = {"task": name, "learning_rate": learning_rate, "seed": seed}
        for (model, checkpoint), (rate, value), frames in itertools.product(
            grid.checkpoints.items(), task.rates.pairs(), task.output_frames
        ):
            # a repeat is for native frames; upsampled ones are as many as at 20 ms
            repeats = task.repeat if frames == NATIVE else (1,)
            starts = task.lambd_starts if rate == ADAPTIVE else (None,)
            for repeat, start in itertools.product(repeats, starts):
                ofa = {"model": model, "upstream": OFA, "checkpoint": checkpoint, "rate": rate, "value": value}
                yield Point(**common, **ofa, lambd_start=start, output_frames=frames, repeat=repeat)
        for baseline in grid.baselines:
            yield Point(**common, model=baseline.name, upstream=baseline.upstream, checkpoint=baseline.checkpoint)
