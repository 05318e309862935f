"""The words and numbers of a report, which its Markdown file and its page share."""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from s3prl_ofa.sweep.report.aggregation import Summary
from s3prl_ofa.sweep.report.front import Choice
from s3prl_ofa.sweep.report.settings import BASELINE, SPECIALIST, several_models
from s3prl_ofa.sweep.results import RESULTS

NOTHING = "nothing to compare"
FAULTS = f"Faults in {RESULTS}"
COLUMNS: dict[str, Callable[[Any], str]] = {  # of the table of all settings
    "task": lambda setting: setting.task,
    "upstream": lambda setting: setting.model,
    "rate": lambda setting: rate_text(setting),
    "output frames": lambda setting: setting.output_frames + repeated(setting, " x{}"),
    "learning rate": lambda setting: number(setting.learning_rate, "g") + tried(setting),
    "steps": lambda setting: number(setting.steps, ".0f"),
    "seeds": lambda setting: str(len(setting.seeds)),
    "score": lambda setting: f"{setting.metric_name} {plus_minus(setting, 2)}" + interval_text(setting, 1),
    "frame period (ms)": lambda setting: number(setting.frame_period_ms, ".1f"),
    "GMACs / s": lambda setting: number(setting.gmacs, ".3f"),
    "upstream (ms / s)": lambda setting: number(setting.upstream_ms, ".2f"),
    "downstream (ms / s)": lambda setting: number(setting.downstream_ms, ".2f"),
    "memory (MiB)": lambda setting: number(setting.peak_memory_mb, ".0f"),
}


def all_settings(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of all settings."""
    return list(COLUMNS), [[cell(row) for cell in COLUMNS.values()] for row in summary.settings.itertuples()]


def overview(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table with a row per rate and a column per task."""
    settings = summary.settings.assign(name=summary.settings["label"] + summary.settings["detail"])
    settings["copy"] = settings.groupby(["task", "model", "name"]).cumcount()  # of rows that differ in nothing named
    metrics = dict(zip(settings["task"], settings["metric_name"], strict=True))
    several = several_models(settings)
    header = [*["upstream"] * several, "rate", "frame period (ms)", "GMACs / s"]
    rows = []
    for (model, name, _), alike in settings.groupby(["model", "name", "copy"], sort=False):
        scores = {
            setting.task: plus_minus(setting, 1) + repeated(setting, " (frames x{})") for setting in alike.itertuples()
        }
        cells = [*[model] * several, name, between(alike["frame_period_ms"], 1), between(alike["gmacs"], 2)]
        place = (alike["kind"].iloc[0], model, alike["frame_period_ms"].iloc[0])
        rows.append((place, [*cells, *(scores.get(task, "") for task in metrics)]))
    return [*header, *(f"{task}, {metric}" for task, metric in metrics.items())], [
        cells for _, cells in sorted(rows, key=lambda row: row[0])
    ]


def fronts(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of what is best within each cost."""
    header = [
        "task",
        "at most",
        "best",
        "frame period (ms)",
        "score",
        "faster than 20 ms",
        "next best",
        "better by",
        "p",
    ]
    rows = [
        [
            choice.task,
            choice.limit,
            called(choice.setting, summary),
            number(choice.setting.frame_period_ms, ".1f"),
            f"{choice.setting.metric_name} {choice.setting.score:.2f}" + interval_text(choice.setting, 1),
            number(choice.faster, ".2f") + "x" * (not math.isnan(choice.faster)),
            "" if choice.rival is None else f"{called(choice.rival, summary)}, {choice.rival.score:.2f}",
            gain_text(choice),
            p_text(choice),
        ]
        for cost in summary.fronts.values()
        for choice in cost
    ]
    return header, rows


def choice_sentence(choice: Choice, summary: Summary) -> str:
    setting = choice.setting
    parts = [
        f"{choice.task}, {choice.limit}: {called(setting, summary)}",
        number(setting.frame_period_ms, ".1f") + " ms",
    ]
    parts += [f"{setting.metric_name} {setting.score:.2f}" + interval_text(setting, 1)]
    parts += [] if math.isnan(choice.faster) else [f"{choice.faster:.2f} times faster than 20 ms"]
    text = ", ".join(parts)
    if choice.rival is None:
        return text
    sure = f", p {p_text(choice)}" if choice.interval else " (no utterances to test it with)"
    compared = f"{'better' if choice.gain >= 0 else 'worse'} than {called(choice.rival, summary)}"
    return f"{text}; {compared}, {choice.rival.score:.2f}, by {gain_text(choice)}{sure}"


def called(setting: Any, summary: Summary) -> str:
    """The setting's name, with its model where there are several."""
    several = setting.kind not in (SPECIALIST, BASELINE) and several_models(summary.settings)
    return (f"{setting.model}, " if several else "") + setting.label + setting.detail


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


def interval_text(setting: Any, digits: int) -> str:
    return "" if math.isnan(setting.low) else f" [{setting.low:.{digits}f}, {setting.high:.{digits}f}]"


def between(values: pd.Series, digits: int) -> str:
    """The mean of what tasks have alike; the range of what differs by more than 5%, as where they choose their rate."""
    if values.max() > 1.05 * values.min():
        return f"{values.min():.{digits}f}–{values.max():.{digits}f}"
    return number(values.mean(), f".{digits}f")


def rate_text(setting: Any) -> str:
    if setting.kind in (SPECIALIST, BASELINE):
        return ""
    learned = number(setting.learnt_lambd, ".2f")
    return setting.label + setting.detail + (f" (lambd {learned})" if learned else "")


def tried(setting: Any) -> str:
    return f" (of {setting.tried_rates})" if setting.tried_rates > 1 else ""


def repeated(setting: Any, template: str) -> str:
    repeats = [str(repeat) for repeat in setting.repeats if repeat > 1]
    return template.format(", ".join(repeats)) if repeats else ""


def number(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"


def plus_minus(setting: Any, digits: int) -> str:
    deviation = number(setting.deviation, f".{digits}f")
    return f"{setting.score:.{digits}f}" + (f" ± {deviation}" if deviation else "")


def completeness(summary: Summary) -> str:
    """How complete the results are, in a sentence."""
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
    names = [f"{setting.task} {called(setting, summary)}" for setting in summary.settings[unknown].itertuples()]
    return text + (f"Without outcomes of the same utterances, and so without: {'; '.join(names)}. " if names else "")


def notes(summary: Summary) -> str:
    devices = sorted(set(summary.settings["devices"].sum() or ()))
    return (
        "Scores: mean and standard deviation over seeds, on the test split, at the learning rate that is best on dev. "
        f"{about_intervals(summary)}"
        "Frame period and speed as measured there, memory the peak of training and evaluation; GMACs of the upstream "
        "and wall times per second of audio. The first table has their means over tasks, or the range; x2 there says "
        "that CTC had to see each frame twice. "
        f"Measured on {', '.join(devices) or 'unknown devices'}."
    )
