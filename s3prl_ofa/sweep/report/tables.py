"""The words and numbers of a report, and the Markdown file of them."""

import html
import math
import pathlib
from collections.abc import Sequence

from s3prl_ofa.superb.upstream.task_frames import usual_frames
from s3prl_ofa.sweep.grid.schema import usual_repeat
from s3prl_ofa.sweep.report.aggregation import BASELINE, KINDS, Setting, Spread, Summary, percent
from s3prl_ofa.sweep.results import FILE

NOTHING = "nothing to compare"
WRONG = f"What is wrong in {FILE}"
HEADER = (
    "task",
    "upstream",
    "rate",
    "frames",
    "learning rate",
    "steps",
    "seeds",
    "score",
    "frame period (ms)",
    "GMACs / s",
    "upstream (ms / s)",
    "downstream (ms / s)",
    "memory (MiB)",
)


def table_rows(summary: Summary) -> list[list[str]]:
    """The cells of the table, a row a setting."""
    return [
        [
            setting.task,
            setting.model,
            rate_text(setting),
            frames_text(setting),
            ("" if setting.learning_rate is None else f"{setting.learning_rate:g}")
            + (f" (of {setting.tried_rates})" if setting.tried_rates > 1 else ""),
            "" if setting.steps is None else str(setting.steps),
            str(len(setting.seeds)),
            f"{setting.metric_name} {plus_minus(setting.score, 2)}",
            number(setting.frame_period_ms, 1),
            number(setting.gmacs, 3),
            number(setting.upstream_ms, 2),
            number(setting.downstream_ms, 2),
            number(setting.peak_memory_mb, 0),
        ]
        for setting in summary.settings
    ]


