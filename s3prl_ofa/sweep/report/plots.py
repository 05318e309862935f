"""Draws the plots of a report: score against frame period, cost and speed, a panel per task, as PNG and SVG."""

import itertools
import math
import pathlib
import warnings
from typing import Any, NamedTuple

import pandas as pd

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.sweep.report.aggregation import Summary
from s3prl_ofa.sweep.report.front import front
from s3prl_ofa.sweep.report.settings import Kind, percent

try:
    import matplotlib
    from matplotlib.figure import Figure  # pyplot would open windows and keep every figure
except ImportError as error:
    raise UsageError(f"plots are drawn with matplotlib ({error}): pip install 's3prl-ofa[sweep]'") from None

# Okabe and Ito's colors, which color-blind readers can tell apart (https://jfly.uni-koeln.de/color/)
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASELINE_COLORS = ("#333333", "#777777", "#999999", "#555555")
BASELINE_MARKERS = ("*", "D", "^", "v", "P", "X")
# name, line and marker of the settings of our models: ours solid, alternatives dashed, learned rates as marks
DASHED, DOTTED = (0, (3, 2)), (0, (1, 1.5))
STYLES = {
    Kind.VARIABLE: ("compressed", "-", "o"),
    Kind.EQUAL: ("uniform boundaries", DOTTED, "v"),
    Kind.SPECIALIST: ("trained with pooling", DASHED, "^"),
    Kind.LEARNED: ("adaptive", "none", "D"),
    Kind.EXIT: ("early exit", DOTTED, "P"),
    Kind.POOLED: ("average pooling", DASHED, "s"),
}
FRONT = "Pareto front"
STYLE_SHEET = pathlib.Path(__file__).with_suffix(".mplstyle")
PANEL = (2.5, 2.15)  # inches
LEGEND_INCHES = 0.2  # a row of the legend
COLUMN_INCHES = 1.5  # of the legend
REPEATED = "frames repeated for CTC"
ENDS = ("low", "high")  # of an interval


class Plot(NamedTuple):
    """A figure: the column of the settings on its x axis, that axis's label, and what the score is drawn against."""

    column: str
    label: str
    against: str


PLOTS = {  # by their file's stem
    "score_frame_period": Plot(
        "frame_period_ms", "frame period (ms)", "the mean frame period measured on the test split"
    ),
    "score_macs": Plot("gmacs", "upstream GMACs per second of audio", "the upstream's multiply-accumulates"),
    "score_speed": Plot(
        "total_ms", "wall time (ms per second of audio)", "the measured wall time of upstream and downstream model"
    ),
}


def draw_all(summary: Summary, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Draws every plot that has something to show, and returns the SVG files by the plot's stem."""
    found = {}
    with matplotlib.rc_context(fname=STYLE_SHEET), warnings.catch_warnings():
        # for names in scripts that the font lacks: plots show boxes, and the tables have the names
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        for stem, plot in PLOTS.items():
            if not summary.settings[plot.column].notna().any():
                continue
            figure = draw(plot, summary)
            for suffix, options in ((".png", {}), (".svg", {"metadata": {"Date": None}})):
                with atomic_path(folder / f"{stem}{suffix}") as temporary:
                    figure.savefig(temporary, **options)
            found[stem] = folder / f"{stem}.svg"
    return found


def draw(plot: Plot, summary: Summary) -> Figure:
    """One panel per task, and above them one legend for all."""
    settings = summary.settings
    curve = settings["kind"].map({kind: name for kind, (name, _, _) in STYLES.items()}).fillna(settings["label"])
    settings = settings.assign(
        series=settings["owner"] + curve + settings["detail"],
        repeated=[max(found, default=1) > 1 for found in settings["repeats"]],
    )
    styles = styles_of(settings)
    tasks = settings["task"].unique()
    width = PANEL[0] * max(len(tasks), 1.6)
    columns = int(width / COLUMN_INCHES)
    height = PANEL[1] + LEGEND_INCHES * math.ceil((len(styles) + 2 + settings["repeated"].any()) / columns)
    figure = Figure((width, height))
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    handles = {}
    for task, panel in zip(tasks, panels, strict=True):
        limits = [found.limit for found in summary.longest_periods if found.task == task and found.limit is not None]
        draw_panel(panel, plot, settings[(settings["task"] == task) & settings[plot.column].notna()], styles)
        if len(limits) == 1:  # of several models the lines would say nothing
            text = f"{percent(summary.tolerance)} worse than at 20 ms"
            panel.axhline(limits[0], color="#888888", linewidth=0.8, linestyle=":", zorder=1, label=text)
        panel.set_title(task.upper() if len(task) <= 3 else task)
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if REPEATED in handles:
        handles[REPEATED] = handles.pop(REPEATED)  # last
    figure.tight_layout(rect=(0, 0, 1, PANEL[1] / height), w_pad=1.4)
    figure.legend(handles.values(), handles, loc="upper center", ncols=columns, columnspacing=1.6, handletextpad=0.5)
    return figure


def styles_of(settings: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Line, marker and color of each series; baselines are marks."""
    colors, greys, marks = map(itertools.cycle, (COLORS, BASELINE_COLORS, BASELINE_MARKERS))
    styles: dict[str, dict[str, Any]] = {}
    for setting in settings.sort_values("kind", kind="stable").drop_duplicates("series").itertuples():
        if setting.kind == Kind.BASELINE:
            style = {"color": next(greys), "marker": next(marks), "linestyle": "none", "markersize": 6.5}
        else:
            _, line, marker = STYLES[setting.kind]
            style = {"color": next(colors), "marker": marker, "linestyle": line}
        styles[setting.series] = style
    return styles


def draw_panel(panel: Any, plot: Plot, settings: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    """settings: of one task, all with a value on the x axis."""
    for name, series in settings.groupby("series", sort=False):
        series = series.sort_values(plot.column, kind="stable")
        panel.errorbar(
            series[plot.column],
            series["score"],
            yerr=[series["deviation"].where(series[end].isna(), abs(series["score"] - series[end])) for end in ENDS],
            elinewidth=0.8,
            markeredgecolor="white",
            markeredgewidth=0.5,
            label=f" {name}" if name.startswith("_") else name,  # matplotlib would leave it out of the legend
            zorder=3,
            **styles[name],
        )
        hollow = {**styles[name], "linestyle": "none", "markerfacecolor": "white", "zorder": 4}
        marked = series[series["repeated"]]
        panel.plot(marked[plot.column], marked["score"], **hollow)
    if plot.column != "frame_period_ms":
        best = front(settings, plot.column)
        panel.step(best[plot.column], best["score"], where="post", color="#bbbbbb", linewidth=3, zorder=0, label=FRONT)
    if settings["repeated"].any():
        panel.plot([], [], marker="o", linestyle="none", color="#555555", markerfacecolor="white", label=REPEATED)
    panel.set_xlabel(plot.label)
    for setting in settings.head(1).itertuples():
        panel.set_ylabel(f"{setting.metric_name} {'↑' if setting.higher_is_better else '↓'}")
    # a little to the left of 0, where a baseline that costs next to nothing has its mark
    panel.set_xlim(left=-0.04 * (settings[plot.column].max() if len(settings) else 1.0))
    panel.margins(y=0.12)
