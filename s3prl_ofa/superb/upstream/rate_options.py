"""The options of the upstream: the rate, and in which form the compressed frames are handed to S3PRL.

They come from keyword arguments, from S3PRL's ``-g`` (a YAML file or inline YAML) and from our command line, and are
written back as inline YAML, so that an experiment of S3PRL keeps them among its arguments.
"""

import dataclasses
import math
import numbers
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import yaml

from s3prl_ofa.checkpoint.bounded_yaml import read_yaml
from s3prl_ofa.errors import UsageError
from s3prl_ofa.model.config import MIN_FRAME_PERIOD_MS
from s3prl_ofa.model.rate import MAX_LAMBD

UPSAMPLED, NATIVE = "upsampled", "native"
FRAMES = (UPSAMPLED, NATIVE)
RATE_KEYS = ("lambd", "frame_period_ms", "pool")  # three ways to say how fast frames come
ONE_RATE = "give lambd, frame_period_ms or pool, not more than one"
MIN_POOL = 2  # 20 ms frames that become one
ADAPTIVE = "adaptive"  # a lambd that the task learns
ADAPTIVE_KEYS = {"rate_weight": 0.0, "lambd_max": 1.0, "lambd_start": 0.5}  # and their defaults


@dataclasses.dataclass(frozen=True)
class RateOptions:
    """How the upstream runs. Raises UsageError naming the option and its choices when a value is not one.

    Numbers may be numpy's or torch's, and lambd and frame_period_ms text such as YAML's ``1e-1``; they become Python's.

    lambd: in [0, 2), or "adaptive"; or frame_period_ms: mean frame period in ms, 20 or more; or pool. None of them:
        lambd 0, 20 ms.
    frames: "upsampled" repeats each compressed frame over the 20 ms frames it came from, as unmodified S3PRL expects;
        "native" gives the compressed frames with their true lengths.
    repeat: with native frames, how often each is repeated, so that CTC finds as many frames as labels.
    pool: the fixed rate to compare with: at lambd 0, so many hidden states (2 or more) are averaged into one.
    rate_weight: of the mean frame rate in the loss of an adaptive lambd, 0 or more; see adaptive.py.
    lambd_max: the largest that an adaptive lambd may become, in (0, 1].
    lambd_start: where an adaptive lambd starts, from 0 to lambd_max; by default 0.5, or lambd_max where that is less.
    """

    lambd: float | str | None = None
    frame_period_ms: float | None = None
    frames: str = UPSAMPLED
    repeat: int = 1
    pool: int | None = None
    rate_weight: float | None = None
    lambd_max: float | None = None
    lambd_start: float | None = None

    def __post_init__(self) -> None:
        if sum(getattr(self, key) is not None for key in RATE_KEYS) > 1:
            raise UsageError(ONE_RATE)
        self.check_adaptive()
        lambd, period = (None if value is None else real(value) for value in (self.lambd, self.frame_period_ms))
        lambd = ADAPTIVE if self.adaptive else lambd
        if self.lambd is not None and not (self.adaptive or lambd is not None and 0 <= lambd < MAX_LAMBD):
            raise UsageError(f"lambd must be a number in [0, {MAX_LAMBD:g}) or {ADAPTIVE}, found {self.lambd!r}")
        if self.frame_period_ms is not None and not (period is not None and MIN_FRAME_PERIOD_MS <= period < math.inf):
            raise UsageError(
                f"frame_period_ms must be a number of at least {MIN_FRAME_PERIOD_MS:g}, found {self.frame_period_ms!r}"
            )
        if self.frames not in FRAMES:
            raise UsageError(f"frames must be one of {', '.join(FRAMES)}, found {self.frames!r}")
        pool = whole(self.pool)
        if self.pool is not None and (pool is None or pool < MIN_POOL):
            raise UsageError(f"pool must be a whole number of at least {MIN_POOL}, found {self.pool!r}")
        repeat = whole(self.repeat)
        if repeat is None or repeat < 1:
            raise UsageError(f"repeat must be a whole number of at least 1, found {self.repeat!r}")
        if self.repeat > 1 and self.frames != NATIVE:
            raise UsageError(f"repeat {self.repeat} needs frames {NATIVE}, found frames {self.frames}")
        for name, value in (("lambd", lambd), ("frame_period_ms", period), ("repeat", repeat), ("pool", pool)):
            object.__setattr__(self, name, value)  # plain numbers, which YAML can hold

    def check_adaptive(self) -> None:
        """Settles what belongs to an adaptive lambd alone."""
        for name, default in ADAPTIVE_KEYS.items():
            given = getattr(self, name)
            if given is not None and not self.adaptive:
                raise UsageError(f"{name} needs lambd {ADAPTIVE}, found {name} {given!r} without it")
            value = default if given is None else real(given)
            limit = math.inf if name == "rate_weight" else 1.0
            if value is None or not 0 <= value <= limit or math.isinf(value) or name == "lambd_max" and value == 0:
                expected = {"rate_weight": "of at least 0", "lambd_max": "in (0, 1]", "lambd_start": "in [0, 1]"}[name]
                raise UsageError(f"{name} must be a number {expected}, found {given!r}")
            if name == "lambd_start" and self.adaptive and value > self.lambd_max:
                if given is not None:
                    raise UsageError(f"lambd_start must be at most lambd_max, {self.lambd_max:g}, found {given!r}")
                value = self.lambd_max
            object.__setattr__(self, name, value if self.adaptive else None)

    @property
    def adaptive(self) -> bool:
        return isinstance(self.lambd, str) and self.lambd == ADAPTIVE

    @property
    def extract_rate(self) -> dict[str, float | None]:
        """The rate as OFAWav2Vec2.extract takes it; pooling comes after it."""
        return {"lambd": self.lambd, "frame_period_ms": self.frame_period_ms}

    @classmethod
    def layered(cls, *layers: Mapping[str, Any]) -> "RateOptions":
        """Options from mappings, a later one winning over those before it; a value of None counts as not given.

        Raises UsageError for a key that is no option.
        """
        options: dict[str, Any] = {}
        for layer in layers:
            unknown = sorted(str(key) for key in layer if key not in OPTION_NAMES)
            if unknown:
                raise UsageError(f"unknown upstream option {', '.join(unknown)}; choices: {', '.join(OPTION_NAMES)}")
            given = {key: value for key, value in layer.items() if value is not None}
            if sum(key in given for key in RATE_KEYS) > 1:
                raise UsageError(ONE_RATE)
            if any(key in given for key in RATE_KEYS):
                # another rate leaves nothing of the one before it
                other = () if given.get("lambd") == options.get("lambd") == ADAPTIVE else (*RATE_KEYS, *ADAPTIVE_KEYS)
                options = {key: value for key, value in options.items() if key not in other}
            options.update(given)
        return cls(**options)

    def to_yaml(self) -> str:
        """Inline YAML of what is not at its default, frames always: ``{frames: native, lambd: 0.5}``.

        It holds no ``=``, at which S3PRL's ``-o`` would split it.
        """
        values = {key: value for key, value in dataclasses.asdict(self).items() if value != OPTION_DEFAULTS[key]}
        return yaml.safe_dump({"frames": self.frames, **values}, default_flow_style=True, width=math.inf).strip()

    def __str__(self) -> str:
        if self.frame_period_ms is not None:
            rate = f"frame period {self.frame_period_ms:g} ms"
        elif self.pool is not None:
            rate = f"{self.pool} averaged 20 ms frames"
        elif self.adaptive:
            most = f", at most {self.lambd_max:g}" if self.lambd_max < 1 else ""
            rate = f"adaptive lambd (start {self.lambd_start:g}{most}, rate weight {self.rate_weight:g})"
        else:
            rate = f"lambd {self.lambd or 0:g}"
        return f"{rate}, {self.frames} frames" + (f", each {self.repeat} times" if self.repeat > 1 else "")


