"""What fairseq 0.12.3 needs on today's torch, and to be killed safely, in one place; nothing is edited on disk."""

import argparse
import contextlib
import os
import shutil
import warnings
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.io.tensorboard import outlast_full_disk

KNOWN_WARNINGS = (
    "The version_base parameter is not specified",
    "'[^']*' is validated against ConfigStore schema",
    "Future Hydra versions will no longer change working directory",
    r"`torch\.nn\.utils\.weight_norm` is deprecated",
    r"`torch\.cuda\.amp\.autocast\(args\.\.\.\)` is deprecated",
    "'pin_memory' argument is set as true but no accelerator is found",
    "Converting a tensor with requires_grad=True to a scalar",
)


def namespace_in_checkpoints() -> None:
    """From 2.6 on ``torch.load`` refuses ``argparse.Namespace``, in which fairseq's older files keep their settings."""
    torch.serialization.add_safe_globals([argparse.Namespace])


def atomic_copies() -> None:
    """fairseq writes one checkpoint whole and copies it to its other names in place: a kill there leaves half a
    ``checkpoint_last.pt``, from which nothing resumes."""
    original = PathManager.copy
    if hasattr(original, "__wrapped__"):
        return

    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool | str:
        if not os.path.isfile(src_path):  # a place that only its path manager knows
            return original(src_path, dst_path, overwrite)
        with atomic_path(dst_path) as temporary:
            shutil.copyfile(src_path, temporary)
        return True

    copy.__wrapped__ = original
    PathManager.copy = staticmethod(copy)


def atomic_saves() -> None:
    """Saves checkpoints whole or not at all: where a disk is full, fairseq tries three times and leaves a part."""
    original = checkpoint_utils.torch_persistent_save
    if hasattr(original, "__wrapped__"):
        return

    def save(obj: Any, filename: str, async_write: bool = False) -> None:
        if async_write or not PathManager.supports_rename(filename):  # paths that only fairseq's path manager can write
            return original(obj, filename, async_write)
        with atomic_path(filename) as temporary, temporary.open("wb") as file:
            torch.save(obj, file)

    save.__wrapped__ = original
    checkpoint_utils.torch_persistent_save = save


def known_warnings() -> None:
    """What hydra and torch say about fairseq's own code, which nobody who trains can change."""
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", rf"\s*{message}")


def apply_mends() -> None:
    known_warnings()
    namespace_in_checkpoints()
    atomic_copies()
    atomic_saves()
    with contextlib.suppress(ImportError):  # fairseq then logs without it
        from tensorboard.summary.writer.record_writer import RecordWriter

        outlast_full_disk(RecordWriter)
