"""The arguments of ``s3prl-ofa report``."""

import argparse
import pathlib
import re

from s3prl_ofa.arguments.parser import Parser

PERCENT = re.compile(r"(\d+(?:\.\d+)?)(%?)")
FOLDER = "report"


def add_arguments(parser: Parser) -> None:
    parser.examples = (
        "s3prl-ofa report sweeps/grid   # open sweeps/grid/report/report.html",
        "s3prl-ofa report sweeps/grid --tolerance 2% --out plots",
        "s3prl-ofa report sweeps/grid --budget-gmacs 0.3 --budget-ms 10   # the best setting for that",
    )
    parser.add_argument("folder", type=pathlib.Path, metavar="DIR", help="the output folder of s3prl-ofa sweep")
    parser.add_argument(
        "--tolerance",
        type=tolerance,
        default=0.05,
        metavar="T",
        help="how much worse than at 20 ms a score may be, relatively: 5%% (default) or 0.05",
    )
    parser.add_argument(
        "--budget-gmacs",
        type=budget,
        metavar="G",
        help="name the best setting up to G * 10^9 MACs per second of audio",
    )
    parser.add_argument(
        "--budget-ms", type=budget, metavar="MS", help="and up to MS milliseconds of wall time per second of audio"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="DIR", help=f"where the report goes (default: DIR/{FOLDER})"
    )


def budget(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a number above 0 is expected, found {text!r}")
    return value


def tolerance(text: str) -> float:
    found = PERCENT.fullmatch(text.strip())
    value = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"a share such as 5% or 0.05, below 1, is expected, found {text!r}")
    return value
