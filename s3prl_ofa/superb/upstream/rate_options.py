"""The options of the upstream: its rate, its dtype, and the form in which S3PRL receives the compressed frames.

They come from keyword arguments, from S3PRL's ``-g`` (a YAML file or inline YAML) and from our command line, and are
written back as inline YAML, so that an S3PRL experiment stores them with its arguments.
"""

import dataclasses
import math
import numbers
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from s3prl_ofa.arguments.parser import DTYPES
from s3prl_ofa.arguments.run_downstream import BOUNDARIES, OUTPUT_FRAMES
from s3prl_ofa.checkpoint.bounded_yaml import read_yaml
from s3prl_ofa.device import AUTO, fastest_dtype, resolve_device
from s3prl_ofa.errors import UsageError
from s3prl_ofa.model.config import MIN_FRAME_PERIOD_MS
from s3prl_ofa.model.rate import MAX_LAMBD

UPSAMPLED, NATIVE = OUTPUT_FRAMES
OLD_NAME, NEW_NAME = "frames", "output_frames"  # of the choice between them
RATE_KEYS = ("lambd", "frame_period_ms", "pool")  # three ways to give the frame rate
ONE_RATE = "give lambd, frame_period_ms or pool, not more than one"
MIN_POOL = 2  # 20 ms frames averaged into one
ADAPTIVE = "adaptive"  # lambd is learned by the task
LEARNT, UNIFORM = BOUNDARIES
FLOAT32, INT8 = DTYPES[0], "int8"
ADAPTIVE_KEYS = {"rate_weight": 0.0, "lambd_max": 1.0, "lambd_start": 0.5}  # and their defaults


def plain(value: Any) -> Any:
    """The number in a scalar of numpy or torch; anything else unchanged."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def whole(value: Any) -> int | None:
    """The value as an int; None if it is not a whole number, such as YAML's ``yes`` or 1.5."""
    value = plain(value)
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None


def real(value: Any) -> float | None:
    """The value as a float; None if it is not a real number, such as YAML's ``yes`` or NaN.

    Text is converted, because YAML 1.1 reads ``1e-1``, without a point, as text.
    """
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


# for each option: how its number is read, which numbers are valid, and what a message says is expected
NUMBERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], bool], str]] = {
    "lambd": (real, lambda x: 0 <= x < MAX_LAMBD, f"a number in [0, {MAX_LAMBD:g}) or {ADAPTIVE}"),
    "frame_period_ms": (
        real,
        lambda x: MIN_FRAME_PERIOD_MS <= x < math.inf,
        f"a number of at least {MIN_FRAME_PERIOD_MS:g}",
    ),
    "repeat": (whole, lambda n: n >= 1, "a whole number of at least 1"),
    "pool": (whole, lambda n: n >= MIN_POOL, f"a whole number of at least {MIN_POOL}"),
    "layers": (whole, lambda n: n >= 1, "a whole number of at least 1"),
    "rate_weight": (real, lambda x: 0 <= x < math.inf, "a number of at least 0"),
    "lambd_max": (real, lambda x: 0 < x <= 1, "a number in (0, 1]"),
    "lambd_start": (real, lambda x: 0 <= x <= 1, "a number in [0, 1]"),
}


CHOICES = {"output_frames": OUTPUT_FRAMES, "boundaries": BOUNDARIES, "dtype": DTYPES}


