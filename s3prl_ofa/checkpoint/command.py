"""``s3prl-ofa convert IN OUT``."""

import argparse

from s3prl_ofa.checkpoint.conversion import convert
from s3prl_ofa.output import tell


def run(args: argparse.Namespace) -> int:
    """Returns the exit status. Raises UsageError and CheckpointError, see ``convert``."""
    tell(f"written: {convert(args.source, args.target, args.to, args.force, args.dtype)}")
    return 0
