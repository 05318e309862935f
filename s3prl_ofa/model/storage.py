"""This project's file format: safetensors with fairseq's weight names and the config, as JSON, in the metadata."""

import json
import os

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from s3prl_ofa.errors import CheckpointError, shown, shown_text
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.model.config import ModelConfig
from s3prl_ofa.version import __version__

FORMAT = "s3prl-ofa 1"  # the metadata's "format"; the number grows when older versions cannot read new files
MAX_HEADER = 2**22  # bytes; Base's with all of fairseq's configuration has 30,000


def write_safetensors(
    path: str | os.PathLike,
    config: ModelConfig,
    weights: dict[str, Tensor],
    extra_metadata: dict[str, str] | None = None,
) -> None:
    """Writes the file atomically. weights: under fairseq's names. extra_metadata: further keys of its metadata."""
    metadata = {
        **(extra_metadata or {}),
        "format": FORMAT,
        "version": __version__,
        "config": json.dumps(config.to_dict()),
    }
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary, metadata)


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of any safetensors file, by the names it gives them, and its metadata.

    The library checks that the tensors fill the file without gaps or overlaps; the format has no checksums. Raises
    CheckpointError for a file that is not safetensors or is damaged.
    """
    try:
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MAX_HEADER:
            raise CheckpointError(f"{path}: a safetensors header of {header} bytes; expected at most {MAX_HEADER}")
        with safe_open(os.fspath(path), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({shown_text(str(error))})") from None


def read_safetensors(path: str | os.PathLike) -> tuple[ModelConfig, dict[str, Tensor], dict[str, str]]:
    """Config, weights under fairseq's names, and all metadata.

    Raises CheckpointError for a file that is not safetensors, is damaged, or was not written by this project.
    """
    weights, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT or "config" not in metadata:
        raise CheckpointError(
            f"{path}: safetensors without this project's metadata: expected format {FORMAT!r}, "
            f"found {shown(metadata.get('format'))}; a Hugging Face model is read from its folder"
        )
    try:
        config = ModelConfig.from_dict(json.loads(metadata["config"]))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the config in its metadata cannot be used ({error})") from None
    return config, weights, metadata
