"""The contents of a checkpoint of any format, with the checks and renamings that all formats share."""

import dataclasses
import math
import pathlib
import re
from typing import Any

import torch
from torch import Tensor

from s3prl_ofa.checkpoint.safe_pickle import MAX_DIMS, OddTensor, StoredTensor
from s3prl_ofa.errors import CheckpointError, listed, shown, shown_text
from s3prl_ofa.model.config import ModelConfig
from s3prl_ofa.model.names import check_finite, check_shapes

POS_CONV = "encoder.pos_conv.0"
# Newer torch's names of the two parts of a weight-normed weight.
PARAMETRIZED = {
    f"{POS_CONV}.parametrizations.weight.original0": f"{POS_CONV}.weight_g",
    f"{POS_CONV}.parametrizations.weight.original1": f"{POS_CONV}.weight_v",
}
COMPRESSOR = "cif_subsampler."
MAX_WEIGHTS = 5_000  # the largest models have some 800
LONGEST_NAME = 128  # characters; the longest real name has 70
SHARED = 2**28  # bytes by which weights that share storage may exceed the size of the file
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
COUNTS = (torch.int64, torch.int32)  # of scalars, such as the number of updates


@dataclasses.dataclass
class Checkpoint:
    """A checkpoint of any format.

    weights: under fairseq's names, including those of pretraining only; the weight of the positional convolution is
        one tensor or ``weight_g`` and ``weight_v``, as in the file.
    model_cfg, task_cfg: fairseq's configuration as plain values, empty if the format has none.
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    model_cfg: dict[str, Any]
    task_cfg: dict[str, Any]
    format: str
    path: pathlib.Path


def named(names: set[str]) -> str:
    """The first few of these names, sorted, for a message."""
    return listed(map(shown_text, sorted(names)))


def as_weights(value: Any, where: str) -> dict[str, Tensor]:
    """A state dict as a plain dict under current names. Raises CheckpointError unless it holds only dense tensors.

    A ``StoredTensor`` of a PyTorch file becomes a tensor that is mapped from its part of the file.
    """
    if not isinstance(value, dict) or not value:
        raise CheckpointError(f"{where} is {describe(value)}; expected a state dict with the model's weights")
    if len(value) > MAX_WEIGHTS:
        raise CheckpointError(f"{where} holds {len(value)} weights; expected at most {MAX_WEIGHTS}")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor | StoredTensor | OddTensor):
            raise CheckpointError(f"{where} holds {describe(tensor)} under {shown(name)}; expected tensors by name")
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise CheckpointError(f"{where} holds a weight named {shown(name)}; expected names of a wav2vec 2.0")
        if isinstance(tensor, OddTensor):
            raise CheckpointError(
                f"the weight {name} is sparse, quantized, nested, without data, of a rare dtype such as float8, "
                "negated, or has attributes; expected a dense tensor"
            )
    stored = [tensor for tensor in value.values() if isinstance(tensor, StoredTensor)]
    claimed = sum(math.prod(tensor.size) * tensor.storage.dtype.itemsize for tensor in stored)
    held = sum(storage.nbytes for storage in {tensor.storage.key: tensor.storage for tensor in stored}.values())
    if claimed > held + SHARED:
        raise CheckpointError(
            f"{where} claims {claimed} bytes of weights, the file has {held}; expected weights without shared storage"
        )
    weights: dict[str, Tensor] = {}
    for name, tensor in value.items():
        tensor = tensor.tensor() if isinstance(tensor, StoredTensor) else tensor
        if tensor.dtype not in DTYPES and (tensor.dim() or tensor.dtype not in COUNTS):
            raise CheckpointError(f"the weight {name} is of {tensor.dtype}; expected floating point numbers")
        if tensor.dim() > MAX_DIMS:
            raise CheckpointError(f"the weight {name} has {tensor.dim()} dimensions; expected at most {MAX_DIMS}")
        weights[PARAMETRIZED.get(name) or name] = tensor.detach()
    return weights


def describe(value: Any) -> str:
    """What kind of value this is, for a message."""
    return "empty" if isinstance(value, dict | list) and not value else f"a {type(value).__name__}"


def split_weight_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Splits the weight of the positional convolution into ``weight_g`` (1, 1, kernel) and ``weight_v``, as in fairseq.

    Raises CheckpointError if a norm is too large for the dtype.
    """
    if f"{POS_CONV}.weight" not in weights:
        return weights
    weights = dict(weights)
    whole = weights.pop(f"{POS_CONV}.weight")
    exact = whole.double()
    norm = exact.norm(dim=(0, 1), keepdim=True)
    # A kernel position that is all zeros has no direction; any will do, because its norm is zero.
    direction = torch.where(norm == 0, torch.ones_like(exact), exact)
    halves = {f"{POS_CONV}.weight_g": norm, f"{POS_CONV}.weight_v": direction}
    check_finite(halves, whole.dtype)
    return weights | {name: half.to(whole.dtype) for name, half in halves.items()}


def codebook_sizes(weights: dict[str, Tensor]) -> tuple[int, int, int] | None:
    """Groups, codes per group and dimension of a code, from the quantizer's weights; None without a quantizer.

    Raises CheckpointError if the weights contradict each other.
    """
    if not {"quantizer.vars", "project_q.weight"} <= set(weights):
        return None
    codes, projection = weights["quantizer.vars"].shape, weights["project_q.weight"].shape
    if len(codes) == 3 and len(projection) == 2 and codes[2] > 0:
        groups = projection[1] // codes[2]
        if groups > 0 and projection[1] == groups * codes[2] and codes[1] % groups == 0:
            return groups, codes[1] // groups, codes[2]
    raise CheckpointError(
        f"quantizer.vars of shape {tuple(codes)} and project_q.weight of shape {tuple(projection)} do not match"
    )


def check_sizes(config: ModelConfig, weights: dict[str, Tensor]) -> None:
    """Compares the configuration with the shapes of all weights before a model of that size is created.

    So a configuration can never allocate more memory than the file has weights for. Raises CheckpointError with the
    weights, their shapes and the expected ones, or the number of layers.
    """
    for part, count in {
        "encoder.layers": config.layers,
        "feature_extractor.conv_layers": len(config.conv_layers),
    }.items():
        pattern = re.compile(rf"{re.escape(part)}\.(\d+)\.")
        found = {match.group(1) for match in map(pattern.match, weights) if match}
        if len(found) != count:
            raise CheckpointError(f"{part} has weights for {len(found)} layers; its configuration asks for {count}")
    check_shapes(weights, config)
