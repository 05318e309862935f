"""Splits the options of ``s3prl-ofa run_downstream`` into S3PRL's and ours."""

import argparse
import dataclasses
import math
from typing import Any

from s3prl_ofa.arguments.run_downstream import ADAPTIVE, AUTO, FINE_TUNING, ROOTS, option
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.feature_cache.cache import default_folder
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE_KEYS, OLD_NAME, OPTION_NAMES, RATE_KEYS, RateOptions


@dataclasses.dataclass(frozen=True)
class OurOptions:
    """The options that S3PRL does not have.

    rate: fields of RateOptions that were given, without repeat where that is ``auto``. roots: of ROOTS, None where not
    given. cache_gb: None for no feature cache. fine_tuning: fields of FineTuning that were given.
    """

    rate: dict[str, Any]
    repeat_auto: bool
    mini: bool
    roots: dict[str, str | None]
    cache_gb: float | None
    cache_folder: str | None
    fine_tuning: dict[str, Any]

    def __post_init__(self) -> None:
        if self.cache_folder is not None and self.cache_gb is None:
            raise UsageError("--feature-cache needs --cache-gb, the size limit of the cache")
        if self.cache_gb is not None and not 0 < self.cache_gb < math.inf:
            raise UsageError(f"--cache-gb must be a number above 0, found {self.cache_gb:g}")
        # reports at once what is out of range; only -g or the experiment may tell whether the rate is adaptive
        adaptive = self.rate.keys() & set(ADAPTIVE_KEYS) and not self.rate.keys() & set(RATE_KEYS)
        RateOptions.layered({"output_frames": "native"}, {"lambd": ADAPTIVE} if adaptive else {}, self.rate)

    @property
    def cache(self) -> tuple[str, float] | None:
        """The folder of the feature cache and its limit in GB, if one is wanted."""
        return None if self.cache_gb is None else (self.cache_folder or str(default_folder()), self.cache_gb)

    @property
    def of_our_upstream(self) -> list[str]:
        """The options that no other upstream takes, as they are spelled on the command line."""
        names = [*self.rate, *self.fine_tuning]
        names += ["repeat"] * self.repeat_auto + ["cache_gb"] * (self.cache_gb is not None)
        return [option(name) for name in names]


def divide(args: argparse.Namespace) -> tuple[argparse.Namespace, OurOptions]:
    """S3PRL's arguments, as its own parser would give them, and ours. Raises UsageError."""
    found = {name: value for name, value in vars(args).items() if name not in ("quiet", "debug")}
    rate = {name: value for name in (*OPTION_NAMES, OLD_NAME) if (value := found.pop(name)) is not None}
    repeat_auto = rate.get("repeat") == AUTO
    if repeat_auto:
        del rate["repeat"]
    ours = OurOptions(
        rate=rate,
        repeat_auto=repeat_auto,
        mini=found.pop("mini"),
        roots={name: found.pop(name) for name in ROOTS},
        cache_gb=found.pop("cache_gb"),
        cache_folder=found.pop("feature_cache"),
        fine_tuning={name: value for name in FINE_TUNING if (value := found.pop(name)) is not None},
    )
    return argparse.Namespace(**found), ours
