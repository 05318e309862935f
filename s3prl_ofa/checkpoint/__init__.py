"""Reads, checks, converts and writes checkpoints of every known format."""

from s3prl_ofa.checkpoint.contents import Checkpoint
from s3prl_ofa.checkpoint.conversion import convert
from s3prl_ofa.checkpoint.reading import load, read_checkpoint
from s3prl_ofa.checkpoint.sources import checkpoint_path, is_remote

__all__ = ["Checkpoint", "checkpoint_path", "convert", "is_remote", "load", "read_checkpoint"]
