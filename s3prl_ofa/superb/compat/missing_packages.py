"""Stand-ins for packages that are not installed and of which S3PRL's tasks use one function or none.

They are in ``sys.modules`` only while S3PRL's modules are imported, so that no other library mistakes them for the real
packages.
"""

import contextlib
import importlib
import importlib.util
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DistributedSampler, Sampler

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.compat.shims import ModuleOverlay


class DistributedSamplerWrapper(DistributedSampler):
    """Divides what a random sampler draws, which is the same in every process, among the processes of a training.

    Replaces catalyst's class of the same name, for speech_commands.
    """

    def __init__(self, sampler: Sampler) -> None:
        super().__init__(range(len(sampler)), shuffle=False)
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        self.sampler.generator = torch.Generator().manual_seed(self.epoch)
        drawn = list(self.sampler)
        return iter([drawn[place] for place in super().__iter__()])


class PrettyTree(ElementTree.ElementTree):
    """lxml's ElementTree as quesst14_dtw writes it."""

    def write(self, file: str, pretty_print: bool = False, **options: Any) -> None:
        if pretty_print:
            ElementTree.indent(self)
        super().write(file, **options)


def dtw(x: np.ndarray, step_pattern: str, open_begin: bool, open_end: bool, **unused: Any) -> SimpleNamespace:
    """dtw-python's function of this name for the step pattern "asymmetric": each row (query frame) is matched once, and
    each step skips at most one column (document frame). x: distances (rows, columns).

    Raises UsageError for another step pattern.
    """
    if step_pattern != "asymmetric":
        raise UsageError(f"the step pattern {step_pattern} needs the package dtw-python: pip install dtw-python")
    costs = x[0].copy() if open_begin else np.concatenate([x[0, :1], np.full(x.shape[1] - 1, np.inf)])
    for row in x[1:]:
        padded = np.concatenate([[np.inf, np.inf], costs])
        costs = row + np.minimum(np.minimum(padded[2:], padded[1:-1]), padded[:-2])
    return SimpleNamespace(normalizedDistance=float(costs.min() if open_end else costs[-1]) / len(x))


def no_predictions(*args: Any, **kwargs: Any) -> None:
    """Replaces ``h5py.File``."""
    raise UsageError(
        "sd saves its predictions with h5py: pip install 's3prl-ofa[superb]', or leave them out with "
        "-o config.downstream_expert.scorerc.save_predictions=False"
    )


STAND_INS: dict[str, dict[str, Any]] = {
    "h5py": {"File": no_predictions},
    "dtw": {"dtw": dtw},
    "lxml": {"etree": ModuleOverlay(ElementTree, ElementTree=PrettyTree)},
    "sox": {"Transformer": None},  # sv_voxceleb1 imports it and does not use it
    "catalyst": {},
    "catalyst.data": {},
    "catalyst.data.sampler": {"DistributedSamplerWrapper": DistributedSamplerWrapper},
}


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Makes the ``STAND_INS`` of packages that are not installed importable within this block."""
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
    """Whether a package is installed; a folder of that name in the working directory does not count."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def import_expert(downstream: str) -> ModuleType:
    """The module ``expert`` of a task, given S3PRL's name of it. Raises UsageError naming a missing package."""
    try:
        with stand_ins():
            return importlib.import_module(f"s3prl.downstream.{downstream}.expert")
    except ModuleNotFoundError as error:
        raise UsageError(f"-d {downstream} needs the package {error.name}: pip install {error.name}") from None
