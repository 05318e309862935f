"""Reads the upstream from an S3PRL experiment that trained it (``run_downstream -f``): a ``states-*.ckpt``."""

import pathlib
import re
from typing import Any

from torch import Tensor

from s3prl_ofa.checkpoint.contents import as_weights
from s3prl_ofa.checkpoint.huggingface import OFA_PREFIX, internal_weights
from s3prl_ofa.checkpoint.plain_values import plain, unwrap
from s3prl_ofa.checkpoint.torch_file import read_torch_file
from s3prl_ofa.errors import CheckpointError, shown
from s3prl_ofa.model.config import ModelConfig

KEYS = ("Args", "Config", "Featurizer", "Downstream")  # of every checkpoint of S3PRL's run_downstream
UPSTREAM, UPSTREAM_CONFIG = "Upstream", "UpstreamConfig"  # with -f: the weights, and the fields of ModelConfig
STATES = re.compile(r"states-(\d+)\.ckpt")


def states_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The ``states-<step>.ckpt`` of a folder, the last step first."""
    steps = {path: int(found[1]) for path in folder.glob("states-*.ckpt") if (found := STATES.fullmatch(path.name))}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def read_layer_weights(path: pathlib.Path, layers: int) -> tuple[list[float], bool]:
    """The weights of ``layers`` hidden states that an experiment learnt, and whether states are normalized first.

    path: the experiment's folder or one of its checkpoints. Raises CheckpointError naming it.
    """
    file = next(iter(states_files(path)), path) if path.is_dir() else path
    try:
        state = read_torch_file(file) if file.is_file() else None
        if not isinstance(state, dict) or not set(KEYS) <= set(state):
            raise CheckpointError("neither an experiment of run_downstream nor a checkpoint of one")
        weights = as_weights(state["Featurizer"], "its Featurizer entry").get("weights")
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    if weights is None or weights.shape != (layers,):
        found = "none" if weights is None else tuple(weights.shape)
        raise CheckpointError(f"{file}: expected the weights of {layers} hidden states, found {found}")
    args = unwrap(state["Args"])
    normalize = isinstance(args, dict) and args.get("upstream_feature_normalize") is True
    return weights.double().softmax(0).tolist(), normalize


def read_state(state: dict[str, Any]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Config and weights of the upstream. Raises CheckpointError, without the file's name, if it is not one of ours."""
    if UPSTREAM_CONFIG not in state:
        args = unwrap(state["Args"])
        found = shown(args.get("upstream_ckpt")) if isinstance(args, dict) else "its -k"
        raise CheckpointError(
            f"an experiment that did not train an ofa_wav2vec2 upstream (-f), so it has no weights of one; use {found}"
        )
    try:
        config = ModelConfig.from_dict(plain(state[UPSTREAM_CONFIG]))
    except ValueError as error:
        raise CheckpointError(f"its {UPSTREAM_CONFIG} cannot be used ({error})") from error
    weights = as_weights(state.get(UPSTREAM), f"its {UPSTREAM} entry")
    return config, internal_weights({name.removeprefix(OFA_PREFIX): tensor for name, tensor in weights.items()}, config)
