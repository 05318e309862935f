"""The text and tables that the Markdown file and the HTML page of a report share."""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from s3prl_ofa.sweep.report.aggregation import Summary
from s3prl_ofa.sweep.report.front import Choice
from s3prl_ofa.sweep.report.settings import Kind
from s3prl_ofa.sweep.results import RESULTS

Table = tuple[list[str], list[list[str]]]  # header and rows

NOTHING = "nothing to compare"
FAULTS = f"Faults in {RESULTS}"
SETTING_COLUMNS: dict[str, Callable[[Any], str]] = {  # of the table of all settings
    "task": lambda setting: setting.task,
    "upstream": lambda setting: setting.model,
    "rate": lambda setting: rate_text(setting),
    "output frames": lambda setting: setting.output_frames + repeated(setting, " x{}"),
    "learning rate": lambda setting: (
        number(setting.learning_rate, "g") + (f" (of {setting.tried_rates})" if setting.tried_rates > 1 else "")
    ),
    "steps": lambda setting: number(setting.steps, ".0f"),
    "seeds": lambda setting: str(len(setting.seeds)),
    "score": lambda setting: f"{setting.metric_name} {plus_minus(setting, 2)}" + interval_text(setting),
    "frame period (ms)": lambda setting: number(setting.frame_period_ms, ".1f"),
    "GMACs / s": lambda setting: number(setting.gmacs, ".3f"),
    "upstream (ms / s)": lambda setting: number(setting.upstream_ms, ".2f"),
    "downstream (ms / s)": lambda setting: number(setting.downstream_ms, ".2f"),
    "memory (MiB)": lambda setting: number(setting.peak_memory_mb, ".0f"),
}
CHOICE_COLUMNS: dict[str, Callable[[Choice], str]] = {  # of the table of what is best within each cost
    "task": lambda choice: choice.setting.task,
    "at most": lambda choice: choice.limit,
    "best": lambda choice: choice.setting.name,
    "frame period (ms)": lambda choice: number(choice.setting.frame_period_ms, ".1f"),
    "score": lambda choice: score_text(choice.setting) + repeated(choice.setting, " (frames x{})"),
    "faster than 20 ms": lambda choice: "" if math.isnan(choice.faster) else f"{choice.faster:.2f}x",
    "next best": lambda choice: "" if choice.rival is None else f"{choice.rival.name}, {choice.rival.score:.2f}",
    "better by": lambda choice: gain_text(choice),
    "p": lambda choice: p_text(choice),
}


def all_settings(summary: Summary) -> Table:
    return table(SETTING_COLUMNS, summary.settings.itertuples())


def fronts(summary: Summary) -> Table:
    return table(CHOICE_COLUMNS, itertools.chain(*summary.fronts.values()))


def table(columns: dict[str, Callable[[Any], str]], items: Iterable[Any]) -> Table:
    return list(columns), [[cell(item) for cell in columns.values()] for item in items]


def overview(summary: Summary) -> Table:
    """The table with a row per rate and a column per task."""
    settings = summary.settings.assign(rate=summary.settings["label"] + summary.settings["detail"])
    settings["copy"] = settings.groupby(["task", "model", "rate"]).cumcount()  # of rows that differ in nothing named
    metrics = dict(zip(settings["task"], settings["metric_name"], strict=True))
    several = bool(settings["owner"].ne("").any())
    header = [*["upstream"] * several, "rate", "frame period (ms)", "GMACs / s"]
    header += [f"{task}, {metric}" for task, metric in metrics.items()]
    rows = []
    for (model, rate, _), alike in settings.groupby(["model", "rate", "copy"], sort=False):
        scores = {
            setting.task: plus_minus(setting, 1) + repeated(setting, " (frames x{})") for setting in alike.itertuples()
        }
        cells = [*[model] * several, rate, between(alike["frame_period_ms"], 1), between(alike["gmacs"], 2)]
        place = (alike["kind"].iloc[0], model, alike["frame_period_ms"].iloc[0])
        rows.append((place, [*cells, *(scores.get(task, "") for task in metrics)]))
    return header, [cells for _, cells in sorted(rows, key=lambda row: row[0])]


