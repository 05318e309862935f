"""Reading, checking and writing checkpoints of every known format."""

from .contents import Checkpoint
from .conversion import convert
from .reading import load, read_checkpoint

__all__ = ["Checkpoint", "convert", "load", "read_checkpoint"]
