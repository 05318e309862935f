"""The arguments of ``s3prl-ofa verify``."""

import pathlib

from s3prl_ofa.arguments.parser import CKPT_HELP, Parser


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Whether a checkpoint is what it claims, in a minute on a CPU; the exit status is 1 if it is not."
    )
    parser.examples = (
        "s3prl-ofa verify checkpoint.pt",
        "s3prl-ofa verify checkpoint.pt --audio LibriSpeech/dev-clean --json verified.json",
    )
    parser.add_argument("ckpt", metavar="CKPT", help=CKPT_HELP)
    parser.add_argument("--audio", metavar="DIR", help="a folder of speech to measure on (default: bundled)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write what was found as JSON, too")
