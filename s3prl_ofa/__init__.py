"""A wav2vec 2.0 whose frame period is chosen at run time, for S3PRL and on its own.

``s3prl_ofa.load`` reads a checkpoint of any known format. Importing this package imports nothing heavy: torch is
imported when one of its names is first used, S3PRL only by ``s3prl_ofa.superb``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from s3prl_ofa.version import __version__

if TYPE_CHECKING:
    from s3prl_ofa.checkpoint import load
    from s3prl_ofa.model import ExtractOutput, ModelConfig, OFAWav2Vec2

__all__ = ["ExtractOutput", "ModelConfig", "OFAWav2Vec2", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{'checkpoint' if name == 'load' else 'model'}"), name)
