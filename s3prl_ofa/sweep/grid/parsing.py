"""Grids from YAML files and back.

Everything that the file alone tells to be wrong is a UsageError here, one sentence that begins with the key, as in
``tasks.asr.repeat``. What needs files, checkpoints or S3PRL is checked in check.py.
"""

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from s3prl_ofa.checkpoint.bounded_yaml import read_yaml
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE, FRAMES, NATIVE, RateOptions, real, whole
from s3prl_ofa.superb.upstream.task_frames import refusal, usual_frames
from s3prl_ofa.sweep.grid.schema import (
    AUTO,
    DATA,
    KINDS,
    KNOWN,
    LOWER_IS_BETTER,
    RATES,
    Axes,
    Baseline,
    Executor,
    Grid,
    Rates,
    Task,
    usual_repeat,
)

AXES = tuple(field.name for field in dataclasses.fields(Axes))
TASK_KEYS = tuple(field.name for field in dataclasses.fields(Task) if field.name not in ("name", "axes"))
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")  # of a checkpoint, baseline or task: a part of a folder's name
UNSET: Any = object()
Convert = Callable[[Any], Any]  # raises ValueError with what was expected and found


class Section:
    """A mapping of the file whose keys are known; ``where`` is its own key, empty for the whole file."""

    def __init__(self, value: Any, where: str, keys: tuple[str, ...]) -> None:
        self.where = where
        if not isinstance(value, Mapping):
            raise UsageError(f"{where or 'the grid'} must be a mapping of {', '.join(keys)}, found {value!r}")
        self.values = dict(value)
        for key in self.values:
            if key not in keys:
                raise UsageError(f"{self.key(key)} is no key of a grid; choices here: {', '.join(keys)}")

    def key(self, name: Any) -> str:
        return f"{self.where}.{name}" if self.where else str(name)

    def get(self, name: str, convert: Convert, default: Any = UNSET) -> Any:
        """The value, converted; the default where the key is missing or empty."""
        value = self.values.get(name)
        if value is None:
            if name in self.values and default is UNSET or default is UNSET:
                raise UsageError(f"{self.key(name)} is missing")
            return default
        return self.converted(self.key(name), convert, value)

    @staticmethod
    def converted(key: str, convert: Convert, value: Any) -> Any:
        try:
            return convert(value)
        except UsageError:
            raise  # it names its key already
        except ValueError as error:
            raise UsageError(f"{key}: {error}") from None

    def list(self, name: str, convert: Convert, default: Any = UNSET) -> tuple[Any, ...]:
        """The values of a list, or of the one value in its place; none twice, and at least one."""
        value = self.values.get(name)
        if value is None and name not in self.values and default is not UNSET:
            return default
        items = value if isinstance(value, list) else [value]
        if not items or value is None:
            raise UsageError(f"{self.key(name)} is an empty list; leave it out or give at least one value")
        found = [self.converted(self.key(name), convert, item) for item in items]
        for index, item in enumerate(found):
            if item in found[:index]:
                raise UsageError(f"{self.key(name)} holds {item} twice; each point of a grid is run once")
        return tuple(found)