OPTION_DEFAULTS = {field.name: field.default for field in dataclasses.fields(RateOptions)}
OPTION_NAMES = tuple(OPTION_DEFAULTS)


def plain(value: Any) -> Any:
    """The one number in a scalar of numpy or torch; anything else as it is."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def whole(value: Any) -> int | None:
    """The value as an int; None for what is no whole number, as a YAML ``yes`` or 1.5."""
    value = plain(value)
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None


def real(value: Any) -> float | None:
    """The value as a float; None for what is no real number, as a YAML ``yes`` or NaN.

    Text counts, because YAML 1.1 takes ``1e-1``, without a point, for text.
    """
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def read_model_config(model_config: str | os.PathLike | Mapping[str, Any] | None) -> dict[str, Any]:
    """The options in S3PRL's ``model_config``: a mapping, a YAML file or inline YAML such as ``{lambd: 0.5}``.

    Raises UsageError when it is none of these.
    """
    if model_config is None:
        return {}
    if isinstance(model_config, Mapping):
        return dict(model_config)
    text = os.fspath(model_config)
    source = f"model_config {text[:300]!r}"
    if os.path.isfile(text):
        text = pathlib.Path(text).read_bytes()
    try:
        options = read_yaml(text.decode("utf-8") if isinstance(text, bytes) else text)
    except ValueError as error:
        raise UsageError(f"{source} is not YAML: {error}") from error
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise UsageError(f"{source} must be a YAML file or inline YAML such as '{{lambd: 0.5, frames: native}}'")
    return options
