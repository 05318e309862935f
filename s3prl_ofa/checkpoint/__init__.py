"""Reads, checks, converts and writes checkpoints of every known format."""

from s3prl_ofa.checkpoint.contents import Checkpoint
from s3prl_ofa.checkpoint.conversion import convert
from s3prl_ofa.checkpoint.reading import checkpoint_path, load, read_checkpoint

__all__ = ["Checkpoint", "checkpoint_path", "convert", "load", "read_checkpoint"]
