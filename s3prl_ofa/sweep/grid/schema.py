"""Grid files: what they may contain, as pydantic models, and how they are read.

Errors in the file itself are UsageErrors here, each a sentence that begins with the key, as in ``tasks.asr.repeat``;
what needs checkpoints, data or S3PRL is checked in jobs.py.
"""

import os
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from s3prl_ofa.arguments.run_downstream import AUTO, ROOTS
from s3prl_ofa.checkpoint.bounded_yaml import UniqueKeys
from s3prl_ofa.errors import UsageError, shown
from s3prl_ofa.model.config import MIN_FRAME_PERIOD_MS
from s3prl_ofa.model.rate import MAX_LAMBD
from s3prl_ofa.superb.tasks.configs import read_yaml_file
from s3prl_ofa.superb.upstream.output_frames import usual_output_frames, why_not_native
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE, FLOAT32, MIN_POOL, NATIVE, real, whole, with_current_names
from s3prl_ofa.sweep.job import usual_repeat

try:
    from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
except ImportError as error:
    raise UsageError(f"grids are read with pydantic ({error}): pip install 's3prl-ofa[sweep]'") from None


class Scoring(NamedTuple):
    """How a task is scored. metrics: those that it logs, unless its config names them; the first is the default.
    is_share: whether that one is from 0 to 1, so that reports show it in percent. dev, test: the default splits.
    is_trained: whether a model is trained for the task, else hidden states are evaluated as they are."""

    metrics: tuple[str, ...]
    is_share: bool = True
    dev: str | None = "dev"
    test: str = "test"
    is_trained: bool = True


KNOWN = {
    "asr": Scoring(("wer", "uer"), is_share=False, dev="dev-clean", test="test-clean"),
    "pr": Scoring(("per",)),
    **dict.fromkeys(("sid", "ks", "ic", "er"), Scoring(("acc",))),
    "sf": Scoring(("slot_type_f1",)),
    "asv": Scoring(("EER",), dev=None),
    "sd": Scoring(("der", "acc")),
    "qbe": Scoring(("mtwv",), is_trained=False),
}
# settings of a training, with what stands for none where a task is not trained
OF_TRAINING: dict[str, Any] = {"steps": None, "learning_rates": (None,), "lambd_starts": (None,), "lambd_max": None}
# metrics of which less is better, such as EER, slot_value_cer or word_error_rate; per is also a common word
ERROR_WORDS = "[wcued]er|mindcf|loss|nll|ppl|perplexity|r?mse|mae|mcd|errors?|err"
ERROR = re.compile(rf"(?<![a-z0-9])(({ERROR_WORDS})(?![a-z0-9])|per[^a-z0-9]*$)")

ItemT = TypeVar("ItemT")


def listed(value: Any) -> tuple[Any, ...]:
    """The values of a list, or a single value as a list."""
    items = value if isinstance(value, list | tuple) else [value]
    if not items or value is None:
        raise ValueError("at least one value is expected, found none")
    return tuple(items)


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{value} is given twice; each point of a grid is run once")
    return values


def number(value: Any) -> Any:
    """YAML 1.1 takes ``1e-1``, without a point, for text."""
    if value == ADAPTIVE:
        raise ValueError(f"the rate {ADAPTIVE} is given by its weight in the loss, as {{{ADAPTIVE}: 0.1}}")
    return real(value) if isinstance(value, str) and real(value) is not None else value


def check_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", value):
        raise ValueError(f"a name of letters, digits, '.', '+' and '-' is expected, found {shown(value)}")
    return value


def check_text(value: str) -> str:
    if not value.strip():
        raise ValueError(f"text is expected, found {shown(value)}")
    return value


def check_repeat(value: Any) -> int | str:
    if value != AUTO and (whole(value) or 0) < 1:
        raise ValueError(f"a whole number of at least 1 or {AUTO} is expected, found {shown(value)}")
    return value


def named_tasks(value: Any) -> dict[str, Any]:
    """Tasks and their settings, from a mapping or from names alone."""
    names = [value] if isinstance(value, str) else value
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        names = dict.fromkeys(names)
    if not names or not isinstance(names, Mapping):
        raise ValueError(f"task names are expected, or a mapping such as {{sid: {{steps: 500}}}}, found {shown(value)}")
    return {name: settings or {} for name, settings in names.items()}


OneOrMore = Annotated[tuple[ItemT, ...], BeforeValidator(listed), AfterValidator(distinct)]
Text = Annotated[str, AfterValidator(check_text)]
Name = Annotated[str, BeforeValidator(str), AfterValidator(check_name)]  # a part of a folder's name
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Number = Annotated[float, BeforeValidator(number)]
Positive = Annotated[Number, Field(gt=0)]
DataKey = Literal[tuple(name for name in ROOTS if name != "vocabulary")]


