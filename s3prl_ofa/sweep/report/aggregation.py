"""From the rows of a sweep to what is told about it: a setting's mean and spread over seeds, and how far a task can be
compressed."""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE
from s3prl_ofa.sweep.grid.parsing import read_grid
from s3prl_ofa.sweep.job import GRID, POINTS
from s3prl_ofa.sweep.report.rows import Fault, read_rows
from s3prl_ofa.sweep.results import FAILED, FILE, FINISHED, Results, Row

VARIABLE, LEARNT, FIXED, BASELINE = "variable", "adaptive", "pooling", "baseline"  # what a setting is compared as
KINDS = (VARIABLE, LEARNT, FIXED, BASELINE)
GROUPED = ("task", "model", "rate", "value", "lambd_start", "frames", "asked_repeat")  # by what rows are grouped
# and by this, which differs only where results of several sweeps were put together: how a variant is called
VARIED = {"steps": "{} steps", "lambd_max": "lambd_max {}", "metric": "{}", "checkpoint_sha256": "checkpoint {:.8}"}
NO_COMPRESSION_MS = 20.5  # up to this asked frame period a setting counts as 20 ms


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; the latter is NaN for one."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread":
        known = [value for value in values if value is not None]
        if not known:
            return cls(math.nan, math.nan)
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else math.nan)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A point of the grid without its seed, at the learning rate that is best on dev.

    variant: what tells it from those of another training under the same name, mostly empty. score: in percent where the
    task's is. frame_period_ms: as measured on the test split. gmacs: of the upstream, a second of audio. upstream_ms,
    downstream_ms: wall time of a second of audio.
    """

    task: str
    model: str
    kind: str
    rate: str | None
    value: float | None
    lambd_start: float | None
    frames: str | None
    repeats: tuple[int, ...]
    asked_repeat: int | str | None
    steps: int | None
    variant: str
    learning_rate: float | None
    tried_rates: int
    seeds: tuple[int, ...]
    metric: str
    higher_is_better: bool
    unit: float
    score: Spread
    dev_score: Spread
    learnt_lambd: Spread
    frame_period_ms: Spread
    gmacs: Spread
    upstream_ms: Spread
    downstream_ms: Spread
    peak_memory_mb: Spread
    devices: tuple[str, ...]

    @property
    def label(self) -> str:
        """The rate, in words: lambd 0.5, 40 ms, pool 3, adaptive 0.1 (its weight; from 0.9: its start); a baseline's
        upstream. With its variant, if there are several."""
        variant = f", {self.variant}" if self.variant else ""
        if self.rate is None:
            return self.model + variant
        name = {"lambd": "lambd {:g}", "frame_period_ms": "{:g} ms", "pool": "pool {:g}", ADAPTIVE: "adaptive {:g}"}
        start = "" if self.lambd_start is None else f" from {self.lambd_start:g}"
        return name[self.rate].format(self.value) + start + variant

    @property
    def metric_name(self) -> str:
        name = {"acc": "accuracy"}.get(self.metric, self.metric.upper())
        return f"{name} (%)" if self.unit == 100 or self.task == "asr" else name

    @property
    def is_uncompressed(self) -> bool:
        return self.kind == VARIABLE and (
            self.value == 0 if self.rate == "lambd" else (self.value or math.inf) <= NO_COMPRESSION_MS
        )

    @property
    def total_ms(self) -> float:
        return self.upstream_ms.mean + self.downstream_ms.mean


@dataclasses.dataclass(frozen=True)
class Reach:
    """How far a model can be compressed for a task: the longest frame period up to which every measured one has a score
    within the tolerance. text: one sentence. limit: the worst score that is within it, None without a 20 ms point."""

    task: str
    model: str
    frames: str | None
    asked_repeat: int | str | None
    variant: str
    limit: float | None
    text: str
    setting: Setting | None = None
    base: Setting | None = None


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a report contains. missing: names of the grid's points without a row. faults: in the results' lines."""

    folder: pathlib.Path
    rows: list[Row]
    settings: list[Setting]
    reaches: list[Reach]
    failed: list[Row]
    missing: list[str]
    tolerance: float
    faults: list[Fault]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(setting.task for setting in self.settings))

    def of_task(self, task: str) -> list[Setting]:
        return [setting for setting in self.settings if setting.task == task]

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.rows if row["state"] == FINISHED]


def summarize(folder: pathlib.Path, tolerance: float) -> Summary:
    """Raises UsageError where the folder holds no sweep, or none of whose points is finished."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder; give the one that s3prl-ofa sweep wrote to")
    names = names_of(folder)
    rows, faults = read_rows(Results(folder))
    finished = [row for row in rows if row["state"] == FINISHED]
    if not finished and not faults:
        nothing = f"no row in {FILE}" if (folder / FILE).exists() else f"neither {POINTS} nor {FILE}"
        found = f"{len(names)} points, none of them finished" if names else nothing
        raise UsageError(f"{folder}: a sweep with finished points is expected, found {found}")
    settings = settings_of(finished)
    missing = [name for name in names if name not in {row["point"] for row in rows}]
    failed = [row for row in rows if row["state"] == FAILED]
    return Summary(folder, rows, settings, reaches(settings, tolerance), failed, missing, tolerance, faults)


def names_of(folder: pathlib.Path) -> list[str]:
    """The points of the sweep's last grid; where that is not there, of all folders."""
    if (folder / GRID).exists():
        return [point.name for point in read_grid(folder / GRID).points()]
    return sorted(path.name for path in (folder / POINTS).glob("*") if path.is_dir())


def kind_of(row: Row) -> str:
    if row["rate"] is None:
        return BASELINE
    return {"pool": FIXED, ADAPTIVE: LEARNT}.get(row["rate"], VARIABLE)


