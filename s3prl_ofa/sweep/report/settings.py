"""Aggregates the rows of a sweep over seeds: the mean and spread of each setting, and how far a task can be
compressed."""

import dataclasses
import enum
import itertools
import math
from typing import Any

import pandas as pd

from s3prl_ofa.model.config import MIN_FRAME_PERIOD_MS
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE, UNIFORM
from s3prl_ofa.sweep.job import RATE_NAMES, Row, exact, unusual
from s3prl_ofa.sweep.report.rows import COLUMNS, FLOATS


class Kind(enum.IntEnum):
    """What a setting is compared as, in the order of the tables."""

    VARIABLE = 0
    EQUAL = 1  # frames of equal length at a chosen rate
    SPECIALIST = 2  # a model that was trained with average pooling and has no other rate
    LEARNED = 3
    EXIT = 4  # some of the encoder's layers at 20 ms
    POOLED = 5  # after the encoder
    BASELINE = 6


KIND_OF_RATE = {"lambd": Kind.VARIABLE, "frame_period_ms": Kind.VARIABLE, UNIFORM: Kind.EQUAL}
KIND_OF_RATE |= {ADAPTIVE: Kind.LEARNED, "layers": Kind.EXIT, "pool": Kind.POOLED}
# Columns that differ between rows of one name only if trainings of several kinds are reported together, with a template
# for each.
VARIED = {
    "steps": "{:.0f} steps",
    "dtype": "{}",
    "lambd_max": "lambd_max {:g}",
    "metric": "{}",
    "test_split": "on {}",
    "checkpoint_sha256": "checkpoint {:.8}",
}
SIBLINGS = ["task", "kind", "model"]  # rows that are alike in these are compared
# rows that are alike in these differ in seed and learning rate alone
GROUPED = [*SIBLINGS, "rate", "value", "lambd_start", "output_frames", "asked_repeat", "variant"]
TEXTS = ["rate", "output_frames", "asked_repeat"]
NO_COMPRESSION_MS = 20.5  # up to this asked frame period a setting counts as 20 ms


@dataclasses.dataclass(frozen=True)
class LongestPeriod:
    """How far a model can be compressed for a task: the longest frame period up to which every measured one has a score
    within the tolerance. text: one sentence. limit: the worst score that is within it, None without a 20 ms point."""

    task: str
    curve: str  # task, model and what is unusual
    limit: float | None
    text: str


def settings_of(rows: list[Row]) -> pd.DataFrame:
    """A line per setting, a point of the grid without its seed, at the learning rate that is best on dev; ordered by
    task, kind, model and frame period.

    Columns: those of GROUPED, with empty text for None; score and deviation (sample standard deviation over seeds, NaN
    for one), in percent where the task's score is; merit, the score or its negative, the higher the better; means of
    learnt_lambd, frame_period_ms and gmacs (of the upstream, per second of audio); peak_memory_mb, the most;
    upstream_ms and downstream_ms, the least wall time per second of audio, and total_ms, their sum; learning_rate,
    tried_rates, steps, seeds, points, repeats, devices, metric_name, higher_is_better; the name and its parts owner
    (the model, where several have a choice of the rate), label and detail.
    """
    frame = pd.DataFrame(rows, columns=["point", *COLUMNS], dtype=object).astype(
        dict.fromkeys([*FLOATS, "steps"], float)
    )
    frame[TEXTS] = frame[TEXTS].fillna("").astype(str)
    frame = frame.assign(
        kind=frame["rate"].map(KIND_OF_RATE).fillna(Kind.BASELINE).mask(is_specialist(frame), Kind.SPECIALIST),
        score=frame["score"] * frame["unit"],
        gmacs=frame["macs_per_second"] * 1e-9,
        upstream_ms=frame["upstream_seconds_per_second"] * 1e3,
        downstream_ms=frame["downstream_seconds_per_second"] * 1e3,
    )
    frame["variant"] = variants(frame)
    means = ("learnt_lambd", "frame_period_ms", "gmacs")
    times = ("upstream_ms", "downstream_ms")  # what else runs on the machine can only add to them
    firsts = ("learning_rate", "tried_rates", "steps", "metric", "higher_is_better", "unit")
    settings = (
        at_best_learning_rate(frame)
        .sort_values("seed", kind="stable")
        .groupby(GROUPED, dropna=False, sort=False)
        .agg(
            score=("score", "mean"),
            deviation=("score", "std"),
            **{name: (name, "mean") for name in means},
            **{name: (name, "min") for name in times},
            peak_memory_mb=("peak_memory_mb", "max"),  # seeds that find their features in a cache need less
            **{name: (name, "first") for name in firsts},
            seeds=("seed", tuple),
            points=("point", tuple),
            repeats=("repeat", lambda repeats: tuple(sorted(set(repeats.dropna())))),
            devices=("device", lambda devices: tuple(sorted(set(devices.dropna())))),
        )
        .reset_index()
    )
    settings["total_ms"] = settings["upstream_ms"] + settings["downstream_ms"]
    settings["merit"] = merit(settings, "score")
    for text in (metric_name, label, detail):
        settings[text.__name__] = [text(setting) for setting in settings.itertuples()]
    has_rate = ~settings["kind"].isin((Kind.SPECIALIST, Kind.BASELINE))
    several = settings.loc[has_rate, "model"].nunique() > 1
    settings["owner"] = (settings["model"] + ", ").where(has_rate & several, "")
    settings["name"] = settings["owner"] + settings["label"] + settings["detail"]
    tasks = list(frame["task"].unique())
    settings["task_order"] = settings["task"].map(tasks.index)
    order = ["task_order", "kind", "model", "output_frames", "asked_repeat", "variant", "frame_period_ms"]
    return settings.sort_values(order, kind="stable", ignore_index=True)


