"""A point of a sweep as one value: its settings, the name of its folder, and its row."""

import dataclasses
import functools
import hashlib
import json
from typing import Any

from s3prl_ofa.arguments.run_downstream import AUTO
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.tasks.configs import CTC_TASKS
from s3prl_ofa.superb.upstream.output_frames import options_for, usual_output_frames
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE, FLOAT32, NATIVE, UNIFORM, RateOptions

OFA = "ofa_wav2vec2"  # the upstream whose rates are compared
# kinds of rate, and what a value of each is called
RATE_NAMES = {"lambd": "lambd {}", "frame_period_ms": "{} ms", "pool": "pool {}", ADAPTIVE: "adaptive {}"}
RATE_NAMES |= {UNIFORM: "uniform {}", "layers": "layers {}"}
FINISHED, FAILED = "finished", "failed"  # states of a row
HASH_LENGTH = 8
SEARCH_LAYERS = "search_layers"  # key of a config's runner: the hidden states to try, of a task that is not trained
# settings that do not affect training: after a change it is enough to evaluate again
SCORING = ("metric", "higher_is_better", "unit", "dev_split", "test_split")

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One combination of what a grid varies; a baseline has no rate, output_frames or repeat.

    learning_rate, lambd_start, lambd_max: None for the config's value and run_downstream's defaults.
    """

    task: str
    model: str
    upstream: str
    checkpoint: str | None
    rate: str | None = None
    value: float | None = None
    lambd_start: float | None = None
    lambd_max: float | None = None
    output_frames: str | None = None
    asked_repeat: int | str | None = None
    dtype: str = FLOAT32
    learning_rate: float | None
    seed: int

    @property
    def label(self) -> str:
        """Spells out whatever is not the task's default, regardless of what else is in the grid."""
        parts = [self.task, self.model]
        if self.rate is not None:
            parts.append(RATE_NAMES[self.rate].format(exact(self.value)))
            parts += [f"start{exact(self.lambd_start)}"] if self.lambd_start is not None else []
            parts += unusual(self.task, self.output_frames, self.asked_repeat)
            parts += [self.dtype] if self.dtype != FLOAT32 else []
        parts += [f"lr{exact(self.learning_rate)}"] if self.learning_rate is not None else []
        return "_".join([*parts, f"seed{self.seed}"]).replace(" ", "")

    @property
    def rate_options(self) -> dict[str, Any]:
        """The options of run_downstream for the upstream's rate; none for a baseline."""
        rate = {self.rate: self.value}
        if self.rate == ADAPTIVE:
            rate = {"lambd": ADAPTIVE, "rate_weight": self.value}
        elif self.rate == UNIFORM:
            rate = {"lambd": self.value, "boundaries": UNIFORM}
        limits = {"lambd_start": self.lambd_start, "lambd_max": self.lambd_max}
        options = {**rate, **limits, "output_frames": self.output_frames, "repeat": self.asked_repeat}
        options |= {"dtype": self.dtype} if self.dtype != FLOAT32 else {}
        return {name: value for name, value in options.items() if value is not None}

    def checked_options(self) -> RateOptions:
        """The options as run_downstream reads them, a repeat of 1 for ``auto``; raises UsageError naming the task."""
        repeat = {"repeat": None} if self.asked_repeat == AUTO else {}
        try:
            return options_for(self.task, {**self.rate_options, **repeat})
        except UsageError as error:
            raise UsageError(f"tasks.{self.task}: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job(Point):
    """A point that can be run.

    config: S3PRL's whole config. config_sha256: of the config without its learning rate, which all points of a task
    share. checkpoint_sha256: None for a URL and for no checkpoint. data_sha256: of the lists, lexicons and vocabularies
    that the config names; None in files of earlier versions. unit: what turns a score into percent.
    """

    checkpoint_sha256: str | None
    config: dict[str, Any]
    config_sha256: str
    metric: str
    higher_is_better: bool
    unit: float
    dev_split: str | None
    test_split: str
    device: str
    data_sha256: str | None = None

    @property
    def settings(self) -> Row:
        """The part of the point's row that is known before it runs."""
        # Without a dtype of float32, so that points keep the names that they had before there was a choice.
        absent = ("config", "device", "name", *(["dtype"] if self.dtype == FLOAT32 else []))
        fields = {name: value for name, value in vars(self).items() if name not in absent}
        return {
            **fields,
            "learning_rate": (self.config.get("optimizer") or {}).get("lr"),
            "steps": self.config["runner"].get("total_steps"),
        }

    @property
    def is_trained(self) -> bool:
        """Whether a model is trained, else hidden states are evaluated as they are."""
        return "total_steps" in self.config["runner"]

    @functools.cached_property
    def name(self) -> str:
        """The name of the point's folder, also in its row. It ends in a hash of the settings that decide the training,
        so that a folder never mixes trainings."""
        ignored = {"model", "data_sha256", *SCORING} | ({"checkpoint"} if self.checkpoint_sha256 else set())
        deciding = {key: value for key, value in self.settings.items() if key not in ignored}
        digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
        return f"{self.label}-{digest[:HASH_LENGTH]}"

    def row(self, state: str, **found: Any) -> Row:
        return {"point": self.name, "state": state, **self.settings, **found}

    def state(self, row: Row | None) -> str | None:
        """FINISHED or FAILED where the row is of this point and scored as the point is now; else None."""
        is_current = row is not None and all(row.get(key) == self.settings[key] for key in SCORING)
        return row["state"] if is_current else None

    def has_other_data(self, earlier: str | None) -> bool:
        """Whether an earlier ``data_sha256`` of the point, if it is known, is another one than now."""
        return None not in (earlier, self.data_sha256) and earlier != self.data_sha256


def exact(number: float) -> str:
    return str(number).removesuffix(".0")


def usual_repeat(task: str) -> int | str:
    """For CTC each frame is repeated as often as the labels need."""
    return AUTO if task in CTC_TASKS else 1


def unusual(task: str, output_frames: str, repeat: int | str) -> list[str]:
    """What is not the task's default, in words. repeat: empty if unknown."""
    frames = [output_frames] if output_frames != usual_output_frames(task) else []
    is_usual = output_frames != NATIVE or str(repeat) in ("", str(usual_repeat(task)))
    return frames if is_usual else [*frames, f"repeat {repeat}"]
