"""The arguments of ``s3prl-ofa link``."""

import pathlib

from s3prl_ofa.arguments.parser import Parser


def add_arguments(parser: Parser) -> None:
    parser.examples = ("s3prl-ofa link s3prl   # then, there: run_downstream.py -u ofa_wav2vec2 -k CKPT ...",)
    parser.add_argument("checkout", type=pathlib.Path, help="a source checkout of S3PRL, or the s3prl folder inside it")
    parser.add_argument("--force", action="store_true", help="update a folder from another version of s3prl-ofa")
