"""``s3prl-ofa report DIR``: results.csv, report.md, plots and report.html from the results of a sweep so far."""

import argparse
import base64
import functools
import html
import pathlib

import jinja2
import pandas as pd

from s3prl_ofa.arguments.report import FOLDER
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.sweep.job import Row
from s3prl_ofa.sweep.report import tables
from s3prl_ofa.sweep.report.aggregation import Summary, summarize
from s3prl_ofa.sweep.report.plots import PLOTS, draw_all
from s3prl_ofa.sweep.report.settings import percent


def run(args: argparse.Namespace) -> int:
    budget = {"gmacs": args.budget_gmacs, "total_ms": args.budget_ms}
    budget = {cost: limit for cost, limit in budget.items() if limit is not None}
    summary = summarize(args.folder, args.tolerance, budget)
    out = args.out or args.folder / FOLDER
    write_csv(summary.rows, out / "results.csv")
    plots = draw_all(summary, out)
    for name in ("report.md", "report.html"):
        with atomic_path(out / name) as temporary:
            text = render(name, summary, plots)
            temporary.write_text(text, "utf-8", errors="backslashreplace")  # logs may hold anything
    print(tables.completeness(summary))
    for found in summary.longest_periods:
        print(f"{found.curve}: {found.text}")
    for choice in summary.choices:
        print(tables.choice_sentence(choice))
    if summary.faults:
        print("\n".join([f"\n{tables.FAULTS}:", *summary.faults]))
    print(f"\n{out / 'report.html'}, report.md, results.csv, {', '.join(f'{stem}.png/.svg' for stem in plots)}")
    return 0


def render(name: str, summary: Summary, plots: dict[str, pathlib.Path]) -> str:
    """The text of ``report.md`` or ``report.html``. plots: the SVG files, by stem.

    The page is self-contained: the plots are in it, and nothing is loaded from a network.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["plain"] = functools.partial(html.escape, quote=False)  # what Markdown would take for HTML
    environment.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode("ascii")
    template = environment.get_template(f"{name}.jinja")
    return template.render(summary=summary, tables=tables, percent=percent, plots=plots, PLOTS=PLOTS)


def write_csv(rows: list[Row], path: pathlib.Path) -> None:
    """Writes a row per point, failed ones too; nested values become columns such as scores.wer."""
    # row by row, because pandas would turn whole numbers into floats in a column with empty cells
    flat = pd.DataFrame([pd.json_normalize(row).iloc[0].to_dict() for row in rows], dtype=object)
    flat = flat.map(lambda value: " | ".join(map(str, value)) if isinstance(value, list) else value)
    with atomic_path(path) as temporary:
        flat.to_csv(temporary, index=False, lineterminator="\n", errors="backslashreplace")