class Section(BaseModel):
    """A mapping with known keys. A key without a value counts as absent, except for lists, which cannot be empty."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def check_keys(cls, value: Any) -> Any:
        choices = ", ".join(cls.model_fields)
        if not isinstance(value, Mapping):
            raise ValueError(f"a mapping of {choices} is expected, found {shown(value)}")
        for key in value:
            if key not in cls.model_fields:
                raise ValueError(f"{key} is not a key of a grid; choices here: {choices}")
        return {key: item for key, item in value.items() if item is not None or key in LISTS}


class Rates(Section):
    """Rates of OFA checkpoints: lambd, mean frame periods in ms, numbers of 20 ms frames to average, and weights of the
    frame rate in the loss with which a task learns its own lambd. For comparison: lambd with frames of equal length,
    and numbers of encoder layers to run at 20 ms."""

    lambd: OneOrMore[Annotated[Number, Field(ge=0, lt=MAX_LAMBD)]] = ()
    frame_period_ms: OneOrMore[Annotated[Number, Field(ge=MIN_FRAME_PERIOD_MS)]] = ()
    pool: OneOrMore[Annotated[int, Field(ge=MIN_POOL)]] = ()
    adaptive: OneOrMore[Annotated[Number, Field(ge=0)]] = ()
    uniform: OneOrMore[Annotated[Number, Field(gt=0, lt=MAX_LAMBD)]] = ()
    layers: OneOrMore[Count] = ()

    def pairs(self) -> list[tuple[str, float]]:
        """(kind of rate, value)"""
        return [(key, value) for key in type(self).model_fields for value in getattr(self, key)]


class Axes(Section):
    """What is varied. A learning rate of None is the config's, a start of None is run_downstream's default."""

    rates: Rates = Rates()
    output_frames: OneOrMore[Literal["upsampled", "native"]] = ()  # empty, as is repeat: the task's usual one
    repeat: OneOrMore[Annotated[int | str, BeforeValidator(check_repeat)]] = ()
    dtype: OneOrMore[Literal["float32", "float16", "bfloat16", "int8"]] = (FLOAT32,)
    learning_rates: OneOrMore[Positive] = (None,)
    lambd_starts: OneOrMore[Annotated[Number, Field(ge=0, le=1)]] = (None,)
    seeds: OneOrMore[Annotated[int, Field(ge=0, lt=2**32)]] = (1,)  # what numpy takes

    @model_validator(mode="before")
    @classmethod
    def rename_keys(cls, value: Any) -> Any:
        return with_current_names(value) if isinstance(value, Mapping) else value


LISTS = {*Axes.model_fields, *Rates.model_fields} - {"rates"}


class Task(Axes):
    """The settings of a task; missing axes are those of the grid."""

    config: Text | None = None
    mini: bool = False
    steps: Count | None = None
    overrides: dict[str, Any] = {}  # of the config's keys, as runner.eval_step: 50
    metric: Text | None = None
    higher_is_better: bool | None = None
    lambd_max: Annotated[Number, Field(gt=0, le=1)] | None = None  # of adaptive rates
    search_layers: OneOrMore[NotNegative] = ()  # of a task that is not trained: hidden states to try; empty for all
    dev: Text | None = None
    test: Text = "test"


class OFACheckpoint(Section):
    """A once-for-all checkpoint. rates: those it runs at, if not the task's. tasks: those it is for, if not all."""

    path: Text
    rates: Rates | None = None
    tasks: OneOrMore[Text] = ()

    def is_for(self, task: str) -> bool:
        return not self.tasks or task in self.tasks

    @model_validator(mode="before")
    @classmethod
    def from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class Baseline(Section):
    """Another upstream of S3PRL; checkpoint: for those that need one (``-k``)."""

    upstream: Text
    name: Name
    checkpoint: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def add_name(cls, value: Any) -> Any:
        given = {"upstream": value} if isinstance(value, str) else value
        upstream = given.get("upstream") if isinstance(given, Mapping) else None
        return {"name": upstream.replace("_", "-"), **given} if isinstance(upstream, str) else given


class Executor(Section):
    """What runs the points. parallel: how many at a time. gpus: for local, how many of the machine's GPUs to use, one
    per point; for slurm, GPUs per point. cpus: threads per point. The rest is for slurm."""

    kind: Literal["local", "slurm"] = "local"
    parallel: Count | None = None
    gpus: NotNegative | None = None
    cpus: Count | None = None
    partition: Text | None = None
    hours: Positive = 24.0
    memory_gb: Positive | None = None
    account: Text | None = None
    qos: Text | None = None
    setup: OneOrMore[Text] = ()

    @model_validator(mode="after")
    def needs_slurm(self) -> "Executor":
        for name in ("partition", "hours", "memory_gb", "account", "qos", "setup"):
            if name in self.model_fields_set and self.kind != "slurm":
                raise ValueError(f"{name} is for kind: slurm, found kind: {self.kind}")
        return self


class Grid(Axes):
    checkpoints: dict[Name, OFACheckpoint] = {}
    baselines: OneOrMore[Baseline] = ()
    data: dict[DataKey, Text] = {}
    executor: Executor = Executor()
    device: Text = "cuda"
    mini: bool = False
    out: Text | None = None
    cache_gb: Positive | None = None  # for features of frozen upstreams, of all points together
    tasks: Annotated[dict[str, Task], BeforeValidator(named_tasks)]


