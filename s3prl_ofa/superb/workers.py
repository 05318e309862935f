"""Datasets of S3PRL's tasks in data workers that are no copy of this process.

macOS and Windows, and from Python 3.14 on Linux too, start workers as fresh interpreters, in which S3PRL is as it was
installed. So a dataset names this module before all else in its pickle: S3PRL then knows us before it is imported.
"""

import importlib
from types import ModuleType
from typing import Any

from torch.utils.data import Dataset


def bring_us_along(module: ModuleType) -> None:
    """Changes how the datasets of a module, and those that inherit from them, are sent to a worker."""
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
