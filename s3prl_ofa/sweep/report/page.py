"""The report as one HTML file that needs nothing else: plots are in it, and nothing comes from a network."""

import base64
import pathlib

import jinja2

from s3prl_ofa.sweep.report import tables
from s3prl_ofa.sweep.report.aggregation import Summary, percent

TEMPLATE = "page.html.jinja"


def page(summary: Summary, plots: dict[str, pathlib.Path], captions: dict[str, str]) -> str:
    """plots: SVG files by name. captions: by the same."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    images = {stem: base64.b64encode(path.read_bytes()).decode("ascii") for stem, path in plots.items()}
    template = environment.get_template(TEMPLATE)
    return template.render(summary=summary, tables=tables, percent=percent, images=images, captions=captions)
