"""The arguments of ``s3prl-ofa demo``."""

from s3prl_ofa.arguments.parser import Parser, add_device_argument

PORT = 7860


def add_arguments(parser: Parser) -> None:
    parser.examples = (
        "s3prl-ofa demo   # prints the address of the page",
        "s3prl-ofa demo --ckpt checkpoint.pt --port 0",
    )
    parser.add_argument(
        "--ckpt", default="tiny", help="a checkpoint of any known format, or tiny, the bundled one (the default)"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"port of the page (default: {PORT}; 0: any free one)")
    add_device_argument(parser)
