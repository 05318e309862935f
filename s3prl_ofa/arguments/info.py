"""The arguments of ``s3prl-ofa info``."""

from s3prl_ofa.arguments.parser import CKPT_HELP, Parser, add_device_argument


def add_arguments(parser: Parser) -> None:
    parser.examples = (
        "s3prl-ofa info tiny",
        "s3prl-ofa info checkpoint.pt --audio speech.flac more_speech --json",
    )
    parser.add_argument("ckpt", metavar="CKPT", help=CKPT_HELP)
    parser.add_argument(
        "--audio", nargs="+", metavar="FILES", help="audio files or folders to measure on (default: bundled speech)"
    )
    add_device_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
