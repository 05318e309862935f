"""The arguments of ``s3prl-ofa push``."""

from s3prl_ofa.arguments.parser import CKPT_HELP, Parser


def add_arguments(parser: Parser) -> None:
    parser.examples = (
        "s3prl-ofa push checkpoint.pt user/ofa-base",
        "s3prl-ofa push checkpoint.pt user/ofa-base --private --revision step-5000",
    )
    parser.add_argument("ckpt", metavar="CKPT", help=CKPT_HELP)
    parser.add_argument("repository", metavar="USER/NAME", help="repository on the Hugging Face Hub; created if new")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch to write to; created if new (default: main)")
