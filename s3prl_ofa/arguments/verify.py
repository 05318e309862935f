"""The arguments of ``s3prl-ofa verify``."""

import pathlib

from s3prl_ofa.arguments.parser import CKPT_HELP, Parser


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Checks within a minute on a CPU whether a checkpoint is what it claims; the exit status is 1 if it is not."
    )
    parser.examples = (
        "s3prl-ofa verify checkpoint.pt",
        "s3prl-ofa verify checkpoint.pt --audio LibriSpeech/dev-clean --json verified.json",
    )
    parser.add_argument("ckpt", metavar="CKPT", help=CKPT_HELP)
    parser.add_argument("--audio", metavar="DIR", help="a folder of speech to measure on (default: bundled speech)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the findings as JSON")
