"""Lets S3PRL's hub be imported without transformers, which takes longer than all else that it imports.

Its upstreams from the Hugging Face Hub (hf_hubert, hf_wav2vec2) are the only ones that need it. While their ``hubconf``
is imported, ``expert`` is a module whose UpstreamExpert imports the real one when it is called.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

UPSTREAMS = ("s3prl.upstream.hf_hubert", "s3prl.upstream.hf_wav2vec2")

postponed: dict[str, ModuleType] = {}


def postpone_expert(package: ModuleType) -> None:
    """To be called when the package of an upstream has been imported, and not yet its hubconf."""
    name = f"{package.__name__}.expert"
    if name in sys.modules:
        return

    def expert(*args: Any, **kwargs: Any) -> Any:
        return importlib.import_module(name).UpstreamExpert(*args, **kwargs)

    stand_in = postponed[name] = sys.modules[name] = ModuleType(name)
    stand_in.UpstreamExpert = expert  # type: ignore[attr-defined]


def restore_expert(hubconf: ModuleType) -> None:
    """To be called when the hubconf has been imported: from now on ``expert`` is the real one."""
    name = f"{hubconf.__name__.removesuffix('.hubconf')}.expert"
    stand_in = postponed.pop(name, None)
    if stand_in is not None and sys.modules.get(name) is stand_in:
        del sys.modules[name]