class UniqueKeys(yaml.SafeLoader):
    """YAML without a key that is there twice, of which PyYAML would take the last one without a word."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index] and key != "<<":
                mark = node.value[index][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} is there twice", mark)
        return node


def read_grid(path: str | os.PathLike) -> Grid:
    """The grid in a YAML file. Paths in it stay as they are; check.py makes them absolute."""
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
    """The grid in what YAML gave."""
    own = ("checkpoints", "tasks", "baselines", "data", "executor", "device", "mini", "out", "cache_gb")
    section = Section(loaded, "", (*own, *AXES))
    checkpoints = section.get("checkpoints", named_paths, {})
    baselines = section.list("baselines", baseline, ())
    if not checkpoints and not baselines:
        raise UsageError("checkpoints: give at least one, as NAME: PATH, or one of baselines")
    taken = [*checkpoints, *(item.name for item in baselines)]
    for name in taken:
        if taken.count(name) > 1:
            raise UsageError(f"baselines: the name {name} is taken twice; give one a name of its own")
    if checkpoints and "rates" not in section.values and not all_tasks_have_rates(section.values.get("tasks")):
        raise UsageError(f"rates is missing: a mapping of {', '.join(RATES)}")
    grid = Grid(
        checkpoints=checkpoints,
        tasks={},
        baselines=baselines,
        data=section.get("data", data, {}),
        executor=section.get("executor", executor, Executor()),
        device=section.get("device", text, "cuda"),
        out=section.get("out", text, None),
        cache_gb=section.get("cache_gb", positive, None),
    )
    mini = section.get("mini", boolean, False)
    tasks = section.get("tasks", task_names)
    read = {name: task_from(name, settings or {}, section, mini) for name, settings in tasks.items()}
    return dataclasses.replace(grid, tasks=read)


def all_tasks_have_rates(tasks: Any) -> bool:
    settings = list(tasks.values()) if isinstance(tasks, Mapping) else []
    return bool(settings) and all(isinstance(own, Mapping) and "rates" in own for own in settings)


def task_from(name: str, settings: Any, grid: Section, mini: bool) -> Task:
    """One task, with the grid's axes where it has none of its own."""
    section = Section(settings, f"tasks.{name}", (*TASK_KEYS, *AXES))
    known = KNOWN.get(name)
    config = section.get("config", text, None)
    if known is None and config is None:
        raise UsageError(f"tasks.{name}.config is missing; only {', '.join(KNOWN)} come with one")
    metric = section.get("metric", text, known.metric if known else UNSET)
    higher = known.higher_is_better if known and metric == known.metric else not is_error(metric)

    def axis(key: str, convert: Convert, default: Any) -> tuple[Any, ...]:
        return (section if key in section.values else grid).list(key, convert, default)

    def rates_of(own: Section) -> Rates:
        return rates(own.values.get("rates"), own.key("rates"))

    axes = Axes(
        rates=rates_of(section) if "rates" in section.values else rates_of(grid) if "rates" in grid.values else Rates(),
        frames=axis("frames", one_of(FRAMES), (usual_frames(name),)),
        repeat=axis("repeat", repeat, (usual_repeat(name),)),
        learning_rates=axis("learning_rates", positive, (None,)),
        seeds=axis("seeds", seed, (1,)),
        lambd_starts=axis("lambd_starts", lambd_in_range, (None,)),
    )
    if reason := refusal(name):
        if NATIVE in axes.frames:
            raise UsageError(f"{(section if 'frames' in section.values else grid).key('frames')}: {reason}")
        if "repeat" in section.values and axes.repeat != (1,):
            raise UsageError(f"{section.key('repeat')}: {reason}, whose repeat is 1")
        axes = dataclasses.replace(axes, repeat=(1,))
    if axes.lambd_starts != (None,) and not axes.rates.adaptive:
        key = section.key if "lambd_starts" in section.values else grid.key
        raise UsageError(f"{key('lambd_starts')} is for adaptive rates, and {name} has none")
    lambd_max = section.get("lambd_max", lambd_above_0, None)
    if lambd_max is not None and not axes.rates.adaptive:
        raise UsageError(f"{section.key('lambd_max')} is for adaptive rates, and {name} has none")
    late = [start for start in axes.lambd_starts if None not in (start, lambd_max) and start > lambd_max]
    if late:
        raise UsageError(f"{section.key('lambd_max')} is {lambd_max:g}, and of lambd_starts {late[0]:g} is above it")
    task = Task(
        name=name,
        axes=axes,
        config=config,
        mini=section.get("mini", boolean, mini),
        steps=section.get("steps", at_least_one, None),
        overrides=section.get("overrides", overrides, {}),
        metric=metric,
        higher_is_better=section.get("higher_is_better", boolean, higher),
        lambd_max=lambd_max,
        dev=section.get("dev", text, known.dev if known else None),
        test=section.get("test", text, known.test if known else "test"),
    )
    if len(axes.learning_rates) > 1 and task.dev is None:
        raise UsageError(f"tasks.{name}.dev is missing: the split on which the best of learning_rates is chosen")
    return task


def is_error(metric: str) -> bool:
    """Whether less of it is better: EER, slot_value_cer, st_loss, word_error_rate and the like."""
    words = [word for word in re.split(r"[^a-z0-9]+", metric.lower()) if word]
    return words[-1:] == ["per"] or not LOWER_IS_BETTER.isdisjoint(words)  # per is also a word of its own


def rates(value: Any, where: str) -> Rates:
    """lambd, frame_period_ms, pool and adaptive, each one value or a list."""
    adaptive = (
        f"{where}: an adaptive lambd is given by the weight of the frame rate in its loss, as {{{ADAPTIVE}: 0.1}}"
    )
    if ADAPTIVE in (value if isinstance(value, list) else [value]):
        raise UsageError(adaptive)
    section = Section(value, where, RATES)
    if not section.values:
        raise UsageError(f"{where} is empty; give at least one of {', '.join(RATES)}")

    def checked(key: str) -> Convert:
        def convert(item: Any) -> float:
            if item == ADAPTIVE:
                raise UsageError(adaptive)
            return getattr(RateOptions(**{key: item}), key)

        return rate_weight if key == ADAPTIVE else convert

    found = {}
    for key in section.values:
        try:
            found[key] = section.list(key, checked(key))
        except UsageError as error:  # RateOptions names the option without its place
            raise UsageError(str(error) if where in str(error) else f"{where}.{error}") from None
    return Rates(**found)


