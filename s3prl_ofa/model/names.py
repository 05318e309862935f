"""Fairseq's names for the weights (the reference's too, and those of our files) and this model's own.

Each family of weights is renamed by one rule; what the model keeps in another form (convolutions as matrices, query,
key and value together) is brought into it here, once, at load.
"""

import re

import torch
from torch import Tensor

from .config import ModelConfig

# Weights that only pretraining uses.
PRETRAINING = re.compile(
    r"(mask_emb$|quantizer\.|input_quantizer\.|project_q\.|project_inp\.|final_proj\.|target_glu\.|_ema$)"
)
POS_CONV = "encoder.pos_conv.weight"  # (dim, dim / groups, 1, kernel) here, without the 1 in fairseq
# (fairseq's name, this model's name); {} stands for the number of the layer
RENAMED = (
    ("layer_norm.", "feature_norm."),
    ("post_extract_proj.", "projection."),
    ("cif_subsampler.", "compressor."),
    ("encoder.pos_conv.0.", "encoder.pos_conv."),
    ("encoder.layer_norm.", "encoder.norm."),
    ("encoder.layers.{}.self_attn.out_proj.", "encoder.layers.{}.out."),
    ("encoder.layers.{}.self_attn_layer_norm.", "encoder.layers.{}.attention_norm."),
    ("encoder.layers.{}.final_layer_norm.", "encoder.layers.{}.final_norm."),
    ("encoder.layers.{}.fc1.", "encoder.layers.{}.fc1."),
    ("encoder.layers.{}.fc2.", "encoder.layers.{}.fc2."),
)


def conv_names(config: ModelConfig) -> dict[str, str]:
    """This model's name of each weight of the front end -> fairseq's."""
    names = {}
    norm = "2.1" if config.conv_norm == "layer" else "2"
    for index in range(len(config.conv_layers)):
        layer = f"feature_extractor.conv_layers.{index}"
        names[f"front_end.weights.{index}"] = f"{layer}.0.weight"
        if config.conv_bias:
            names[f"front_end.biases.{index}"] = f"{layer}.0.bias"
        if config.conv_norm == "layer" or index == 0:
            names[f"front_end.norm_weights.{index}"] = f"{layer}.{norm}.weight"
            names[f"front_end.norm_biases.{index}"] = f"{layer}.{norm}.bias"
    return names


def fairseq_name(name: str) -> str:
    """Fairseq's name for one of this model's weights outside the front end and the attention's input."""
    layer = re.match(r"encoder\.layers\.(\d+)\.", name)
    number = layer.group(1) if layer else ""
    for theirs, ours in RENAMED:
        if name.startswith(ours.format(number)):
            return theirs.format(number) + name[len(ours.format(number)) :]
    raise KeyError(name)


def merge_weight_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replaces a weight-normed positional convolution (g, v) by the weight it stands for: g v / |v|.

    The norm runs over the first two dimensions, one a kernel position (fairseq's ``weight_norm(dim=2)``).
    """
    weights = dict(weights)
    name = "encoder.pos_conv.0.weight"
    if f"{name}_g" in weights and f"{name}_v" in weights:
        gain, direction = weights.pop(f"{name}_g"), weights.pop(f"{name}_v")
        if direction.dim() != 3 or gain.shape != (1, 1, direction.shape[2]):
            raise ValueError(
                f"{name}_g and {name}_v must be (1, 1, kernel) and (dim, dim / groups, kernel), "
                f"found {tuple(gain.shape)} and {tuple(direction.shape)}"
            )
        exact = direction.double()
        exact = gain.double() * exact / exact.norm(dim=(0, 1), keepdim=True)
        weights[name] = exact.to(direction.dtype)
    return weights


def from_fairseq(weights: dict[str, Tensor], config: ModelConfig, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """This model's state dict from weights under fairseq's names.

    ``shapes``: what this model expects, by its own names. Raises ValueError naming the weights, the first
    eight of them, that are missing, unknown, of another shape or not finite.
    """
    weights = merge_weight_norm(weights)
    fairseq_shapes = {
        name: tensor.shape
        for name, tensor in to_fairseq(
            {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, config
        ).items()
    }
    given = {name for name in weights if not PRETRAINING.match(name)}
    problems = [f"missing {name}" for name in sorted(set(fairseq_shapes) - given)]
    problems += [f"unknown {name}" for name in sorted(given - set(fairseq_shapes))]
    problems += [
        f"{name} of shape {tuple(weights[name].shape)} instead of {tuple(shape)}"
        for name, shape in fairseq_shapes.items()
        if name in given and weights[name].shape != shape
    ]
    if not problems:
        problems = [f"{name} with NaN or infinite values" for name in given if not weights[name].isfinite().all()]
    if problems:
        listed = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"weights do not fit the model: {listed}")

    own = {}
    conv = conv_names(config)
    for name in shapes:
        if name in conv:
            tensor = weights[conv[name]]
            own[name] = tensor.permute(2, 1, 0).flatten(0, 1) if tensor.dim() == 3 else tensor
        elif ".qkv." in name:
            layer, kind = name.split(".qkv.")
            own[name] = torch.cat([weights[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
        elif name == POS_CONV:
            own[name] = weights[fairseq_name(name)].unsqueeze(2)
        else:
            own[name] = weights[fairseq_name(name)]
    return own


def to_fairseq(own: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Weights under fairseq's names from this model's state dict: the inverse of :func:`from_fairseq`."""
    weights = {}
    conv = conv_names(config)
    for name, tensor in own.items():
        if name in conv:
            if tensor.dim() == 2:
                kernel = config.conv_layers[int(name.rsplit(".", 1)[1])][1]
                tensor = tensor.unflatten(0, (kernel, -1)).permute(2, 1, 0).contiguous()
            weights[conv[name]] = tensor
        elif ".qkv." in name:
            layer, kind = name.split(".qkv.")
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                weights[f"{layer}.self_attn.{part}_proj.{kind}"] = piece.contiguous()
        elif name == POS_CONV:
            weights[fairseq_name(name)] = tensor.squeeze(2).contiguous()
        else:
            weights[fairseq_name(name)] = tensor
    return weights
