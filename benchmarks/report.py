"""Writes the tables of benchmarks/README.md and docs/speed.md, and the cost curve, from the csv files in results/.

    python -m benchmarks.report

A table is between ``<!-- table: NAME -->`` and ``<!-- end -->``; a test checks that both pages are up to date.
"""

import pathlib
import re
from collections.abc import Callable, Iterable

import matplotlib
from matplotlib.figure import Figure

from benchmarks.extract import SINGLE_S
from benchmarks.rows import RESULTS, Row, read
from benchmarks.targets import OURS, TARGETS, cost_curve, is_exported, is_ours, latest, period_of
from s3prl_ofa.model import SAMPLE_RATE, ModelConfig
from s3prl_ofa.model.cost import macs

PAGES = [pathlib.Path(__file__).parent / "README.md", pathlib.Path(__file__).parents[1] / "docs" / "speed.md"]
CURVE = pathlib.Path(__file__).parent / "cost_curve.svg"
PLACE = re.compile(r"(<!-- table: ([\w ]+) -->\n).*?(<!-- end -->)", re.S)
DTYPES = ("float32", "bfloat16", "float16", "int8")


def rows_of(*files: str) -> list[Row]:
    """The rows of the csv files that exist."""
    return [row for file in files if (path := RESULTS / f"{file}.csv").exists() for row in read(path)]