def variants(frame: pd.DataFrame) -> list[str]:
    """What to call the variant of each row: the values in which it differs from its siblings and should not."""

    def named(key: str, template: str, siblings: list[str]) -> pd.Series:
        count = frame.groupby(siblings, dropna=False)[key].transform(lambda values: values.nunique(dropna=False))
        return frame[key].map(template.format, na_action="ignore").where((count > 1) & frame[key].notna(), "")

    names = [named(key, template, SIBLINGS) for key, template in VARIED.items()]
    names.append(named("config_sha256", "config {:.8}", [*SIBLINGS, *VARIED]))  # where nothing more telling differs
    return [", ".join(filter(None, parts)) for parts in zip(*names, strict=True)]


def at_best_learning_rate(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of each setting's learning rate with the best mean score on dev; among those run with the most
    seeds, as one that was run once may have been lucky. Adds tried_rates: how many there were."""
    frame = frame.copy()
    frame["setting"] = frame.groupby(GROUPED, dropna=False, sort=False).ngroup()
    frame["trial"] = frame.groupby(["setting", "learning_rate"], dropna=False, sort=False).ngroup()
    frame["tried_rates"] = frame.groupby("setting")["trial"].transform("nunique")
    frame["runs"] = frame.groupby("trial")["seed"].transform("size")
    frame["on_dev"] = merit(frame, "dev_score")
    frame["on_dev"] = frame.groupby("trial")["on_dev"].transform("mean").fillna(-math.inf)
    best = frame.sort_values(["runs", "on_dev", "trial"], ascending=[False, False, True]).groupby("setting")["trial"]
    return frame[frame["trial"].isin(best.first())]


def merit(frame: pd.DataFrame, column: str) -> pd.Series:
    return frame[column].where(frame["higher_is_better"].astype(bool), -frame[column])


def metric_name(setting: Any) -> str:
    name = {"acc": "accuracy", "uer": "CER"}.get(setting.metric, setting.metric.upper())
    return f"{name} (%)" if setting.unit == 100 or setting.task == "asr" else name


def label(setting: Any) -> str:
    """The rate: lambd 0.5, 40 ms, pool 3, adaptive 0.1 (its weight; from 0.9: its start); the name of a model that has
    no choice of it."""
    has_rate = setting.kind not in (Kind.SPECIALIST, Kind.BASELINE)
    name = RATE_NAMES[setting.rate].format(exact(setting.value)) if has_rate else setting.model
    return name + ("" if math.isnan(setting.lambd_start) else f" from {exact(setting.lambd_start)}")


def detail(setting: Any) -> str:
    """What follows a label: frames and repeat where they are not the task's default, and the variant."""
    frames = unusual(setting.task, setting.output_frames, setting.asked_repeat) if setting.rate else []
    return "".join(f", {part}" for part in (*frames, setting.variant) if part)


def longest_periods(settings: pd.DataFrame, tolerance: float) -> list[LongestPeriod]:
    """For every task and model, how far the frame period can be stretched."""
    measured = settings[(settings["kind"] == Kind.VARIABLE) & settings["frame_period_ms"].notna()]
    return [
        LongestPeriod(
            task, f"{task}, {model}{detail}", *max_period_within_tolerance(list(curve.itertuples()), tolerance)
        )
        for (task, model, detail), curve in measured.groupby(["task", "model", "detail"], sort=False)
    ]


def max_period_within_tolerance(curve: list[Any], tolerance: float) -> tuple[float | None, str]:
    """The limit of the score, and a sentence. curve: settings, the shortest frame period first."""
    base = next((index for index, setting in enumerate(curve) if is_uncompressed(setting)), None)
    if base is None:
        return None, "not known: there is no finished point at 20 ms (lambd 0)"
    first, *longer = curve[base:]
    if not longer:
        return None, "not known: there is no finished point beyond 20 ms"
    lowest = lowest_merit(first, tolerance)
    limit = lowest if first.higher_is_better else -lowest
    within = list(itertools.takewhile(lambda setting: setting.merit >= lowest, longer))
    if not within:
        return limit, f"none of the longer periods stays within {percent(tolerance)} of {first.score:.2f} at 20 ms"
    last = within[-1]
    longest = " (the longest that was run)" if last is curve[-1] else ""
    ratio = last.frame_period_ms / first.frame_period_ms
    return limit, (
        f"{last.frame_period_ms:.1f} ms{longest}, {ratio:.2f} times fewer frames: {first.metric_name} "
        f"{last.score:.2f} against {first.score:.2f} at 20 ms"
    )


def lowest_merit(base: Any, tolerance: float) -> float:
    """The lowest merit that is within the tolerance of a setting's score."""
    return base.merit - tolerance * abs(base.score)


def is_uncompressed(setting: Any) -> bool:
    return setting.value == 0 if setting.rate == "lambd" else setting.value <= NO_COMPRESSION_MS


def is_specialist(rows: pd.DataFrame) -> pd.Series:
    at_lambd_0 = (rows["rate"] == "lambd") & (rows["value"] == 0)
    return at_lambd_0 & (rows["frame_period_ms"] > 1.5 * MIN_FRAME_PERIOD_MS)


def base_of(settings: pd.DataFrame, model: str | None = None) -> Any:
    """The setting of a task at 20 ms without compression, of ``model`` where it has one; None if there is none."""
    variable = settings[settings["kind"] == Kind.VARIABLE]
    curve = [setting for setting in variable.itertuples() if is_uncompressed(setting)]
    return next((setting for setting in curve if setting.model == model), next(iter(curve), None))


def percent(share: float) -> str:
    return f"{100 * share:g}%"