def overview(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table with a row a rate and a column a task."""
    found: list[tuple[str, str, dict[str, Setting]]] = []  # upstream, rate, the settings by task
    for setting in summary.settings:
        name = (setting.model, rate_name(setting, summary))
        row = next((row for row in found if row[:2] == name and setting.task not in row[2]), None)
        if row is None:
            row = (*name, {})
            found.append(row)
        row[2][setting.task] = setting

    def place(row: tuple[str, str, dict[str, Setting]]) -> tuple[int, str, float]:
        first = next(iter(row[2].values()))
        return KINDS.index(first.kind), row[0], first.frame_period_ms.mean

    several = len({setting.model for setting in summary.settings if setting.kind != BASELINE}) > 1
    metrics = {setting.task: setting.metric_name for setting in summary.settings}
    header = [*["upstream"] * several, "rate", "frame period (ms)", "GMACs / s"]
    rows = []
    for model, rate, by_task in sorted(found, key=place):
        periods = between([setting.frame_period_ms.mean for setting in by_task.values()], 1)
        gmacs = between([setting.gmacs.mean for setting in by_task.values()], 2)
        scores = [score_text(by_task[task]) if task in by_task else "" for task in metrics]
        rows.append([*[model] * several, rate, periods, gmacs, *scores])
    return [*header, *(f"{task}, {metric}" for task, metric in metrics.items())], rows


def between(values: list[float], digits: int) -> str:
    """The mean of what tasks have alike; the range of what differs by more than 5%, as where they choose their rate."""
    values = [value for value in values if math.isfinite(value)]
    if values and max(values) > 1.05 * min(values):
        return f"{min(values):.{digits}f}–{max(values):.{digits}f}"
    return number(Spread.of(values), digits)


def rate_name(setting: Setting, summary: Summary) -> str:
    """The rate; with frames that are not the task's usual ones, and with the repeat where the task has others too."""
    if setting.kind == BASELINE:
        return setting.label
    here = [(item.model, item.label, item.frames) for item in summary.of_task(setting.task)]
    frames = f", {setting.frames}" if setting.frames != usual_frames(setting.task) else ""
    several = here.count((setting.model, setting.label, setting.frames)) > 1
    unusual = several and setting.asked_repeat != usual_repeat(setting.task)
    return setting.label + frames + (f", repeat {setting.asked_repeat}" if unusual else "")


def score_text(setting: Setting) -> str:
    repeats = [repeat for repeat in setting.repeats if repeat > 1]
    return plus_minus(setting.score, 1) + (f" (frames x{', '.join(map(str, repeats))})" if repeats else "")


def rate_text(setting: Setting) -> str:
    if setting.kind == BASELINE:
        return ""
    learnt = number(setting.learnt_lambd, 2)
    return setting.label + (f" (lambd {learnt})" if learnt else "")


def frames_text(setting: Setting) -> str:
    if setting.frames is None:
        return ""
    repeats = [repeat for repeat in setting.repeats if repeat > 1]
    return setting.frames + (f" x{', '.join(map(str, repeats))}" if repeats else "")


def number(spread: Spread, digits: int) -> str:
    return "" if spread.mean != spread.mean else f"{spread.mean:.{digits}f}"


def plus_minus(spread: Spread, digits: int) -> str:
    deviation = "" if spread.deviation != spread.deviation else f" ± {spread.deviation:.{digits}f}"
    return f"{spread.mean:.{digits}f}{deviation}"


def stand(summary: Summary) -> str:
    """How complete it is, in a sentence."""
    total = len(summary.rows) + len(summary.missing)
    parts = [f"{len(summary.finished)} of {total} points are finished"]
    parts += [f"{len(summary.failed)} failed"] if summary.failed else []
    parts += [f"{len(summary.missing)} without a result yet"] if summary.missing else []
    faults = len(summary.faults)
    parts += [f"{FILE} has {faults} fault{'s' * (faults > 1)}"] if faults else []
    return ", ".join(parts) + ("." if is_whole(summary) else ": what follows is not the whole grid.")


def is_whole(summary: Summary) -> bool:
    return len(summary.finished) == len(summary.rows) + len(summary.missing) and not summary.faults


def fault_lines(summary: Summary) -> list[str]:
    return [f"{fault.where}: {fault.text}" for fault in summary.faults]


def reach_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """Task, model and sentence; with the model its frames and repeat, where it has several curves in a task."""
    found = []
    for reach in summary.reaches:
        alike = [other for other in summary.reaches if (other.task, other.model) == (reach.task, reach.model)]
        frames = f", {reach.frames}" if len({other.frames for other in alike}) > 1 else ""
        repeats = {other.asked_repeat for other in alike if other.frames == reach.frames}
        repeat = f", repeat {reach.asked_repeat}" if len(repeats) > 1 else ""
        variant = f", {reach.variant}" if reach.variant else ""
        found.append((reach.task, reach.model + frames + repeat + variant, reach.text))
    return found


def markdown(summary: Summary, plots: dict[str, pathlib.Path], captions: dict[str, str]) -> str:
    lines = ["# Sweep", "", stand(summary), "", *markdown_table(*overview(summary)), "", notes(summary)]
    lines += ["", f"## Longest frame period within {percent(summary.tolerance)} of 20 ms", ""]
    lines += [f"* {plain(f'{task}, {model}: {text}')}" for task, model, text in reach_rows(summary)] or [f"* {NOTHING}"]
    for stem, path in plots.items():
        lines += ["", f"![{captions[stem]}]({path.with_suffix('.png').name})", "", f"{captions[stem]}."]
    lines += ["", "## All settings", "", *markdown_table(HEADER, table_rows(summary))]
    if summary.faults:
        lines += ["", f"## {WRONG}", "", *(f"* {plain(line)}" for line in fault_lines(summary))]
    if summary.failed:
        lines += ["", "## Failed", ""]
        for row in summary.failed:
            lines += [f"* {row['point']}: {plain(row['error'])}", "", *(f"      {line}" for line in row["log"]), ""]
    if summary.missing:
        lines += ["", "## No result yet", "", *(f"* {name}" for name in summary.missing)]
    return "\n".join(lines) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[plain(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    first, *others = ["| " + " | ".join(row) + " |" for row in cells]
    return [first, "|" + "---|" * len(header), *others]


def plain(text: str) -> str:
    """Escapes what Markdown would take for HTML."""
    return html.escape(text, quote=False)


def notes(summary: Summary) -> str:
    devices = sorted({device for setting in summary.settings for device in setting.devices})
    return (
        "Scores: mean and standard deviation over seeds, on the test split, at the learning rate that is best on dev. "
        "Frame period and speed as measured there, memory the peak of training and evaluation; GMACs of the upstream "
        "and wall times a second of audio. The first table has their means over tasks, or the range; x2 there says "
        "that CTC had to see each frame twice. "
        f"Measured on {', '.join(devices) or 'unknown devices'}."
    )