def machines(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows of each machine, by its name and instruction sets: virtual ones of several kinds share a name."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.machine, row.instructions), []).append(row)
    return found


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    rows = [list(head), ["---"] * len(list(head)), *map(list, lines)]
    return "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows)


def title(rows: Iterable[Row]) -> str:
    """The machine, threads and versions that these rows share."""
    row = max(rows, key=lambda row: row.run)
    clock = ", CPU time of the main thread" if row.clock == "cpu" else ""
    threads = "" if row.device == "cuda" else f", {row.threads} thread{'s' * (row.threads > 1)}"
    return f"{row.machine}{threads} ({row.instructions}){clock}; {row.versions}:"


def in_order(names: Iterable[str]) -> list[str]:
    """Ours first, then the peers as they were measured."""
    return sorted(dict.fromkeys(names), key=lambda name: (not is_ours(name), name if is_ours(name) else ""))


def blocks(rows: Iterable[Row], make: Callable[[list[Row]], str | None]) -> str:
    """A table for each machine, those of the latest run first."""
    groups = sorted(machines(rows).values(), key=lambda group: max(row.run for row in group), reverse=True)
    return "\n\n".join(text for group in groups if (text := make(group)))


def extraction(exported: bool) -> list[Row]:
    """The rows of the runs with our model in other runtimes, or of those without."""
    rows = rows_of("extract")
    runs = {row.run for row in rows if is_exported(row.contender)}
    return [row for row in rows if (row.run in runs) == exported]


def single_table(rows: list[Row]) -> str | None:
    """Milliseconds of one wave of 10 s, and the share of the matrix rate."""

    def cell(row: Row) -> str:
        share = "" if row.matrix_share is None else f" ({100 * row.matrix_share:.0f}%)"
        return f"{1000 * row.median_s:.{0 if row.median_s > 0.05 else 1}f} ms{share}"

    return contenders_table(rows, {dtype: ("single", dtype) for dtype in DTYPES}, cell)


def batch_table(rows: list[Row]) -> str | None:
    """Seconds of audio per second, mixed and equal lengths."""
    columns = {f"{dtype}, {kind}": (kind, dtype) for dtype in DTYPES for kind in ("mixed", "equal")}
    return contenders_table(rows, columns, lambda row: f"{row.audio_s / row.median_s:.1f}")


def contenders_table(rows: list[Row], columns: dict[str, tuple[str, str]], cell: Callable[[Row], str]) -> str | None:
    """A row per contender; columns: benchmark and dtype by heading, of which the measured ones are shown."""
    found = {head: latest(rows, kind, dtype, OURS.format(20)) for head, (kind, dtype) in columns.items()}
    found = {head: run for head, run in found.items() if run}
    if not found:
        return None
    names = in_order(name for run in found.values() for name in run)
    lines = [[name, *(cell(run[name]) if name in run else "" for run in found.values())] for name in names]
    return f"{title(row for run in found.values() for row in run.values())}\n\n{table(['', *found], lines)}"


def rates_table(rows: list[Row]) -> str | None:
    """Time at each frame period relative to 20 ms."""
    curves = {dtype: curve for dtype in DTYPES if (curve := cost_curve(rows, dtype))}
    if not curves:
        return None
    names = sorted({name for curve in curves.values() for name in curve}, key=period_of)

    def cell(curve: dict[str, Row], name: str) -> str:
        return f"{curve[name].median_s / curve[OURS.format(20)].median_s:.2f}" if name in curve else ""

    lines = [[f"{period_of(name):g} ms", *(cell(curve, name) for curve in curves.values())] for name in names]
    return f"{title(row for curve in curves.values() for row in curve.values())}\n\n{table(['', *curves], lines)}"


def draw_curve(path: pathlib.Path) -> None:
    """The last curve that ``cost_curve`` has measured, as SVG, beside that of the multiply-accumulates."""
    rows = max(machines(rows_of("cost_curve")).values(), key=lambda group: max(row.run for row in group))
    config, samples = ModelConfig(compressor="cif"), round(SINGLE_S * SAMPLE_RATE)
    most = config.num_frames(samples)
    style = {"svg.hashsalt": "s3prl-ofa", "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = Figure((5, 3.4), layout="constrained")
        axes = figure.subplots()
        for dtype, marker in zip(DTYPES, "os^D", strict=True):
            points = sorted((period_of(name), row.median_s) for name, row in cost_curve(rows, dtype).items())
            if points:
                periods, seconds = zip(*points, strict=True)
                axes.plot(periods, [each / seconds[0] for each in seconds], f"{marker}-", markersize=4, label=dtype)
        periods = range(20, 91)
        costs = [macs(config, samples, min(most, round(1000 * SINGLE_S / period))) for period in periods]
        axes.plot(periods, [cost / costs[0] for cost in costs], "--", color="grey", label="multiply-accumulates")
        axes.set(xlabel="frame period (ms)", ylabel="relative to 20 ms", ylim=(0, None))
        axes.set_title(rows[0].machine, loc="left", fontsize=10)
        axes.legend(frameon=False, fontsize=9)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def pretrain_table(rows: list[Row]) -> str | None:
    run = latest(rows, "pretrain", "float32", "fairseq wav2vec2")
    lines = [
        [name, f"{row.median_s:.3f} s", f"{row.median_s / run['fairseq wav2vec2'].median_s:.3f}", f"{row.peak_mib} MiB"]
        for name, row in run.items()
    ]
    head = ["", "time per update", "relative", "peak memory"]
    return f"{title(run.values())}\n\n{table(head, lines)}" if run else None


def guidance_table(rows: list[Row]) -> str:
    lines = [[row.contender, f"{row.audio_s / row.cpu_s:.0f}"] for row in rows]
    return table(["stage", "audio seconds per core second"], lines)


def feature_cache_table(rows: list[Row]) -> str:
    lines = [
        [
            row.contender,
            f"{row.median_s:.0f} s",
            f"{row.median_s / rows[0].median_s:.2f}",
            ", ".join(f"{100 * float(score):.1f}" for score in row.note.split()),
        ]
        for row in rows
    ]
    return table(["", "time", "relative", "PER at the three learning rates (%)"], lines)


def int8_table(rows: list[Row]) -> str:
    lines = [[row.contender.removeprefix("trained in "), row.dtype, f"{100 * float(row.note):.2f}"] for row in rows]
    return f"{title(rows)}\n\n{table(['trained on', 'evaluated on', 'PER (%)'], lines)}"


def plain_table(rows: list[Row]) -> str:
    """The results of long, corpus and downstream, row by row."""
    lines = [
        [
            row.benchmark,
            row.contender,
            row.dtype,
            f"{row.audio_s / 60:.1f} min" if row.audio_s else "",
            f"{row.median_s:.4g} s",
            f"{row.peak_mib} MiB" if row.peak_mib else "",
        ]
        for row in rows
    ]
    return f"{title(rows)}\n\n{table(['', '', 'dtype', 'audio', 'time', 'peak memory'], lines)}"


def targets_table() -> str:
    """Every target on every machine, those of the latest run first."""
    rows = rows_of("extract", "int8", "long", "corpus", "downstream", "pretrain")
    groups = sorted(machines(rows).values(), key=lambda group: max(row.run for row in group), reverse=True)
    lines = [
        [target.what, f"{'at most' if target.at_most else 'at least'} {target.goal:g}", *map(target.cell, groups)]
        for target in TARGETS
    ]
    head = ["", "target", *(f"{group[0].machine} ({group[0].instructions})" for group in groups)]
    if all(row.device != "cuda" for row in rows):
        head.append("GPU")
        lines = [
            [*line, "not measured" if target.where == "cuda" else "–"]
            for line, target in zip(lines, TARGETS, strict=True)
        ]
    return table(head, lines)


TABLES = {
    "targets": targets_table,
    "single": lambda: blocks(extraction(exported=False), single_table),
    "exported": lambda: blocks(extraction(exported=True), single_table),
    "rates": lambda: blocks(rows_of("extract", "cost_curve"), rates_table),
    "batches": lambda: blocks(rows_of("extract"), batch_table),
    "int8": lambda: blocks(rows_of("int8"), int8_table),
    "long": lambda: blocks(rows_of("long"), plain_table),
    "corpus": lambda: blocks(rows_of("corpus", "downstream"), plain_table),
    "pretraining": lambda: blocks(rows_of("pretrain"), pretrain_table),
    "guidance": lambda: blocks(rows_of("guidance"), guidance_table),
    "feature cache": lambda: blocks(rows_of("feature_cache"), feature_cache_table),
}


def with_tables(text: str, tables: dict[str, Callable[[], str | None]] = TABLES) -> str:
    """A page with its tables regenerated."""
    return PLACE.sub(lambda found: f"{found[1]}{tables[found[2]]() or 'Not measured yet.'}\n{found[3]}", text)


def main() -> None:
    for page in PAGES:
        page.write_text(with_tables(page.read_text("utf-8")), "utf-8")
    draw_curve(CURVE)


if __name__ == "__main__":
    main()
