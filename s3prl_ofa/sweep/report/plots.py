"""The plots of a report: score against frame period, cost and speed, one panel a task, as PNG and SVG."""

import math
import pathlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.sweep.report.aggregation import (
    BASELINE,
    FIXED,
    KINDS,
    LEARNT,
    VARIABLE,
    Setting,
    Spread,
    Summary,
    percent,
)

# Okabe and Ito's colours, which can be told apart by everybody (https://jfly.uni-koeln.de/color/)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASELINE_COLOURS = ("#333333", "#777777", "#999999", "#555555")
BASELINE_MARKERS = ("*", "D", "^", "v", "P", "X")
STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.2,
    "errorbar.capsize": 1.8,
    "text.usetex": False,
    "text.parse_math": False,  # a name may contain dollar signs
    "svg.hashsalt": "s3prl-ofa",  # the same file from the same results
    "savefig.dpi": 200,
}
PANEL = (2.5, 2.15)  # inches
LEGEND_INCHES = 0.2  # a row of the legend
LEGEND_COLUMNS = 5
REPEATED = "frames repeated for CTC"


class Plot(NamedTuple):
    """A figure: its file's stem, what its caption says, its x axis, and what is on it."""

    stem: str
    caption: str
    label: str
    value: Callable[[Setting], float]


PLOTS = (
    Plot(
        "score_frame_period",
        "Score against the mean frame period measured on the test split",
        "frame period (ms)",
        lambda setting: setting.frame_period_ms.mean,
    ),
    Plot(
        "score_macs",
        "Score against the upstream's multiply-accumulates",
        "upstream GMACs a second of audio",
        lambda setting: setting.gmacs.mean,
    ),
    Plot(
        "score_speed",
        "Score against the measured wall time of upstream and downstream model",
        "wall time (ms a second of audio)",
        lambda setting: setting.total_ms,
    ),
)


def draw_all(summary: Summary, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Draws every plot of which there is something to see, and returns the SVG files by the plot's stem."""
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError(f"plots are drawn with matplotlib ({error}): pip install 's3prl-ofa[sweep]'") from None
    # Neither a window nor pyplot's list of figures: only files are written.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = {}
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # of names in scripts that its font lacks: boxes in the plots, and the tables hold the names
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        for plot in PLOTS:
            if not any(math.isfinite(plot.value(setting)) for setting in summary.settings):
                continue
            figure = Figure()
            FigureCanvasAgg(figure)
            draw(figure, plot, summary)
            for suffix, options in ((".png", {}), (".svg", {"metadata": {"Date": None}})):
                with atomic_path(folder / f"{plot.stem}{suffix}") as temporary:
                    figure.savefig(temporary, **options)
            found[plot.stem] = folder / f"{plot.stem}.svg"
    return found


def draw(figure: Any, plot: Plot, summary: Summary) -> None:
    """One panel a task, one legend for all above them."""
    tasks = summary.tasks
    styles = styles_of(summary)
    marks = 1 + any(is_repeated(setting) for setting in summary.settings)
    rows = math.ceil((len(styles) + marks) / LEGEND_COLUMNS)
    height = PANEL[1] + LEGEND_INCHES * rows
    figure.set_size_inches(PANEL[0] * max(len(tasks), 1.6), height)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for task, panel in zip(tasks, panels, strict=True):
        draw_panel(panel, plot, summary, task, styles)
    handles = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if REPEATED in handles:
        handles[REPEATED] = handles.pop(REPEATED)  # last
    figure.tight_layout(rect=(0, 0, 1, PANEL[1] / height), w_pad=1.4)
    figure.legend(
        handles.values(), handles, loc="upper center", ncols=LEGEND_COLUMNS, columnspacing=1.6, handletextpad=0.5
    )


def series_name(setting: Setting, summary: Summary) -> str:
    """What the legend calls the curve or mark that a setting belongs to."""
    if setting.kind == BASELINE:
        return setting.label
    models = {other.model for other in summary.settings if other.kind != BASELINE}
    name = {VARIABLE: "compressed", LEARNT: "adaptive", FIXED: "average pooling"}[setting.kind]
    name = f"{setting.model}, {name}" if len(models) > 1 else name
    usual = {other.frames for other in summary.of_task(setting.task) if other.kind != BASELINE}
    name = f"{name}, {setting.frames}" if len(usual) > 1 else name
    repeats = {other.asked_repeat for other in summary.of_task(setting.task) if other.frames == setting.frames}
    name = f"{name}, repeat {setting.asked_repeat}" if len(repeats) > 1 else name
    return f"{name}, {setting.variant}" if setting.variant else name


def styles_of(summary: Summary) -> dict[str, dict[str, Any]]:
    """Line, marker and colour of each series: pooling dashed; learnt rates and baselines as marks."""
    styles: dict[str, dict[str, Any]] = {}
    curves = marks = 0
    for setting in sorted(summary.settings, key=lambda item: KINDS.index(item.kind)):
        name = series_name(setting, summary)
        if name in styles:
            continue
        if setting.kind == BASELINE:
            colour = BASELINE_COLOURS[marks % len(BASELINE_COLOURS)]
            marker = BASELINE_MARKERS[marks % len(BASELINE_MARKERS)]
            styles[name] = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 6.5}
            marks += 1
        else:
            line, marker = {VARIABLE: ("-", "o"), LEARNT: ("none", "D"), FIXED: ((0, (3, 2)), "s")}[setting.kind]
            styles[name] = {"color": COLOURS[curves % len(COLOURS)], "marker": marker, "linestyle": line}
            curves += 1
    return styles