def read_grid(path: str | os.PathLike) -> Grid:
    """The grid in a YAML file. Its paths are left as they are; jobs.py makes them absolute."""
    loaded = read_yaml_file(pathlib.Path(path), "a grid file", UniqueKeys)
    try:
        return grid_from(loaded)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def grid_from(loaded: Any) -> Grid:
    """The grid in the content of a YAML file, with all settings of its tasks filled in. Raises UsageError for the first
    error."""
    try:
        grid = Grid.model_validate(loaded)
    except ValidationError as error:
        raise UsageError(sentence(error)) from None
    if not grid.checkpoints and not grid.baselines:
        raise UsageError("checkpoints: give at least one, as NAME: PATH, or one of baselines")
    taken = [*grid.checkpoints, *(baseline.name for baseline in grid.baselines)]
    for name in taken:
        if taken.count(name) > 1:
            raise UsageError(f"baselines: the name {name} is used twice; rename one")
    for name, checkpoint in grid.checkpoints.items():
        if unknown := set(checkpoint.tasks) - set(grid.tasks):
            raise UsageError(f"checkpoints.{name}.tasks: {min(unknown)} is none of {', '.join(grid.tasks)}")
    return grid.model_copy(update={"tasks": {name: filled(name, task, grid) for name, task in grid.tasks.items()}})


def sentence(error: ValidationError) -> str:
    """The first of pydantic's errors, by its key."""
    first = error.errors(include_url=False)[0]
    key = ".".join(part for part in first["loc"] if isinstance(part, str) and part != "[key]") or "the grid"
    if first["type"] == "missing":
        return f"{key} is missing"
    if "error" in first.get("ctx", {}):
        return f"{key}: {first['ctx']['error']}"
    return f"{key} {re.sub('^[A-Z][a-z]+ ', '', first['msg'])}, found {shown(first['input'])}"  # Input should be ...


def is_trained(task: str) -> bool:
    return task not in KNOWN or KNOWN[task].is_trained


def filled(name: str, task: Task, grid: Grid) -> Task:
    """The task with its missing settings filled in from the grid, or else with the defaults."""
    known, own = KNOWN.get(name), task.model_fields_set
    shared = {key: getattr(grid, key) for key in grid.model_fields_set & Task.model_fields.keys()}
    for key in () if known else ("config", "metric"):
        if key not in own:
            raise UsageError(f"tasks.{name}.{key} is missing; only {', '.join(KNOWN)} come with one")
    usual = {"metric": known.metrics[0], "dev": known.dev, "test": known.test} if known else {}
    usual |= {"output_frames": (usual_output_frames(name),), "repeat": (usual_repeat(name),)}
    usual["higher_is_better"] = ERROR.search((task.metric or usual["metric"]).lower()) is None
    filled_in = task.model_copy(update={key: value for key, value in (usual | shared).items() if key not in own})
    if not is_trained(name):  # what the grid says about trainings is for its other tasks
        shared_training = {key: value for key, value in OF_TRAINING.items() if key not in own}
        filled_in = filled_in.model_copy(update={**shared_training, "seeds": filled_in.seeds[:1]})
    rates = [item.rates or filled_in.rates for item in grid.checkpoints.values() if item.is_for(name)]
    if not rates and not grid.baselines:
        raise UsageError(f"tasks.{name}: no checkpoint is for it; give it one, or leave it out")
    check_task(name, filled_in, own, any(item.adaptive for item in [filled_in.rates, *rates]))
    if not all(item.pairs() for item in rates):
        raise UsageError(f"tasks.{name}.rates is missing: at least one of {', '.join(Rates.model_fields)} is expected")
    return filled_in


def check_task(name: str, task: Task, own: Collection[str], adaptive: bool) -> None:
    """Raises UsageError for settings that do not suit the task. own: those of the task itself, not of the grid.
    adaptive: whether it has adaptive rates."""

    def key(setting: str) -> str:
        return f"tasks.{name}.{setting}" if setting in own else setting

    if not is_trained(name):
        if found := sorted({*OF_TRAINING, "seeds"} & set(own)):
            raise UsageError(f"tasks.{name}.{found[0]} is for training, and {name} trains nothing")
        if adaptive:
            raise UsageError(f"{key('rates')}: {name} trains nothing, so it has no {ADAPTIVE} rates; give it others")
    elif task.search_layers:
        raise UsageError(f"tasks.{name}.search_layers is for tasks that train nothing, such as qbe")
    if reason := why_not_native(name):
        if NATIVE in task.output_frames:
            raise UsageError(f"{key('output_frames')}: {reason}")
        if "repeat" in own and task.repeat != (1,):
            raise UsageError(f"{key('repeat')}: {reason}, whose repeat is 1")
    for setting, default in () if adaptive else (("lambd_starts", (None,)), ("lambd_max", None)):
        if getattr(task, setting) != default:
            raise UsageError(f"{key(setting)} is for adaptive rates, and {name} has none")
    if len(task.learning_rates) > 1 and task.dev is None:
        raise UsageError(f"tasks.{name}.dev is missing: the split on which the best of learning_rates is chosen")