def choice_sentence(choice: Choice) -> str:
    setting, rival = choice.setting, choice.rival
    text = f"{setting.task}, {choice.limit}: {setting.name}, {number(setting.frame_period_ms, '.1f')} ms"
    text += f", {score_text(setting)}"
    text += "" if math.isnan(choice.faster) else f", {choice.faster:.2f} times faster than 20 ms"
    if rival is None:
        return text
    sure = f", p {p_text(choice)}" if choice.interval else " (no utterances to test it with)"
    compared = "better" if choice.gain >= 0 else "worse"
    return f"{text}; {compared} than {rival.name}, {rival.score:.2f}, by {gain_text(choice)}{sure}"


def gain_text(choice: Choice) -> str:
    """By how much the choice is better than its rival, or worse."""
    ends = [] if choice.interval is None else [choice.interval.low, choice.interval.high]
    if choice.gain < 0:
        ends = [-end for end in reversed(ends)]
    return number(abs(choice.gain), ".2f") + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")


def p_text(choice: Choice) -> str:
    if choice.interval is None:
        return ""
    return f"{choice.interval.p:.3f}" if choice.interval.p >= 0.001 else "< 0.001"


def score_text(setting: Any) -> str:
    return f"{setting.metric_name} {setting.score:.2f}" + interval_text(setting)


def interval_text(setting: Any) -> str:
    return "" if math.isnan(setting.low) else f" [{setting.low:.1f}, {setting.high:.1f}]"


def between(values: pd.Series, digits: int) -> str:
    """The mean, or the range if tasks differ by more than 5%, as they do if each learns its own rate."""
    if values.max() > 1.05 * values.min():
        return f"{values.min():.{digits}f}–{values.max():.{digits}f}"
    return number(values.mean(), f".{digits}f")


def rate_text(setting: Any) -> str:
    if setting.kind in (Kind.SPECIALIST, Kind.BASELINE):
        return ""
    learned = number(setting.learnt_lambd, ".2f")
    return setting.label + setting.detail + (f" (lambd {learned})" if learned else "")


def repeated(setting: Any, template: str) -> str:
    repeats = [str(repeat) for repeat in setting.repeats if repeat > 1]
    return template.format(", ".join(repeats)) if repeats else ""


def number(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"


def plus_minus(setting: Any, digits: int) -> str:
    deviation = number(setting.deviation, f".{digits}f")
    return f"{setting.score:.{digits}f}" + (f" ± {deviation}" if deviation else "")


def completeness(summary: Summary) -> str:
    """A sentence that says how complete the results are."""
    total = len(summary.rows) + len(summary.missing)
    parts = [f"{len(summary.finished)} of {total} points are finished"]
    parts += [f"{len(summary.failed)} failed"] if summary.failed else []
    parts += [f"{len(summary.missing)} without a result yet"] if summary.missing else []
    faults = len(summary.faults)
    parts += [f"{RESULTS} has {faults} fault{'s' * (faults > 1)}"] if faults else []
    return ", ".join(parts) + ("." if is_complete(summary) else ": what follows is not the whole grid.")


def is_complete(summary: Summary) -> bool:
    return len(summary.finished) == len(summary.rows) + len(summary.missing) and not summary.faults


def about_intervals(summary: Summary) -> str:
    """What the brackets are, and which settings have none."""
    unknown = summary.settings["low"].isna()
    if unknown.all():
        return "The points have no outcomes of single utterances, so there are no intervals. "
    text = (
        "In brackets are 95% intervals of a bootstrap over seeds and utterances, the same for both sides of a "
        "difference; p is two-sided, for no difference. "
    )
    names = "; ".join((summary.settings["task"] + " " + summary.settings["name"])[unknown])
    return text + (f"Without outcomes of the same utterances, and so without: {names}. " if names else "")


def devices(summary: Summary) -> str:
    """What the points ran on; if on several devices, with the tasks of each."""
    tasks: dict[str, dict[str, None]] = {}
    for setting in summary.settings.itertuples():
        for device in setting.devices:
            tasks.setdefault(device, {})[setting.task] = None
    if len(tasks) < 2:
        return next(iter(tasks), "unknown devices")
    return "; ".join(f"{device} for {', '.join(of_device)}" for device, of_device in sorted(tasks.items()))


def notes(summary: Summary) -> str:
    return (
        "Scores: mean and standard deviation over seeds, on the test split, at the learning rate that is best on dev. "
        f"{about_intervals(summary)}"
        "Frame period and speed as measured there; memory: the peak of training and evaluation, the most over seeds; "
        "GMACs of the upstream and wall times per second of audio, the least over seeds: other work on the machine "
        "only adds to them. The first table has means over tasks, or the range; x2: each frame was repeated for CTC. "
        f"Measured on {devices(summary)}."
    )
