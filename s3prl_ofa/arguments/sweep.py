"""The arguments of ``s3prl-ofa sweep``."""

import pathlib

from s3prl_ofa.arguments.parser import Parser


def add_arguments(parser: Parser) -> None:
    parser.examples = (
        "s3prl-ofa sweep grid.yaml --dry-run   # lists the points",
        "s3prl-ofa sweep grid.yaml   # run it again after an interruption to resume",
        "s3prl-ofa sweep grid.yaml --out sweeps/second --cache-gb 20 --retry",
    )
    parser.add_argument("grid", type=pathlib.Path, metavar="GRID.yaml", help="what to vary; see docs/how-to/sweeps.md")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="DIR",
        help="folder for the results (default: out in the grid, or sweeps/NAME of the grid file)",
    )
    parser.add_argument(
        "--cache-gb",
        type=float,
        metavar="GB",
        help="keep features of frozen upstreams in DIR/features, up to GB * 10^9 bytes (default: cache_gb in the grid)",
    )
    parser.add_argument("--retry", action="store_true", help="run failed points again")
    parser.add_argument(
        "--dry-run", action="store_true", help="list the points, and estimate the time left from finished ones"
    )
