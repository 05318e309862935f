"""Reading, checking and writing checkpoints of every known format."""

from s3prl_ofa.checkpoint.contents import Checkpoint
from s3prl_ofa.checkpoint.conversion import convert
from s3prl_ofa.checkpoint.reading import load, read_checkpoint

__all__ = ["Checkpoint", "convert", "load", "read_checkpoint"]
