"""Reads a checkpoint of any known format."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import torch

from s3prl_ofa.checkpoint import experiment, fairseq_format, huggingface, s3prl_format
from s3prl_ofa.checkpoint.contents import DTYPES, Checkpoint, as_weights, check_sizes, named
from s3prl_ofa.checkpoint.sources import checkpoint_path, is_remote
from s3prl_ofa.checkpoint.torch_file import PICKLE_MAGIC, ZIP_MAGIC, read_torch_file
from s3prl_ofa.device import fastest_dtype, resolve_device
from s3prl_ofa.errors import CheckpointError, UsageError
from s3prl_ofa.model import OFAWav2Vec2
from s3prl_ofa.model.products import use_int8
from s3prl_ofa.model.storage import read_safetensors

GIT_LFS_MAGIC = b"version https://git-lfs"


@torch.inference_mode(False)  # inference tensors do not count changes, so no packed copies of such weights are kept
def load(
    path: str | os.PathLike, device: str | torch.device = "cpu", dtype: torch.dtype | str = torch.float32
) -> OFAWav2Vec2:
    """The model of a checkpoint of any known format, in eval mode, on ``device`` in ``dtype``.

    path: a file of the reference, of fairseq, converted for S3PRL or in this project's safetensors; the folder of a
        Hugging Face model, of our safetensors or of an S3PRL experiment that trained the upstream (``-f``); a
        repository on the Hugging Face Hub (``"user/name"``, ``"hf://user/name@revision"``) or a URL of one of these; or
        ``"tiny"``, the checkpoint that comes with this package. Nothing in it is run.
    device: a torch device, or ``"auto"`` for CUDA if there is a GPU, else the CPU.
    dtype: a torch dtype or its name; ``"auto"`` for bfloat16 where the device has instructions for it and float32
        elsewhere; or ``"int8"``, on a CPU, for linear layers in 8 bits and everything else as with ``"auto"``.

    Raises CheckpointError naming the file, what was found and what was expected, also for weights that are not finite
    in ``dtype``; UsageError for a device that cannot be used, or not with int8; ValueError for any other dtype.
    """
    named = {str(known).removeprefix("torch."): known for known in DTYPES}
    dtype = named.get(str(dtype).removeprefix("torch."), dtype)
    if dtype not in (*DTYPES, "auto", "int8"):
        raise ValueError(f"dtype must be one of {', '.join(named)}, auto or int8, found {dtype}")
    device = resolve_device(device)
    int8 = dtype == "int8"
    if int8 and device.type != "cpu":
        raise UsageError(f"dtype 'int8' is for the CPU, found device {device}; use bfloat16 or float16 there")
    if isinstance(dtype, str):
        dtype = fastest_dtype(device)
    checkpoint = read_checkpoint(path)
    model = OFAWav2Vec2(checkpoint.config).to(dtype)
    with naming(checkpoint.path):
        model.load_weights(checkpoint.weights)
    if int8:
        use_int8(model.projection)
        use_int8(model.encoder)
    return model.to(device).eval()


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Configuration and weights of a checkpoint of any known format, which is recognized by its content.

    path: as in ``load``. Raises CheckpointError naming the file if it is missing, damaged, not safe to read, not a
    checkpoint or not of a supported model.
    """
    source, path = path, checkpoint_path(path)
    try:
        with naming(path):
            checkpoint = read_folder(path) if path.is_dir() else read_file(path)
            check_sizes(checkpoint.config, checkpoint.weights)
    except CheckpointError as error:
        if not is_remote(source):
            raise
        raise CheckpointError(f"what was downloaded from {source} is not a checkpoint: {error}") from error
    return checkpoint


@contextlib.contextmanager
def naming(path: pathlib.Path, errors: tuple[type[Exception], ...] = (ValueError, OSError)) -> Iterator[None]:
    """Turns these errors, by default those of reading, into CheckpointErrors that begin with the file's name."""
    try:
        yield
    except errors as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        text = text.removeprefix(f"{path}: ")
        raise CheckpointError(f"{path}: {text}") from error


def read_folder(path: pathlib.Path) -> Checkpoint:
    """The checkpoint in a folder: a Hugging Face model, a single safetensors file of ours, or an experiment's last.

    Raises CheckpointError.
    """
    if states := experiment.states_files(path):
        return read_file(states[0])
    files = list(path.glob("*.safetensors"))
    if len(files) == 1 and not (path / huggingface.CONFIG).exists():
        return read_file(files[0])
    config, weights = huggingface.read_folder(path)
    return Checkpoint(config, weights, {}, {}, "huggingface", path)


def read_file(path: pathlib.Path) -> Checkpoint:
    """A checkpoint in one file. Raises CheckpointError."""
    if not path.exists():
        raise CheckpointError("no such file; expected a checkpoint file or the folder of a Hugging Face model")
    if not path.is_file():
        raise CheckpointError("not a regular file; expected a checkpoint file or the folder of a Hugging Face model")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError("an empty file; expected a checkpoint")
    if head.startswith(GIT_LFS_MAGIC):
        raise CheckpointError("a git-lfs pointer instead of the file; fetch it with git lfs pull")
    if head[8:9] == b"{":
        return read_ours(path)
    if not head.startswith((ZIP_MAGIC, PICKLE_MAGIC)):
        raise CheckpointError(f"begins with {head[:8]!r}; expected what torch.save or safetensors writes")
    return read_torch_state(path, read_torch_file(path))


def read_ours(path: pathlib.Path) -> Checkpoint:
    """A file in this project's format, with fairseq's configuration in its metadata if the source had it."""
    config, weights, metadata = read_safetensors(path)
    cfg = {}
    for key in ("model_cfg", "task_cfg"):
        try:
            cfg[key] = json.loads(metadata.get(key, "{}"))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{key} in its metadata is not JSON ({type(error).__name__})") from None
        if not isinstance(cfg[key], dict):
            raise CheckpointError(f"{key} in its metadata holds a {type(cfg[key]).__name__}; expected names and values")
    weights = as_weights(weights, "its content")
    return Checkpoint(config, weights, cfg["model_cfg"], cfg["task_cfg"], "safetensors", path)


def read_torch_state(path: pathlib.Path, state: Any) -> Checkpoint:
    """A checkpoint of S3PRL or fairseq, which differ in their keys."""
    if not isinstance(state, dict):
        raise CheckpointError(f"holds a {type(state).__name__}; expected the dict of a fairseq or S3PRL checkpoint")
    if set(s3prl_format.KEYS) <= set(state):
        return Checkpoint(*s3prl_format.read_state(state), "s3prl", path)
    if set(experiment.KEYS) <= set(state):
        return Checkpoint(*experiment.read_state(state), {}, {}, "experiment", path)
    if "model" in state and ("cfg" in state or "args" in state):
        return Checkpoint(*fairseq_format.read_state(state), "fairseq", path)
    if (path.parent / huggingface.CONFIG).is_file():
        raise CheckpointError("looks like part of a Hugging Face model; give its folder")
    found = named({str(key) for key in state}) or "none"
    raise CheckpointError(
        f"has the entries: {found}; expected model with cfg or args (fairseq), or "
        f"{', '.join(s3prl_format.KEYS)} (S3PRL)"
    )
