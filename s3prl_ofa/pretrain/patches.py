"""Patches that fairseq 0.12.3 needs on today's torch and to survive being killed; nothing is edited on disk."""

import contextlib
import os
import shutil
import warnings
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.file_io import PathManager

from s3prl_ofa.checkpoint.safe_loading import namespace_in_checkpoints
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.io.tensorboard import outlast_full_disk

copy, save = PathManager.copy, checkpoint_utils.torch_persistent_save  # fairseq's
KNOWN_WARNINGS = (  # from hydra and torch about fairseq's code, which users cannot change
    "The version_base parameter is not specified",
    "'[^']*' is validated against ConfigStore schema",
    "Future Hydra versions will no longer change working directory",
    r"`torch\.nn\.utils\.weight_norm` is deprecated",
    r"`torch\.cuda\.amp\.autocast\(args\.\.\.\)` is deprecated",
    "'pin_memory' argument is set as true but no accelerator is found",
    "Converting a tensor with requires_grad=True to a scalar",
)


def atomic_copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool | str:
    """fairseq's copy of a checkpoint to its other names, but atomic: a kill during the copy would leave half a
    ``checkpoint_last.pt``, from which training cannot resume."""
    if not os.path.isfile(src_path):  # a path that only fairseq's path manager knows
        return copy(src_path, dst_path, overwrite)
    with atomic_path(dst_path) as temporary:
        shutil.copyfile(src_path, temporary)
    return True


def atomic_save(obj: Any, filename: str, async_write: bool = False) -> None:
    """fairseq's saving, but atomic: on a full disk, fairseq tries three times and leaves a part of the file."""
    if async_write or not PathManager.supports_rename(filename):  # a path that only fairseq's path manager can write
        return save(obj, filename, async_write)
    with atomic_path(filename) as temporary, temporary.open("wb") as file:
        torch.save(obj, file)


def apply_patches() -> None:
    """Patches fairseq in this process. Call it once."""
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", rf"\s*{message}")
    namespace_in_checkpoints()
    # the letters of a fine-tuned model; torch sets the attributes of a new object and runs none of its code
    torch.serialization.add_safe_globals([Dictionary])
    PathManager.copy = staticmethod(atomic_copy)
    checkpoint_utils.torch_persistent_save = atomic_save
    with contextlib.suppress(ImportError):  # without tensorboard, fairseq trains without logging to it
        from tensorboard.summary.writer.record_writer import RecordWriter

        outlast_full_disk(RecordWriter)