def is_repeated(setting: Setting) -> bool:
    return any(repeat > 1 for repeat in setting.repeats)


def draw_panel(panel: Any, plot: Plot, summary: Summary, task: str, styles: dict[str, dict[str, Any]]) -> None:
    settings = [setting for setting in summary.of_task(task) if math.isfinite(plot.value(setting))]
    series: dict[str, list[Setting]] = {}
    for setting in settings:
        series.setdefault(series_name(setting, summary), []).append(setting)
    for name, members in series.items():
        members = sorted(members, key=plot.value)
        scores: list[Spread] = [setting.score for setting in members]
        panel.errorbar(
            [plot.value(setting) for setting in members],
            [score.mean for score in scores],
            yerr=[score.deviation for score in scores],
            elinewidth=0.8,
            markeredgecolor="white",
            markeredgewidth=0.5,
            label=f" {name}" if name.startswith("_") else name,  # matplotlib would leave it out of the legend
            zorder=3,
            **styles[name],
        )
        hollow = {**styles[name], "linestyle": "none", "markerfacecolor": "white", "zorder": 4}
        repeated = [setting for setting in members if is_repeated(setting)]
        panel.plot([plot.value(setting) for setting in repeated], [item.score.mean for item in repeated], **hollow)
    if any(is_repeated(setting) for setting in settings):
        label = {"marker": "o", "linestyle": "none", "color": "#555555", "markerfacecolor": "white", "label": REPEATED}
        panel.plot([], [], **label)
    limits = [reach.limit for reach in summary.reaches if reach.task == task and reach.limit is not None]
    if len(limits) == 1:  # of several models the lines would say nothing
        label = f"{percent(summary.tolerance)} worse than at 20 ms"
        panel.axhline(limits[0], color="#888888", linewidth=0.8, linestyle=":", zorder=1, label=label)
    panel.set_title(task.upper() if len(task) <= 3 else task)
    panel.set_xlabel(plot.label)
    if settings:
        panel.set_ylabel(f"{settings[0].metric_name} {'↑' if settings[0].higher_is_better else '↓'}")
    # a little to the left of 0, where a baseline that costs nearly nothing has its mark
    panel.set_xlim(left=-0.04 * max([plot.value(setting) for setting in settings], default=1.0))
    panel.margins(y=0.12)
