"""What a checkpoint holds once it is read, whatever its format, and the checks and name changes all formats share."""

import dataclasses
import pathlib
import re
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..model.config import ModelConfig

POS_CONV = "encoder.pos_conv.0"
# Newer torch calls the two halves of a weight-normed weight by these names.
PARAMETRIZED = {
    f"{POS_CONV}.parametrizations.weight.original0": f"{POS_CONV}.weight_g",
    f"{POS_CONV}.parametrizations.weight.original1": f"{POS_CONV}.weight_v",
}
COMPRESSOR = "cif_subsampler."
SHOWN = 5  # names in one message


@dataclasses.dataclass
class Checkpoint:
    """A checkpoint of any format.

    ``weights`` are under fairseq's names, with what only pretraining needs, the weight of the positional convolution
    either whole or as ``weight_g`` and ``weight_v``, as the file has it. ``model_cfg`` and ``task_cfg`` are fairseq's
    configuration as plain values, empty where the format has none.
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    model_cfg: dict[str, Any]
    task_cfg: dict[str, Any]
    format: str
    path: pathlib.Path


def named(names: list[str] | set[str]) -> str:
    """A list for a message, cut after a few names."""
    names = sorted(names)
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def as_weights(value: Any, where: str) -> dict[str, Tensor]:
    """A state dict as a plain dict with today's names. Raises CheckpointError when it is not one of dense tensors."""
    if not isinstance(value, dict) or not value:
        raise CheckpointError(f"{where} is {describe(value)}; expected a state dict with the model's weights")
    weights = {}
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{where} holds {describe(tensor)} under {name!r}; expected tensors by name")
        dense = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided and not tensor.is_nested
        if not dense or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(f"the weight {name} is sparse, quantized or without data; expected a dense tensor")
        if not tensor.is_floating_point() and tensor.dim():
            raise CheckpointError(f"the weight {name} is of {tensor.dtype}; expected floating point numbers")
        weights[PARAMETRIZED.get(name, name)] = tensor.detach()
    return weights


def describe(value: Any) -> str:
    """The kind of a value, for a message."""
    return "empty" if isinstance(value, dict | list) and not value else f"a {type(value).__name__}"


def split_weight_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The positional convolution as ``weight_g`` (1, 1, kernel) and ``weight_v``, as fairseq holds it."""
    if f"{POS_CONV}.weight" not in weights:
        return weights
    weights = dict(weights)
    whole = weights.pop(f"{POS_CONV}.weight")
    norm = whole.float().norm(dim=(0, 1), keepdim=True)
    # A step of the kernel that is all zeros has no direction: any one will do, its length is zero.
    direction = torch.where(norm == 0, torch.ones_like(whole.float()), whole.float())
    return weights | {f"{POS_CONV}.weight_g": norm.to(whole.dtype), f"{POS_CONV}.weight_v": direction.to(whole.dtype)}


def codebook_sizes(weights: dict[str, Tensor]) -> tuple[int, int, int] | None:
    """Groups, codes a group and width of a code, from the quantizer's weights; None without a quantizer.

    Raises CheckpointError when its weights contradict each other.
    """
    if not {"quantizer.vars", "project_q.weight"} <= set(weights):
        return None
    codes, projection = weights["quantizer.vars"].shape, weights["project_q.weight"].shape
    if len(codes) == 3 and len(projection) == 2 and codes[2] > 0:
        groups = projection[1] // codes[2]
        if groups > 0 and projection[1] == groups * codes[2] and codes[1] % groups == 0:
            return groups, codes[1] // groups, codes[2]
    raise CheckpointError(
        f"quantizer.vars of shape {tuple(codes)} and project_q.weight of shape {tuple(projection)} do not fit together"
    )


def check_sizes(config: ModelConfig, weights: dict[str, Tensor]) -> None:
    """Compares the configuration with the weights' sizes before a model of that size is made.

    Raises CheckpointError naming the weight, its shape and the expected one, or the number of layers.
    """
    inputs, expected = 1, {}
    for index, (channels, kernel, _) in enumerate(config.conv_layers):
        expected[f"feature_extractor.conv_layers.{index}.0.weight"] = (channels, inputs, kernel)
        inputs = channels
    expected["layer_norm.weight"] = (inputs,)
    if config.projection:
        expected["post_extract_proj.weight"] = (config.dim, inputs)
    expected[f"{POS_CONV}.bias"] = (config.dim,)
    pos_conv_weight = f"{POS_CONV}.weight" if f"{POS_CONV}.weight" in weights else f"{POS_CONV}.weight_v"
    expected[pos_conv_weight] = (config.dim, config.dim // config.pos_conv_groups, config.pos_conv_kernel)
    expected["encoder.layers.0.fc1.weight"] = (config.ffn_dim, config.dim)
    for name, shape in expected.items():
        if name not in weights:
            raise CheckpointError(f"the weight {name} is missing; expected one of shape {shape}")
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(
                f"the weight {name} has shape {tuple(weights[name].shape)}; its configuration asks for {shape}"
            )
    for part, count in {
        "encoder.layers": config.layers,
        "feature_extractor.conv_layers": len(config.conv_layers),
    }.items():
        pattern = re.compile(rf"{re.escape(part)}\.(\d+)\.")
        found = {match.group(1) for match in map(pattern.match, weights) if match}
        if len(found) != count:
            raise CheckpointError(f"{part} has weights for {len(found)} layers; its configuration asks for {count}")
