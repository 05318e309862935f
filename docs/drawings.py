"""Draws the figures of the documentation, from the bundled model and from the results in benchmarks/results.

    python docs/drawings.py

writes ``docs/images/NAME.svg``. A test compares the files with newly drawn ones, so they cannot go stale.
"""

import pathlib
from collections.abc import Callable

import matplotlib
import numpy as np
import soundfile
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

import s3prl_ofa
from s3prl_ofa.sweep.report.aggregation import summarize
from s3prl_ofa.sweep.report.settings import Kind

ROOT = pathlib.Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
DEMO = ROOT / "s3prl_ofa" / "demo"
EVIDENCE = ROOT / "benchmarks" / "results" / "evidence"
UTTERANCE = "test/wav/id10001/test/00001.opus"
EXCERPT = (0.6, 1.4)  # seconds
SAMPLE_RATE = 16_000  # Hz
LAMBDS = (0.0, 0.5, 1.0)
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
SKY, BLACK, GREY = "#56b4e9", "#000000", "#9aa0a6"
ALTERNATIVES = {  # color, marker and label of each kind of setting
    Kind.VARIABLE: (BLUE, "o-", "once-for-all, one checkpoint (ms per frame)"),
    Kind.EQUAL: (GREEN, "v:", "the same, frames of equal length"),
    Kind.LEARNED: (SKY, "*", "the same, at a rate learned by the task"),
    Kind.SPECIALIST: (BLACK, "D--", "models trained for one rate each"),
    Kind.EXIT: (PURPLE, "P:", "the same at 20 ms, first layers only"),
    Kind.POOLED: (ORANGE, "s--", "the same at 20 ms, outputs averaged"),
}
STYLE = {
    "svg.hashsalt": "s3prl-ofa",  # the same names inside the file on every run
    "svg.fonttype": "none",
    "path.simplify": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def utterance() -> np.ndarray:
    """A bundled utterance, (samples,) float32."""
    wave, rate = soundfile.read(DEMO / "audio" / UTTERANCE, dtype="float32")
    assert rate == SAMPLE_RATE
    return wave


def frames(figure: Figure) -> None:
    """The waveform with the frame boundaries at three rates."""
    model, wave = s3prl_ofa.load(DEMO / "tiny.safetensors"), utterance()
    figure.set_size_inches(7.5, 4.2)
    for axes, lambd in zip(figure.subplots(len(LAMBDS), sharex=True), LAMBDS, strict=True):
        out = model.extract([wave], lambd=lambd, layers=0)
        # the largest magnitude of every 5 ms
        excerpt = wave[slice(*(round(second * SAMPLE_RATE) for second in EXCERPT))]
        envelope = np.abs(excerpt).reshape(-1, 80).max(1)
        seconds = EXCERPT[0] + (np.arange(len(envelope)) + 0.5) * 80 / SAMPLE_RATE
        axes.fill_between(seconds, -envelope, envelope, color=GREY, linewidth=0)
        borders = np.append(out.times[0, :, 0].numpy(), out.times[0, -1, 1].numpy())
        shown = borders[(borders >= EXCERPT[0]) & (borders <= EXCERPT[1])]
        axes.vlines(shown, -envelope.max(), envelope.max(), color=BLUE, linewidth=1)
        axes.set(xlim=EXCERPT, yticks=[])
        axes.set_title(f"lambd {lambd:g}: {float(out.frame_period_ms[0]):.0f} ms per frame", loc="left", fontsize=10)
    axes.set_xlabel("seconds")


def integrate_and_fire(figure: Figure) -> None:
    """Alpha, and its running sum, which at lambd 1 fires a frame at every whole number."""
    model, wave = s3prl_ofa.load(DEMO / "tiny.safetensors"), utterance()
    alpha = model.alpha([wave])[0][0].numpy()
    first, last = (round(second * 50) for second in EXCERPT)
    edges = np.arange(first, last + 1) / 50
    figure.set_size_inches(7.5, 4.5)
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(1, 2))
    top.bar(edges[:-1], alpha[first:last], width=0.02, align="edge", color=GREY, edgecolor="white", linewidth=0.5)
    top.set(ylabel="alpha", ylim=(0, 1), xlim=EXCERPT)
    total = np.concatenate([[0.0], alpha.cumsum()])[first : last + 1]
    total -= np.floor(total[0])
    levels = np.arange(1, int(total[-1]) + 1)
    crossings = np.interp(levels, total, edges)
    bottom.hlines(levels, EXCERPT[0], crossings, color=GREY, linewidth=0.6)
    bottom.vlines(crossings, 0, levels, color=BLUE, linewidth=1)
    bottom.plot(edges, total, color=ORANGE)
    bottom.plot(crossings, levels, "o", color=BLUE, markersize=3.5)
    bottom.set(xlabel="seconds", ylabel="running sum", ylim=(0, None))
    bottom.set_title("lambd 1: a frame fires at every whole number", loc="left", fontsize=10)
    bottom.yaxis.set_major_locator(MaxNLocator(integer=True))


