"""``s3prl-ofa convert IN OUT``."""

import argparse
import logging

from s3prl_ofa.checkpoint.conversion import DTYPES, FORMATS, convert

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="IN", help="a checkpoint of any known format: a file or a Hugging Face folder"
    )
    parser.add_argument(
        "target", metavar="OUT", help="what to write: *.safetensors, *.pt (fairseq) or a folder (Hugging Face)"
    )
    parser.add_argument("--to", choices=FORMATS, help="the format of OUT (default: by its name)")
    parser.add_argument("--dtype", choices=DTYPES, help="round the weights to this dtype (default: keep theirs)")
    parser.add_argument("--force", action="store_true", help="overwrite OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Returns the exit status. Raises UsageError and CheckpointError, see ``convert``."""
    written = convert(args.source, args.target, args.to, args.force, args.dtype)
    logger.info("written: %s", written)
    return 0
