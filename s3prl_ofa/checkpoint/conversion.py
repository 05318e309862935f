"""Converts a checkpoint to another format."""

import dataclasses
import json
import os
import pathlib
import tempfile

import torch

from s3prl_ofa.arguments.convert import DTYPES, FORMATS
from s3prl_ofa.checkpoint import fairseq_format, huggingface, s3prl_format
from s3prl_ofa.checkpoint.contents import Checkpoint
from s3prl_ofa.checkpoint.reading import naming, read_checkpoint
from s3prl_ofa.errors import CheckpointError, UsageError
from s3prl_ofa.io.files import DiskFull, atomic_path
from s3prl_ofa.model.names import check_finite
from s3prl_ofa.model.storage import write_safetensors

SUFFIXES = {".safetensors": "safetensors", ".pt": "fairseq", ".pth": "fairseq", "": "huggingface"}
FOLDER_FILES = {huggingface.CONFIG, huggingface.PREPROCESSOR, huggingface.WEIGHTS}


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    to: str | None = None,
    force: bool = False,
    dtype: str | None = None,
) -> pathlib.Path:
    """Converts a checkpoint of any known format and returns ``target``.

    to: "safetensors", "fairseq", "s3prl" or "huggingface"; by default from the target's name: .safetensors; .pt or .pth
        for fairseq; no suffix for a Hugging Face folder.
    force: overwrite an existing target.
    dtype: "float16", "bfloat16" or "float32", to which the weights are rounded.

    Weights are kept bit for bit if the target has the same parametrisation; pretraining weights and fairseq's
    configuration are kept if the format has a place for them; training state (optimizer, updates) is dropped. Raises
    UsageError for an unknown format or dtype, an existing target without ``force``, or a model that the format cannot
    hold; CheckpointError for a source that cannot be read, or whose weights are not finite in the dtype.
    """
    if "://" in os.fspath(target):
        raise UsageError(f"{target}: the target must be a file or folder, found a URL")
    target = pathlib.Path(target)
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, found {dtype!r}")
    to = to or SUFFIXES.get(target.suffix)
    if to not in FORMATS:
        raise UsageError(f"{target}: the format must be one of {', '.join(FORMATS)}, found {to or target.suffix!r}")
    check_target(target, to == "huggingface", force)
    checkpoint = read_checkpoint(source)
    weights = rounded(checkpoint, None if dtype is None else getattr(torch, dtype))
    checkpoint = dataclasses.replace(checkpoint, weights=weights)
    with naming(checkpoint.path, (CheckpointError,)):
        if to == "huggingface":
            write_folder(target, checkpoint)
        elif to == "safetensors":
            metadata = {"model_cfg": json.dumps(checkpoint.model_cfg), "task_cfg": json.dumps(checkpoint.task_cfg)}
            write_safetensors(target, checkpoint.config, checkpoint.weights, metadata)
        else:
            state = (fairseq_format if to == "fairseq" else s3prl_format).write_state(checkpoint)
            with atomic_path(target) as temporary:
                torch.save(state, temporary)
    return target


def rounded(checkpoint: Checkpoint, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """The weights in ``dtype``; None keeps theirs. Raises CheckpointError naming a weight that is not finite in it."""
    weights = dict(checkpoint.weights)
    with naming(checkpoint.path):
        for name, weight in weights.items():
            if weight.is_floating_point():
                check_finite({name: weight}, dtype or weight.dtype)
                weights[name] = weight.to(dtype or weight.dtype)
    return weights


def check_target(target: pathlib.Path, folder: bool, force: bool) -> None:
    """Raises UsageError, before any work is done, if something at ``target`` must not be overwritten."""
    if not target.exists():
        return
    if not force:
        raise UsageError(f"{target} exists; --force (force=True) overwrites it")
    if target.is_dir() != folder:
        kinds = ("a folder", "a file") if folder else ("a file", "a folder")
        raise UsageError(f"{target} would become {kinds[0]} but is {kinds[1]}; remove it or choose another name")
    others = sorted({entry.name for entry in target.iterdir()} - FOLDER_FILES) if folder else []
    if others:
        raise UsageError(f"{target} holds {others[0]}, which is not part of a model; choose another folder")


def write_folder(target: pathlib.Path, checkpoint: Checkpoint) -> None:
    """Writes a Hugging Face folder beside ``target`` and renames it, so that no reader sees half of one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        new, old = pathlib.Path(scratch, "new"), pathlib.Path(scratch, "old")
        new.mkdir()
        try:
            huggingface.write_folder(new, checkpoint)
        except DiskFull as error:
            raise DiskFull(error.errno, error.strerror, str(target)) from error
        if target.exists():
            target.rename(old)  # removed with the scratch folder
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
