"""The plots of a report: score against frame period, cost and speed, one panel per task, as PNG and SVG."""

import math
import pathlib
import warnings
from typing import Any, NamedTuple

import pandas as pd

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.sweep.report.aggregation import BASELINE, FIXED, LEARNED, VARIABLE, Summary, percent

# Okabe and Ito's colours, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASELINE_COLOURS = ("#333333", "#777777", "#999999", "#555555")
BASELINE_MARKERS = ("*", "D", "^", "v", "P", "X")
STYLE = pathlib.Path(__file__).with_suffix(".mplstyle")
PANEL = (2.5, 2.15)  # inches
LEGEND_INCHES = 0.2  # a row of the legend
LEGEND_COLUMNS = 5
REPEATED = "frames repeated for CTC"


class Plot(NamedTuple):
    """A figure: its file's stem, what its caption says, its x axis, and the column of the settings on that axis."""

    stem: str
    caption: str
    label: str
    column: str


PLOTS = (
    Plot(
        "score_frame_period",
        "Score against the mean frame period measured on the test split",
        "frame period (ms)",
        "frame_period_ms",
    ),
    Plot(
        "score_macs", "Score against the upstream's multiply-accumulates", "upstream GMACs per second of audio", "gmacs"
    ),
    Plot(
        "score_speed",
        "Score against the measured wall time of upstream and downstream model",
        "wall time (ms per second of audio)",
        "total_ms",
    ),
)


def draw_all(summary: Summary, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Draws every plot that has something to show, and returns the SVG files by the plot's stem."""
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError(f"plots are drawn with matplotlib ({error}): pip install 's3prl-ofa[sweep]'") from None
    # Neither a window nor pyplot's list of figures: only files are written.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = {}
    with matplotlib.rc_context(fname=STYLE), warnings.catch_warnings():
        # of names in scripts that its font lacks: boxes in the plots, and the tables hold the names
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        for plot in PLOTS:
            if not summary.settings[plot.column].notna().any():
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
    """One panel per task, and above them one legend for all."""
    settings = summary.settings
    settings = settings.assign(series=series_of(settings))
    styles = styles_of(settings)
    marks = 1 + settings["repeats"].map(any_repeated).any()
    rows = math.ceil((len(styles) + marks) / LEGEND_COLUMNS)
    height = PANEL[1] + LEGEND_INCHES * rows
    tasks = settings["task"].unique()
    figure.set_size_inches(PANEL[0] * max(len(tasks), 1.6), height)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    handles = {}
    for task, panel in zip(tasks, panels, strict=True):
        shown = settings[(settings["task"] == task) & settings[plot.column].notna()]
        limits = [found.limit for found in summary.longest_periods if found.task == task and found.limit is not None]
        draw_panel(panel, plot, shown, styles)
        if len(limits) == 1:  # of several models the lines would say nothing
            text = f"{percent(summary.tolerance)} worse than at 20 ms"
            panel.axhline(limits[0], color="#888888", linewidth=0.8, linestyle=":", zorder=1, label=text)
        panel.set_title(task.upper() if len(task) <= 3 else task)
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if REPEATED in handles:
        handles[REPEATED] = handles.pop(REPEATED)  # last
    figure.tight_layout(rect=(0, 0, 1, PANEL[1] / height), w_pad=1.4)
    figure.legend(
        handles.values(), handles, loc="upper center", ncols=LEGEND_COLUMNS, columnspacing=1.6, handletextpad=0.5
    )


def series_of(settings: pd.DataFrame) -> pd.Series:
    """What the legend calls the curve or mark that each setting belongs to."""
    ours = {VARIABLE: "compressed", LEARNED: "adaptive", FIXED: "average pooling"}
    several = settings.loc[settings["kind"] != BASELINE, "model"].nunique() > 1
    return [
        (f"{setting.model}, " * several + ours[setting.kind] if setting.kind in ours else setting.label)
        + setting.detail
        for setting in settings.itertuples()
    ]


def styles_of(settings: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Line, marker and colour of each series: pooling dashed; learned rates and baselines as marks."""
    kinds = {VARIABLE: ("-", "o"), LEARNED: ("none", "D"), FIXED: ((0, (3, 2)), "s")}
    first = settings.sort_values("kind_order", kind="stable").drop_duplicates("series")
    ours, baselines = first[first["kind"] != BASELINE], first[first["kind"] == BASELINE]
    styles: dict[str, dict[str, Any]] = {}
    for index, (name, kind) in enumerate(zip(ours["series"], ours["kind"], strict=True)):
        line, marker = kinds[kind]
        styles[name] = {"color": COLOURS[index % len(COLOURS)], "marker": marker, "linestyle": line}
    for index, name in enumerate(baselines["series"]):
        colour, marker = (choices[index % len(choices)] for choices in (BASELINE_COLOURS, BASELINE_MARKERS))
        styles[name] = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 6.5}
    return styles


def any_repeated(repeats: tuple[int, ...]) -> bool:
    return any(repeat > 1 for repeat in repeats)


def draw_panel(panel: Any, plot: Plot, settings: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    """settings: of one task, all with a value on the x axis."""
    repeated = settings["repeats"].map(any_repeated).astype(bool)
    for name, series in settings.groupby("series", sort=False):
        series = series.sort_values(plot.column, kind="stable")
        panel.errorbar(
            series[plot.column],
            series["score"],
            yerr=series["deviation"],
            elinewidth=0.8,
            markeredgecolor="white",
            markeredgewidth=0.5,
            label=f" {name}" if name.startswith("_") else name,  # matplotlib would leave it out of the legend
            zorder=3,
            **styles[name],
        )
        hollow = {**styles[name], "linestyle": "none", "markerfacecolor": "white", "zorder": 4}
        marked = series[repeated[series.index]]
        panel.plot(marked[plot.column], marked["score"], **hollow)
    if repeated.any():
        panel.plot([], [], marker="o", linestyle="none", color="#555555", markerfacecolor="white", label=REPEATED)
    panel.set_xlabel(plot.label)
    for setting in settings.head(1).itertuples():
        panel.set_ylabel(f"{setting.metric_name} {'↑' if setting.higher_is_better else '↓'}")
    # a little to the left of 0, where a baseline that costs next to nothing has its mark
    panel.set_xlim(left=-0.04 * (settings[plot.column].max() if len(settings) else 1.0))
    panel.margins(y=0.12)
