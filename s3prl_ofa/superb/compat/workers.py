"""Datasets of S3PRL's tasks in data workers that are not forked from this process.

macOS and Windows, and Linux from Python 3.14 on, start workers as fresh interpreters, in which S3PRL is not patched. So
the pickle of a dataset names this module before all else: importing it registers us before S3PRL is imported.
"""

import importlib
from types import ModuleType
from typing import Any

from torch.utils.data import Dataset


def register_in_workers(module: ModuleType) -> None:
    """Changes how the datasets of a module, and of classes that inherit from them, are sent to a worker."""
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Dataset) and value.__module__ == module.__name__:
            value.__reduce_ex__ = reduce_dataset


def reduce_dataset(dataset: Dataset, protocol: int) -> tuple[Any, ...]:
    return rebuild, (type(dataset).__module__, type(dataset).__qualname__, vars(dataset))


def rebuild(module: str, name: str, state: dict[str, Any]) -> Dataset:
    """The dataset in the worker: importing this module's package has registered us there."""
    dataset = object.__new__(getattr(importlib.import_module(module), name))
    vars(dataset).update(state)
    return dataset