def rate(figure: Figure) -> None:
    """The frame period against lambd, measured on the bundled test utterances, and the formula."""
    model = s3prl_ofa.load(DEMO / "tiny.safetensors")
    waves = [soundfile.read(path, dtype="float32")[0] for path in sorted((DEMO / "audio" / "test").rglob("*.opus"))]
    alphas, lengths = model.alpha(waves)
    mean_alpha = float(alphas.sum() / lengths.sum())
    lambds = np.linspace(0, 1, 21)
    periods = [model.extract(waves, lambd=float(lambd), layers=0).frame_period_ms.mean() for lambd in lambds[::2]]
    figure.set_size_inches(5, 3.4)
    axes = figure.subplots()
    axes.plot(lambds, 20 / (1 - lambds * (1 - mean_alpha)), color=GREY, label="20 ms / (1 - lambd (1 - mean alpha))")
    axes.plot(lambds[::2], periods, "o", color=BLUE, markersize=4, label="measured, mean over utterances")
    axes.set(xlabel="lambd", ylabel="frame period (ms)", ylim=(0, None), xlim=(0, 1.02))
    axes.legend(frameon=False, fontsize=9)


def score_cost(figure: Figure) -> None:
    """Score against the upstream's cost for all alternatives: the mean over seeds with its interval, or else the
    standard deviation. Numbers are frame periods in ms; open markers say that CTC had to see each frame twice."""
    settings = summarize(EVIDENCE, tolerance=0.05).settings
    figure.set_size_inches(9.6, 3.7)
    panels = {
        "pr": "phoneme recognition\nphone error rate (%) ↓",
        "asr": "speech recognition\ncharacter error rate (%) ↓",
        "sid": "speaker identification\naccuracy (%) ↑",
    }
    run, drawn = [(task, text) for task, text in panels.items() if task in set(settings["task"])], {}
    for axes, (task, text) in zip(figure.subplots(1, len(run), squeeze=False)[0], run, strict=True):
        of_task = settings[settings["task"] == task]
        for kind, (color, marker, label) in ALTERNATIVES.items():
            chosen = of_task[of_task["kind"] == kind].sort_values("gmacs", kind="stable")
            if not len(chosen):
                continue
            score, spread = chosen["score"], chosen["deviation"].fillna(0.0)
            errors = [abs(score - chosen[end]).fillna(spread) for end in ("low", "high")]
            line = axes.errorbar(chosen["gmacs"], score, errors, fmt=marker, color=color, capsize=2, markersize=4)
            drawn.setdefault(label, line)
            twice = chosen[chosen["repeats"].map(lambda repeats: max(repeats, default=1) > 1)]
            if len(twice):
                open_markers = {"color": color, "markerfacecolor": "white", "markersize": 4, "zorder": 4}
                axes.plot(twice["gmacs"], twice["score"], marker[0], **open_markers)
            for one in chosen.itertuples() if kind == Kind.VARIABLE else ():
                period, place, below = f"{one.frame_period_ms:.0f} ", (one.gmacs, one.score), {"xytext": (-1, -9)}
                label = axes.annotate(period, place, **below, textcoords="offset points", ha="right", fontsize=7)
                label.set(color=color, zorder=5, path_effects=[withStroke(linewidth=2, foreground="white")])
        title, ylabel = text.split("\n")
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="upstream GMACs per second of audio", ylabel=ylabel, xlim=(0, 1.1 * of_task["gmacs"].max()))
        if task == "sid":
            axes.set_ylim(min(90, of_task.loc[of_task["kind"] != Kind.BASELINE, "low"].min() - 1), 100.5)
    drawn["each frame repeated for CTC"] = Line2D([], [], linestyle="", marker="o", color=GREY, markerfacecolor="white")
    figure.legend(drawn.values(), drawn.keys(), frameon=False, fontsize=8, ncols=3, loc="outside lower center")


DRAWINGS: dict[str, Callable[[Figure], None]] = {
    "frames": frames,
    "integrate_and_fire": integrate_and_fire,
    "rate": rate,
    "score_cost": score_cost,
}


def draw(name: str, path: pathlib.Path) -> None:
    """Writes one drawing as SVG, without a date, so that equal drawings are equal files."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        DRAWINGS[name](figure)
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    for name in DRAWINGS:
        draw(name, IMAGES / f"{name}.svg")
