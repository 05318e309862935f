"""Our own file: safetensors with fairseq's names for the weights and the model's config, as JSON, in the metadata."""

import json
import os

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from ..files import atomic_path
from ..version import __version__
from .config import ModelConfig

FORMAT = "s3prl-ofa 1"  # what the metadata's "format" says; the number grows when old readers could not read it


def write_safetensors(
    path: str | os.PathLike,
    config: ModelConfig,
    weights: dict[str, Tensor],
    extra_metadata: dict[str, str] | None = None,
) -> None:
    """Writes the file whole or not at all. ``weights`` under fairseq's names; further metadata keys as text."""
    metadata = {
        **(extra_metadata or {}),
        "format": FORMAT,
        "version": __version__,
        "config": json.dumps(config.to_dict()),
    }
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary, metadata)


def read_safetensors(path: str | os.PathLike) -> tuple[ModelConfig, dict[str, Tensor], dict[str, str]]:
    """Config, weights under fairseq's names, and all metadata.

    Raises CheckpointError for a file that is not safetensors, is damaged, or is not one of ours.
    """
    try:
        with safe_open(os.fspath(path), "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None
    if metadata.get("format") != FORMAT or "config" not in metadata:
        raise CheckpointError(
            f"{path}: safetensors without the metadata of a file of ours (format {FORMAT!r}), "
            f"found format {metadata.get('format')!r}; a Hugging Face model is read by its folder"
        )
    try:
        config = ModelConfig.from_dict(json.loads(metadata["config"]))
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the config in its metadata cannot be used ({error})") from None
    return config, weights, metadata
