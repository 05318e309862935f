"""Datasets of S3PRL's tasks in data workers that are not forked from this process.

macOS, Windows, and Linux since Python 3.14 start workers as new interpreters, in which S3PRL is not patched. So the
pickle of a dataset names this module first: importing it registers the patches before S3PRL is imported.
"""

import importlib
from types import ModuleType
from typing import Any

from torch.utils.data import Dataset

from s3prl_ofa.superb.compat.missing_packages import stand_ins


def register_in_workers(module: ModuleType) -> None:
    """Makes the dataset classes of a module, and their subclasses, pickle through ``rebuild``."""
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Dataset) and value.__module__ == module.__name__:
            value.__reduce_ex__ = reduce_dataset


def reduce_dataset(dataset: Dataset, protocol: int) -> tuple[Any, ...]:
    return rebuild, (type(dataset).__module__, type(dataset).__qualname__, vars(dataset))


def rebuild(module: str, name: str, state: dict[str, Any]) -> Dataset:
    """The dataset in the worker, where importing this module has patched S3PRL."""
    with stand_ins():
        dataset = object.__new__(getattr(importlib.import_module(module), name))
    vars(dataset).update(state)
    return dataset
