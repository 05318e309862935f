"""The arguments of ``s3prl-ofa unlink``."""

import pathlib

from s3prl_ofa.arguments.parser import Parser


def add_arguments(parser: Parser) -> None:
    parser.examples = ("s3prl-ofa unlink s3prl",)
    parser.add_argument("checkout", type=pathlib.Path, help="the checkout that was linked")
