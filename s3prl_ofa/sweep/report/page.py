"""The report as one HTML file that needs nothing else: plots are in it, and nothing comes from a network."""

import base64
import html
import pathlib
from collections.abc import Iterable, Sequence

from s3prl_ofa.sweep.report.aggregation import Summary, percent
from s3prl_ofa.sweep.report.tables import (
    HEADER,
    NOTHING,
    WRONG,
    fault_lines,
    is_whole,
    notes,
    overview,
    reach_rows,
    stand,
    table_rows,
)

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 Georgia, "Times New Roman", serif; color: #1a1a1a; max-width: 72rem; margin: 2.5rem auto;
  padding: 0 1.5rem; background: #fff; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.stand { color: #555; margin-top: 0; } p.stand.partial { color: #9a3b00; }
figure { margin: 1.6rem 0; text-align: center; } figure img { width: 100%; max-width: 60rem; }
figcaption, p.notes { color: #444; font-size: .88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; border-top: 1.5px solid #222; border-bottom: 1.5px solid #222;
  font-variant-numeric: tabular-nums; width: 100%; }
th { text-align: left; font-weight: 600; border-bottom: .75px solid #222; vertical-align: bottom; }
th, td { padding: .28rem .6rem; } td.number, th.number { text-align: right; white-space: nowrap; }
tr.first td { border-top: .75px solid #bbb; }
pre { background: #f6f6f6; padding: .6rem .8rem; font-size: .78rem; overflow-x: auto; }
"""
FIRST_NUMBER = HEADER.index("learning rate")  # column from which on the cells are numbers


def page(summary: Summary, plots: dict[str, pathlib.Path], captions: dict[str, str]) -> str:
    """plots: SVG files by name. captions: by the same."""
    overview_table = overview(summary)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>Sweep {html.escape(summary.folder.resolve().name)}</title><style>{STYLE}</style></head><body>",
        f"<h1>Sweep {html.escape(summary.folder.resolve().name)}</h1>",
        f'<p class="stand{"" if is_whole(summary) else " partial"}">{html.escape(stand(summary))}</p>',
        table(*overview_table, first_number=overview_table[0].index("frame period (ms)")),
        f"<h2>Longest frame period within {percent(summary.tolerance)} of the score at 20 ms</h2>",
        list_of(
            f"<b>{html.escape(task)}</b>, {html.escape(model)}: {html.escape(text)}"
            for task, model, text in reach_rows(summary)
        )
        if summary.reaches
        else f"<p>{NOTHING}</p>",
    ]
    for number, (stem, path) in enumerate(plots.items(), 1):
        image = base64.b64encode(path.read_bytes()).decode("ascii")
        parts.append(
            f'<figure><img alt="{html.escape(captions[stem])}" src="data:image/svg+xml;base64,{image}">'
            f"<figcaption><b>Figure {number}.</b> {html.escape(captions[stem])}. Error bars: standard deviation over "
            f"seeds.</figcaption></figure>"
        )
    parts += [
        "<h2>All settings</h2>",
        table(HEADER, table_rows(summary), FIRST_NUMBER, ruled=True),
        f'<p class="notes">{html.escape(notes(summary))}</p>',
    ]
    if summary.faults:
        parts += [f"<h2>{WRONG}</h2>", list_of(map(html.escape, fault_lines(summary)))]
    if summary.failed:
        parts.append("<h2>Failed</h2>")
        for row in summary.failed:
            log = html.escape("\n".join(row["log"]))
            parts.append(f"<p><b>{html.escape(row['point'])}</b>: {html.escape(row['error'])}</p><pre>{log}</pre>")
    if summary.missing:
        parts += ["<h2>No result yet</h2>", list_of(html.escape(name) for name in summary.missing)]
    return "\n".join([*parts, "</body></html>", ""])


def list_of(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], first_number: int, ruled: bool = False) -> str:
    """A table whose cells from column ``first_number`` on are numbers; ruled: a rule where the first one changes."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if index >= first_number else ''}>{html.escape(value)}</{tag}>"
            for index, value in enumerate(values)
        )

    body, before = [], None
    for row in rows:
        body.append(f"<tr{' class=first' if ruled and before not in (None, row[0]) else ''}>{cells('td', row)}</tr>")
        before = row[0]
    return (
        f'<div class="scroll"><table><thead><tr>{cells("th", header)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