def named_paths(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"a mapping of NAME: PATH is expected, found {value!r}")
    return {name_of(name): text(path) for name, path in value.items()}


def baseline(value: Any) -> Baseline:
    """``mfcc``, or a mapping with upstream and, where it wants one, checkpoint and name."""
    if isinstance(value, str):
        return Baseline(name_of(value.replace("_", "-")), value)
    section = Section(value, "baselines", ("name", "upstream", "checkpoint"))
    upstream = section.get("upstream", text)
    name = section.get("name", name_of, upstream.replace("_", "-"))
    return Baseline(name, upstream, section.get("checkpoint", text, None))


def data(value: Any) -> dict[str, str]:
    section = Section(value, "data", DATA)
    return {key: section.get(key, text) for key in section.values}


def executor(value: Any) -> Executor:
    section = Section(value, "executor", tuple(field.name for field in dataclasses.fields(Executor)))
    return Executor(
        kind=section.get("kind", one_of(KINDS), "local"),
        parallel=section.get("parallel", at_least_one, None),
        gpus=section.get("gpus", not_negative, None),
        cpus=section.get("cpus", at_least_one, None),
        partition=section.get("partition", text, None),
        hours=section.get("hours", positive, 24.0),
        memory_gb=section.get("memory_gb", positive, None),
        account=section.get("account", text, None),
        qos=section.get("qos", text, None),
        setup=section.list("setup", text, ()),
    )


def task_names(value: Any) -> dict[str, Any]:
    """Tasks and their settings; a list of names stands for tasks without settings."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | Mapping) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"names of tasks are expected, or a mapping as {{sid: {{steps: 500}}}}, found {value!r}")
    return dict(names) if isinstance(names, Mapping) else dict.fromkeys(names)


def overrides(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"a mapping of the config's keys, as runner.eval_step: 50, is expected, found {value!r}")
    return dict(value)


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"text is expected, found {value!r}")
    return value


def name_of(value: Any) -> str:
    value = str(value)
    if not NAME.fullmatch(value):
        raise ValueError(f"the name {value!r} becomes part of a folder's: letters, digits, . + - only")
    return value


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"true or false is expected, found {value!r}")
    return value


def at_least_one(value: Any) -> int:
    number = whole(value)
    if number is None or number < 1:
        raise ValueError(f"a whole number of at least 1 is expected, found {value!r}")
    return number


def not_negative(value: Any) -> int:
    number = whole(value)
    if number is None or number < 0:
        raise ValueError(f"a whole number of at least 0 is expected, found {value!r}")
    return number


seed = not_negative


def positive(value: Any) -> float:
    number = real(value)
    if number is None or not 0 < number < math.inf:
        raise ValueError(f"a number above 0 is expected, found {value!r}")
    return number


def rate_weight(value: Any) -> float:
    number = real(value)
    if number is None or not 0 <= number < math.inf:
        raise ValueError(f"a weight of at least 0 is expected, found {value!r}")
    return number


def lambd_in_range(value: Any) -> float:
    number = real(value)
    if number is None or not 0 <= number <= 1:
        raise ValueError(f"a lambd in [0, 1] is expected, found {value!r}")
    return number


def lambd_above_0(value: Any) -> float:
    if value == 0:
        raise ValueError(f"a lambd in (0, 1] is expected, found {value!r}")
    return lambd_in_range(value)


def repeat(value: Any) -> int | str:
    if value == AUTO:
        return AUTO
    number = whole(value)
    if number is None or number < 1:
        raise ValueError(f"a whole number of at least 1 or {AUTO} is expected, found {value!r}")
    return number


def one_of(choices: tuple[str, ...]) -> Convert:
    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)} is expected, found {value!r}")
        return value

    return convert


def to_yaml(grid: Grid) -> str:
    """The grid in full: ``grid_from`` reads the same back."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {key: plain(item) for key, item in vars(value).items() if item not in (None, (), {})}
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    found = plain(grid)
    for task in found["tasks"].values():
        del task["name"]
        axes = task.pop("axes")
        axes = {key: values for key, values in axes.items() if values != [None]}
        task.update(axes)
    return yaml.safe_dump(found, sort_keys=False)
