"""``s3prl-ofa convert IN OUT``."""

import argparse
import logging

from s3prl_ofa.checkpoint.conversion import convert

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Returns the exit status. Raises UsageError and CheckpointError, see ``convert``."""
    written = convert(args.source, args.target, args.to, args.force, args.dtype)
    logger.info("written: %s", written)
    return 0