def settings_of(rows: list[Row]) -> list[Setting]:
    """Groups rows over seeds and takes the learning rate that is best on dev, ordered by task, model and period."""
    groups: dict[tuple[Any, ...], dict[Any, list[Row]]] = {}
    name_of = variants(rows)
    for row in rows:
        key = (*(row.get(name) for name in GROUPED), name_of(row))
        groups.setdefault(key, {}).setdefault(row["learning_rate"], []).append(row)
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    found = [setting_of(best_learning_rate(by_rate), len(by_rate), key[-1]) for key, by_rate in groups.items()]
    return sorted(
        found,
        key=lambda item: (
            tasks.index(item.task),
            KINDS.index(item.kind),
            item.model,
            item.frames or "",
            str(item.asked_repeat),
            item.variant,
            item.frame_period_ms.mean,
        ),
    )


def variants(rows: list[Row]) -> Callable[[Row], str]:
    """What to call the variant of a row: the values in which rows of its task, kind and model differ and should not."""

    def kin(row: Row) -> tuple[str, str, str]:
        return row["task"], kind_of(row), row["model"]

    values: dict[tuple[str, ...], set[Any]] = {}
    for row in rows:
        for key in VARIED:
            values.setdefault((*kin(row), key), set()).add(row.get(key))

    def name_of(row: Row) -> str:
        several = [key for key in VARIED if len(values[(*kin(row), key)]) > 1 and row.get(key) is not None]
        return ", ".join(VARIED[key].format(row[key]) for key in several)

    return name_of


def best_learning_rate(by_rate: dict[Any, list[Row]]) -> list[Row]:
    """The rows of the learning rate with the best mean score on dev; of those run with most seeds, as one that has run
    once may have been lucky."""
    most = max(len(rows) for rows in by_rate.values())
    candidates = [rows for rows in by_rate.values() if len(rows) == most]

    def on_dev(rows: list[Row]) -> float:
        mean = Spread.of(row["dev_score"] for row in rows).mean
        return -math.inf if math.isnan(mean) else mean if rows[0]["higher_is_better"] else -mean

    return max(candidates, key=on_dev)


def setting_of(rows: list[Row], tried: int, variant: str) -> Setting:
    first, unit = rows[0], rows[0]["unit"]

    def spread(key: str, factor: float = 1.0) -> Spread:
        return Spread.of(None if row[key] is None else factor * row[key] for row in rows)

    return Setting(
        task=first["task"],
        model=first["model"],
        kind=kind_of(first),
        rate=first["rate"],
        value=first["value"],
        lambd_start=first.get("lambd_start"),
        frames=first["frames"],
        repeats=tuple(sorted({row["repeat"] for row in rows if row["repeat"] is not None})),
        asked_repeat=first["asked_repeat"],
        steps=first.get("steps"),
        variant=variant,
        learning_rate=first["learning_rate"],
        tried_rates=tried,
        seeds=tuple(sorted(row["seed"] for row in rows)),
        metric=first["metric"],
        higher_is_better=first["higher_is_better"],
        unit=unit,
        score=spread("score", unit),
        dev_score=spread("dev_score", unit),
        learnt_lambd=spread("learnt_lambd"),
        frame_period_ms=spread("frame_period_ms"),
        gmacs=spread("macs_per_second", 1e-9),
        upstream_ms=spread("upstream_seconds_per_second", 1e3),
        downstream_ms=spread("downstream_seconds_per_second", 1e3),
        peak_memory_mb=spread("peak_memory_mb"),
        devices=tuple(sorted({row["device"] for row in rows if row["device"]})),
    )


def reaches(settings: list[Setting], tolerance: float) -> list[Reach]:
    """For every task and model, how far the frame period can be stretched."""
    curves: dict[tuple[Any, ...], list[Setting]] = {}
    for setting in settings:
        if setting.kind == VARIABLE and math.isfinite(setting.frame_period_ms.mean):
            key = (setting.task, setting.model, setting.frames, setting.asked_repeat, setting.variant)
            curves.setdefault(key, []).append(setting)
    return [reach(curve, tolerance) for curve in curves.values()]


def reach(curve: list[Setting], tolerance: float) -> Reach:
    """curve: by frame period, the shortest first."""
    which = (curve[0].task, curve[0].model, curve[0].frames, curve[0].asked_repeat, curve[0].variant)
    base = next((setting for setting in curve if setting.is_uncompressed), None)
    if base is None:
        return Reach(*which, None, "not known: there is no finished point at 20 ms (lambd 0)")
    if base is curve[-1]:
        return Reach(*which, None, "not known: there is no finished point beyond 20 ms")
    change = tolerance * abs(base.score.mean) * (-1 if base.higher_is_better else 1)
    limit = base.score.mean + change
    last = base
    for setting in curve[curve.index(base) :]:
        within = setting.score.mean >= limit if base.higher_is_better else setting.score.mean <= limit
        if not within:
            break
        last = setting
    longest = " (the longest that was run)" if last is curve[-1] else ""
    if last is base:
        text = f"none of the longer periods stays within {percent(tolerance)} of {base.score.mean:.2f} at 20 ms"
    else:
        ratio = last.frame_period_ms.mean / base.frame_period_ms.mean
        text = (
            f"{last.frame_period_ms.mean:.1f} ms{longest}, {ratio:.2f} times fewer frames: {base.metric_name} "
            f"{last.score.mean:.2f} against {base.score.mean:.2f} at 20 ms"
        )
    return Reach(*which, limit, text, last, base)


def percent(share: float) -> str:
    return f"{100 * share:g}%"
