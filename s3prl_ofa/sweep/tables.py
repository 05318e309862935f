"""The words and numbers of a report, and the Markdown file of them."""

import pathlib

from .summary import BASELINE, Setting, Spread, Summary, percent

NOTHING = "nothing to compare"
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
    return ", ".join(parts) + ("." if total == len(summary.finished) else ": what follows is not the whole grid.")


def reach_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """Task, model and sentence; with the model its frames and repeat, where it has several curves in a task."""
    found = []
    for reach in summary.reaches:
        alike = [other for other in summary.reaches if (other.task, other.model) == (reach.task, reach.model)]
        frames = f", {reach.frames}" if len({other.frames for other in alike}) > 1 else ""
        repeats = {other.asked_repeat for other in alike if other.frames == reach.frames}
        repeat = f", repeat {reach.asked_repeat}" if len(repeats) > 1 else ""
        found.append((reach.task, reach.model + frames + repeat, reach.text))
    return found


def markdown(summary: Summary, plots: dict[str, pathlib.Path], captions: dict[str, str]) -> str:
    lines = ["# Sweep", "", stand(summary), ""]
    lines += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table_rows(summary)]
    lines += ["", notes(summary), "", f"## Longest frame period within {percent(summary.tolerance)} of 20 ms", ""]
    lines += [f"* {task}, {model}: {text}" for task, model, text in reach_rows(summary)] or [f"* {NOTHING}"]
    for stem, path in plots.items():
        lines += ["", f"![{captions[stem]}]({path.with_suffix('.png').name})", "", f"{captions[stem]}."]
    if summary.failed:
        lines += ["", "## Failed", ""]
        for row in summary.failed:
            lines += [f"* {row['point']}: {row['error']}", "", *(f"      {line}" for line in row["log"]), ""]
    if summary.missing:
        lines += ["", "## No result yet", "", *(f"* {name}" for name in summary.missing)]
    return "\n".join(lines) + "\n"


def notes(summary: Summary) -> str:
    devices = sorted({device for setting in summary.settings for device in setting.devices})
    return (
        "Scores: mean and standard deviation over seeds, on the test split, at the learning rate that is best on dev. "
        "Frame period and speed as measured there, memory the peak of training and evaluation; GMACs of the upstream "
        "and wall times a second of audio. "
        f"Measured on {', '.join(devices)}."
    )
