"""Which keys a grid file may hold and what each may be, as pydantic models."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from s3prl_ofa.errors import UsageError, shown
from s3prl_ofa.model.config import MIN_FRAME_PERIOD_MS
from s3prl_ofa.model.rate import MAX_LAMBD
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE, MIN_POOL, real, whole, with_current_names
from s3prl_ofa.sweep.job import AUTO

try:
    from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
    from pydantic_core import PydanticCustomError
except ImportError as error:
    raise UsageError(f"grids are read with pydantic ({error}): pip install 's3prl-ofa[sweep]'") from None

UNKNOWN_KEY = "unknown_key"  # pydantic's type of such an error
ItemT = TypeVar("ItemT")


def listed(value: Any) -> tuple[Any, ...]:
    """The values of a list, or the one value in its place."""
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
    return real(value) if isinstance(value, str) and real(value) is not None else value


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
        raise ValueError(f"names of tasks are expected, or a mapping as {{sid: {{steps: 500}}}}, found {shown(value)}")
    return {name: settings or {} for name, settings in names.items()}


OneOrMore = Annotated[tuple[ItemT, ...], BeforeValidator(listed), AfterValidator(distinct)]
Text = Annotated[str, Field(pattern=r"\S")]
Name = Annotated[str, BeforeValidator(str), Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$")]  # a part of a folder's name
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Number = Annotated[float, BeforeValidator(number)]
Positive = Annotated[Number, Field(gt=0)]
DataKey = Literal["librispeech", "voxceleb1", "prepared", "bucket", "lexicon", "speaker_list", "splits"]


class Section(BaseModel):
    """A mapping with known keys. A key without a value counts as not given, but for a list, which cannot be empty."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def check_keys(cls, value: Any) -> Any:
        choices = ", ".join(cls.model_fields)
        if not isinstance(value, Mapping):
            raise ValueError(f"a mapping of {choices} is expected, found {shown(value)}")
        for key in value:
            if key not in cls.model_fields:
                context = {"key": str(key), "choices": choices}
                raise PydanticCustomError(UNKNOWN_KEY, "is no key of a grid; choices here: {choices}", context)
        return {key: item for key, item in value.items() if item is not None or key in {*AXES, *Rates.model_fields}}


class Rates(Section):
    """Of OFA checkpoints: lambd, mean frame periods in ms, average pooling of so many 20 ms frames, and weights of the
    frame rate with which the task learns its own lambd."""

    lambd: OneOrMore[Annotated[Number, Field(ge=0, lt=MAX_LAMBD)]] = ()
    frame_period_ms: OneOrMore[Annotated[Number, Field(ge=MIN_FRAME_PERIOD_MS)]] = ()
    pool: OneOrMore[Annotated[int, Field(ge=MIN_POOL)]] = ()
    adaptive: OneOrMore[Annotated[Number, Field(ge=0)]] = ()

    @model_validator(mode="before")
    @classmethod
    def check_adaptive(cls, value: Any) -> Any:
        for item in value.values() if isinstance(value, Mapping) else [value]:
            if ADAPTIVE in (item if isinstance(item, list) else [item]):
                raise ValueError(
                    f"an adaptive lambd is given by the weight of the frame rate in its loss, as {{{ADAPTIVE}: 0.1}}"
                )
        return value

    def pairs(self) -> list[tuple[str, float]]:
        """(kind of rate, value)"""
        return [(key, value) for key in type(self).model_fields for value in getattr(self, key)]


class Axes(Section):
    """What is varied. None in place of a learning rate is the config's, in place of a start run_downstream's."""

    rates: Rates | None = None
    output_frames: OneOrMore[Literal["upsampled", "native"]] | None = None
    repeat: OneOrMore[Annotated[int | str, BeforeValidator(check_repeat)]] | None = None
    learning_rates: OneOrMore[Positive] | None = None
    lambd_starts: OneOrMore[Annotated[Number, Field(ge=0, le=1)]] | None = None
    seeds: OneOrMore[NotNegative] | None = None

    @model_validator(mode="before")
    @classmethod
    def rename_keys(cls, value: Any) -> Any:
        return with_current_names(value) if isinstance(value, Mapping) else value


AXES = tuple(Axes.model_fields)


class Task(Axes):
    """A task's settings; axes that it does not give are those of the grid."""

    config: Text | None = None
    mini: bool | None = None
    steps: Count | None = None
    overrides: dict[str, Any] = {}  # of the config's keys, as runner.eval_step: 50
    metric: Text | None = None
    higher_is_better: bool | None = None
    lambd_max: Annotated[Number, Field(gt=0, le=1)] | None = None  # of adaptive rates
    dev: Text | None = None
    test: Text | None = None


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
    """Who runs the points. parallel: how many at a time. gpus: local, how many of the machine's GPUs are dealt out, one
    per point; slurm, GPUs per point. cpus: threads per point. The rest is for slurm."""

    kind: Literal["local", "slurm", "debug"] = "local"
    parallel: Count | None = None
    gpus: NotNegative | None = None
    cpus: Count | None = None
    partition: Text | None = None
    hours: Positive = 24.0
    memory_gb: Positive | None = None
    account: Text | None = None
    qos: Text | None = None
    setup: OneOrMore[Text] = ()


class Grid(Axes):
    checkpoints: dict[Name, Text] = {}
    baselines: OneOrMore[Baseline] = ()
    data: dict[DataKey, Text] = {}
    executor: Executor = Executor()
    device: Text = "cuda"
    mini: bool = False
    out: Text | None = None
    cache_gb: Positive | None = None  # for features of frozen upstreams, of all points together
    tasks: Annotated[dict[str, Task], BeforeValidator(named_tasks)]


def validated(loaded: Any) -> Grid:
    """The grid in what YAML gave. Raises UsageError with the first thing that is wrong, by its key."""
    try:
        return Grid.model_validate(loaded)
    except ValidationError as error:
        raise UsageError(sentence(error)) from None


def sentence(error: ValidationError) -> str:
    """The first of pydantic's errors, by its key."""
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    keys = [part for part in first["loc"] if isinstance(part, str) and part != "[key]"]
    if first["type"] == UNKNOWN_KEY:
        return f"{'.'.join([*keys, context['key']])} {first['msg']}"
    key = ".".join(keys) or "the grid"
    if first["type"] == "missing":
        return f"{key} is missing"
    if "error" in context:
        return f"{key}: {context['error']}"
    return f"{key} {re.sub('^[A-Z][a-z]+ ', '', first['msg'])}, found {shown(first['input'])}"  # Input should be ...
