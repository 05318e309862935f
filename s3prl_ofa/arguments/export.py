"""The arguments of ``s3prl-ofa export``."""

import pathlib

from s3prl_ofa.arguments.parser import CKPT_HELP, Parser


def add_arguments(parser: Parser) -> None:
    parser.examples = (
        "s3prl-ofa export tiny tiny.onnx --lambd-input",
        "s3prl-ofa export checkpoint.pt base_half.onnx --lambd 0.5 --layers 9",
    )
    parser.add_argument("ckpt", metavar="CKPT", help=CKPT_HELP)
    parser.add_argument("target", type=pathlib.Path, metavar="OUT.onnx", help="the file to write")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--lambd", type=float, default=0.0, metavar="L", help="the rate of the file (default: 0, 20 ms)")
    rate.add_argument("--lambd-input", action="store_true", help="make lambd an input of the file")
    parser.add_argument("--layers", type=int, metavar="K", help="run the first K layers of the encoder (default: all)")
    parser.add_argument("--force", action="store_true", help="overwrite OUT.onnx if it exists")
