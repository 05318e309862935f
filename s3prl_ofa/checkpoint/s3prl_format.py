"""Reads and writes S3PRL's converted checkpoints: fairseq's weights and configuration under other keys."""

from typing import Any

from torch import Tensor

from s3prl_ofa.checkpoint.contents import Checkpoint, as_weights
from s3prl_ofa.checkpoint.fairseq_format import fairseq_parts, read_model
from s3prl_ofa.checkpoint.plain_values import plain
from s3prl_ofa.errors import CheckpointError
from s3prl_ofa.model.config import ModelConfig

KEYS = ("task_cfg", "model_cfg", "model_weight")


def read_state(state: dict[str, Any]) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Config, weights, model_cfg and task_cfg. Raises CheckpointError, without the file's name."""
    weights = as_weights(state["model_weight"], "its model_weight entry")
    model_cfg, task_cfg = plain(state["model_cfg"]), plain(state["task_cfg"])
    for name, section in {"model_cfg": model_cfg, "task_cfg": task_cfg}.items():
        if not isinstance(section, dict):
            raise CheckpointError(f"its {name} entry is {type(section).__name__}; expected a configuration")
    return read_model(model_cfg, task_cfg, weights)


def write_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The dict that S3PRL's converter would write for the same fairseq file."""
    model_cfg, task_cfg, weights = fairseq_parts(checkpoint)
    weights = {name: weight.clone() for name, weight in weights.items()}
    return {"task_cfg": task_cfg, "model_cfg": model_cfg, "model_weight": weights}
