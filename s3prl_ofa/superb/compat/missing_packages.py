"""Stand-ins for packages of which S3PRL's tasks use one function, or none, where they are not installed.

They are in ``sys.modules`` only while S3PRL's modules are imported, so that no other library takes them for the
packages.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch.utils.data import DistributedSampler, Sampler

from s3prl_ofa.errors import UsageError


class DistributedSamplerWrapper(DistributedSampler):
    """Divides what a random sampler draws among the processes that train together, which all draw the same.

    In the place of catalyst's class of this name, for speech_commands.
    """

    def __init__(self, sampler: Sampler) -> None:
        super().__init__(range(len(sampler)), shuffle=False)
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        self.sampler.generator = torch.Generator().manual_seed(self.epoch)
        drawn = list(self.sampler)
        return iter([drawn[place] for place in super().__iter__()])


def no_predictions(*args: Any, **kwargs: Any) -> None:
    """In the place of ``h5py.File``."""
    raise UsageError(
        "sd saves its predictions with h5py: pip install 's3prl-ofa[superb]', or leave them out with "
        "-o config.downstream_expert.scorerc.save_predictions=False"
    )


STAND_INS: dict[str, dict[str, Any]] = {
    "h5py": {"File": no_predictions},
    "sox": {"Transformer": None},  # which sv_voxceleb1 imports and does not use
    "catalyst": {},
    "catalyst.data": {},
    "catalyst.data.sampler": {"DistributedSamplerWrapper": DistributedSamplerWrapper},
}


@contextlib.contextmanager
def standing_in() -> Iterator[None]:
    """``STAND_INS`` can be imported in this block, those whose package is not installed."""
    missing = [name for name in STAND_INS if name not in sys.modules and not installed(name.partition(".")[0])]
    for name in missing:
        sys.modules[name] = ModuleType(name, "Stand-in of s3prl_ofa for a package that is not installed")
        vars(sys.modules[name]).update(STAND_INS[name])
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def import_expert(downstream: str) -> ModuleType:
    """The module ``expert`` of a task, by S3PRL's name. Raises UsageError naming a package that it lacks."""
    try:
        with standing_in():
            return importlib.import_module(f"s3prl.downstream.{downstream}.expert")
    except ModuleNotFoundError as error:
        raise UsageError(f"-d {downstream} needs the package {error.name}: pip install {error.name}") from None