@dataclasses.dataclass(frozen=True)
class RateOptions:
    """How the upstream runs. Raises UsageError naming the option and its choices for an invalid value.

    Numbers may be scalars of numpy or torch, and real numbers also text such as YAML's ``1e-1``; all become Python's.

    lambd: in [0, 2), or "adaptive"; or frame_period_ms: mean frame period in ms, 20 or more; or pool. Without any of
        them lambd 0, 20 ms.
    output_frames: "upsampled" repeats each compressed frame over the 20 ms frames it came from, as unmodified S3PRL
        expects; "native" gives the compressed frames with their true lengths.
    repeat: how often each native frame is repeated, so that CTC has enough frames for its labels.
    pool: a fixed rate for comparison: at lambd 0, this many hidden states (2 or more) are averaged into one.
    rate_weight: of the mean frame rate in the loss of an adaptive lambd, 0 or more; see learned_rate/rate.py.
    lambd_max: upper limit of an adaptive lambd, in (0, 1].
    lambd_start: initial value of an adaptive lambd, from 0 to lambd_max; by default 0.5, or lambd_max if that is less.
    boundaries: "learnt", where the model's alpha puts them, or for comparison "uniform": equally many of equal length.
    layers: how many layers of the encoder run (early exit); all by default.
    dtype: what the model runs in, as ``load`` takes it; its hidden states are given in float32 all the same.
    """

    lambd: float | str | None = None
    frame_period_ms: float | None = None
    output_frames: str = UPSAMPLED
    repeat: int = 1
    pool: int | None = None
    rate_weight: float | None = None
    lambd_max: float | None = None
    lambd_start: float | None = None
    boundaries: str = LEARNT
    layers: int | None = None
    dtype: str = FLOAT32

    def __post_init__(self) -> None:
        if sum(getattr(self, key) is not None for key in RATE_KEYS) > 1:
            raise UsageError(ONE_RATE)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, found {getattr(self, name)!r}")
        for name, (read, is_valid, expected) in NUMBERS.items():
            given = getattr(self, name)
            if given is None and name != "repeat" or name == "lambd" and self.adaptive:
                continue
            number = read(given)
            if number is None or not is_valid(number):
                raise UsageError(f"{name} must be {expected}, found {given!r}")
            object.__setattr__(self, name, number)  # a plain number, which YAML can hold
        if self.repeat > 1 and self.output_frames != NATIVE:
            raise UsageError(f"repeat {self.repeat} needs output_frames {NATIVE}, found {self.output_frames}")
        for name, default in ADAPTIVE_KEYS.items():
            value = getattr(self, name)
            if self.adaptive and value is None:
                object.__setattr__(self, name, default if name != "lambd_start" else min(default, self.lambd_max))
            elif not self.adaptive and value is not None:
                raise UsageError(f"{name} needs lambd {ADAPTIVE}, found {name} {value!r} without it")
        for name in ("boundaries", "layers") if self.adaptive else ():
            if getattr(self, name) != OPTION_DEFAULTS[name]:
                raise UsageError(f"{name} cannot be chosen with lambd {ADAPTIVE}, found {getattr(self, name)}")
        if self.adaptive and self.lambd_start > self.lambd_max:
            raise UsageError(f"lambd_start must be at most lambd_max, {self.lambd_max:g}, found {self.lambd_start}")

    @property
    def adaptive(self) -> bool:
        return isinstance(self.lambd, str) and self.lambd == ADAPTIVE

    @property
    def compresses(self) -> bool:
        """Whether frames are merged, which needs a checkpoint with a compressor."""
        return bool(self.lambd) or (self.frame_period_ms or MIN_FRAME_PERIOD_MS) > MIN_FRAME_PERIOD_MS

    @property
    def uniform(self) -> bool:
        return self.boundaries == UNIFORM

    @property
    def extract_rate(self) -> dict[str, Any]:
        """The rate, boundaries and layers as keyword arguments of OFAWav2Vec2.extract; pooling is done afterwards."""
        unusual = {"uniform": True} if self.uniform else {}
        unusual |= {} if self.layers is None else {"layers": self.layers}
        return {"lambd": self.lambd, "frame_period_ms": self.frame_period_ms, **unusual}

    def on_device(self, name: str) -> "RateOptions":
        """The options with a dtype of ``auto`` replaced by that of the device. Raises UsageError for int8 on a GPU."""
        device = resolve_device(name)
        if self.dtype == INT8 and device.type != "cpu":
            raise UsageError(f"--dtype {INT8} is for the CPU, found --device {name}; use bfloat16 or float16 there")
        fastest = str(fastest_dtype(device)).removeprefix("torch.")
        return dataclasses.replace(self, dtype=fastest) if self.dtype == AUTO else self

    @classmethod
    def layered(cls, *layers: Mapping[str, Any]) -> "RateOptions":
        """Options from mappings; later ones override earlier ones, and None counts as not given.

        Raises UsageError for a key that is not an option.
        """
        return cls(**merged(*layers))

    def to_yaml(self) -> str:
        """Inline YAML of all values that are not defaults, and output_frames: ``{lambd: 0.5, output_frames: native}``.

        It contains no ``=``, at which S3PRL's ``-o`` would split it.
        """
        values = {key: value for key, value in dataclasses.asdict(self).items() if value != OPTION_DEFAULTS[key]}
        return yaml.safe_dump({NEW_NAME: self.output_frames, **values}, default_flow_style=True, width=math.inf).strip()

    def __str__(self) -> str:
        if self.frame_period_ms is not None:
            rate = f"frame period {self.frame_period_ms:g} ms"
        elif self.pool is not None:
            rate = f"{self.pool} averaged 20 ms frames"
        elif self.adaptive:
            limit = f", at most {self.lambd_max:g}" if self.lambd_max < 1 else ""
            rate = f"adaptive lambd (start {self.lambd_start:g}{limit}, rate weight {self.rate_weight:g})"
        else:
            rate = f"lambd {self.lambd or 0:g}"
        rate += f", {UNIFORM} boundaries" if self.uniform else ""
        rate += "" if self.layers is None else f", layers 1 to {self.layers}"
        rate += "" if self.dtype == FLOAT32 else f", {self.dtype}"
        return f"{rate}, {self.output_frames} frames" + (f", each {self.repeat} times" if self.repeat > 1 else "")


OPTION_DEFAULTS = {field.name: field.default for field in dataclasses.fields(RateOptions)}
OPTION_NAMES = tuple(OPTION_DEFAULTS)


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the mappings of ``RateOptions.layered`` give, under their current names."""
    options: dict[str, Any] = {}
    for layer in layers:
        given = with_current_names({key: value for key, value in layer.items() if value is not None})
        unknown = sorted(str(key) for key in layer if key not in (*OPTION_NAMES, OLD_NAME))
        if unknown:
            raise UsageError(f"unknown upstream option {', '.join(unknown)}; choices: {', '.join(OPTION_NAMES)}")
        if sum(key in given for key in RATE_KEYS) > 1:
            raise UsageError(ONE_RATE)
        if any(key in given for key in RATE_KEYS):
            # a rate replaces an earlier one completely
            other = () if given.get("lambd") == options.get("lambd") == ADAPTIVE else (*RATE_KEYS, *ADAPTIVE_KEYS)
            options = {key: value for key, value in options.items() if key not in other}
        options.update(given)
    return options


def with_current_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with ``output_frames`` under that name, even if they call it ``frames``, as earlier versions did.

    Raises UsageError if they give both, with different values.
    """
    old, current = settings.get(OLD_NAME), settings.get(NEW_NAME)
    if OLD_NAME in settings and NEW_NAME in settings and old != current:
        raise UsageError(f"{NEW_NAME} {current} contradicts {OLD_NAME} {old}, its old name; give {NEW_NAME} alone")
    return {NEW_NAME if key == OLD_NAME else key: value for key, value in settings.items()}


def read_model_config(model_config: str | os.PathLike | Mapping[str, Any] | None) -> dict[str, Any]:
    """The options in S3PRL's ``model_config``: a mapping, a YAML file or inline YAML such as ``{lambd: 0.5}``.

    Raises UsageError for anything else.
    """
    if model_config is None:
        return {}
    if isinstance(model_config, Mapping):
        return dict(model_config)
    text = os.fspath(model_config)
    source = f"model_config {text[:300]!r}"
    try:
        options = read_yaml(pathlib.Path(text).read_text("utf-8") if os.path.isfile(text) else text)
    except ValueError as error:
        raise UsageError(f"{source} is not YAML: {error}") from error
    if not isinstance(options, dict | None):
        raise UsageError(f"{source} must be a YAML file or inline YAML such as '{{lambd: 0.5, output_frames: native}}'")
    return options or {}
