"""Converts between fairseq's state dict, whose names the reference and our files use too, and this model's.

Each family of weights is renamed by one rule. What the model keeps in another form (convolutions as matrices, query,
key and value together) is converted once, at load.
"""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from s3prl_ofa.errors import CheckpointError, listed, shown
from s3prl_ofa.model.compressor import KERNEL
from s3prl_ofa.model.config import ModelConfig

# Weights that only pretraining uses.
PRETRAINING = re.compile(
    r"(mask_emb$|quantizer\.|input_quantizer\.|project_q\.|project_inp\.|label_embs_concat$|final_proj\.|target_glu\.|_ema$)"
)
POS_CONV_WEIGHT = "encoder.pos_conv.0.weight"  # in fairseq one weight, or two with weight norm, _g and _v
POS_CONV = "encoder.pos_conv.weight"  # (dim, dim / groups, 1, kernel) here, without the 1 in fairseq
# (fairseq's name, this model's name); {} is the number of the layer
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
    """fairseq's name of each weight of the front end, by this model's."""
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
    """fairseq's name of one of this model's weights, except for the front end and the attention's input."""
    layer = re.match(r"encoder\.layers\.(\d+)\.", name)
    number = layer.group(1) if layer else ""
    for theirs, ours in RENAMED:
        if name.startswith(ours.format(number)):
            return theirs.format(number) + name[len(ours.format(number)) :]
    raise KeyError(name)


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each weight of a model of this configuration, under fairseq's names."""
    dim, conv_dim, inputs = config.dim, config.conv_dim, 1
    shapes: dict[str, tuple[int, ...]] = {}
    pairs: dict[str, tuple[int, ...]] = {"layer_norm": (conv_dim,)}  # shapes of weights that have a bias
    for index, (channels, kernel, _) in enumerate(config.conv_layers):
        layer = f"feature_extractor.conv_layers.{index}"
        shapes[f"{layer}.0.weight"] = (channels, inputs, kernel)
        if config.conv_bias:
            shapes[f"{layer}.0.bias"] = (channels,)
        if config.conv_norm == "layer" or index == 0:
            pairs[f"{layer}.2.1" if config.conv_norm == "layer" else f"{layer}.2"] = (channels,)
        inputs = channels
    if config.projection:
        pairs["post_extract_proj"] = (dim, conv_dim)
    if config.compressor == "cif":
        pairs["cif_subsampler.alpha_fn.cnn"] = (conv_dim, conv_dim, KERNEL)
        pairs["cif_subsampler.alpha_fn.layer.0"] = (conv_dim,)
        pairs["cif_subsampler.alpha_fn.layer.2"] = (1, conv_dim)
    pairs["encoder.pos_conv.0"] = (dim, dim // config.pos_conv_groups, config.pos_conv_kernel)
    pairs["encoder.layer_norm"] = (dim,)
    for layer in (f"encoder.layers.{index}" for index in range(config.layers)):
        pairs |= {f"{layer}.self_attn.{part}_proj": (dim, dim) for part in ("q", "k", "v", "out")}
        pairs |= {f"{layer}.fc1": (config.ffn_dim, dim), f"{layer}.fc2": (dim, config.ffn_dim)}
        pairs |= {f"{layer}.{norm}_layer_norm": (dim,) for norm in ("self_attn", "final")}
    for name, shape in pairs.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def check_shapes(weights: dict[str, Tensor], config: ModelConfig) -> None:
    """Raises CheckpointError naming the first five weights that are missing, unknown or of another shape."""
    shapes = weight_shapes(config)
    if POS_CONV_WEIGHT not in weights:  # weight norm
        kernel = shapes[POS_CONV_WEIGHT][2]
        shapes |= {f"{POS_CONV_WEIGHT}_g": (1, 1, kernel), f"{POS_CONV_WEIGHT}_v": shapes.pop(POS_CONV_WEIGHT)}
    given = {name for name in weights if not PRETRAINING.match(name)}
    problems = [f"missing {name}" for name in sorted(set(shapes) - given)]
    problems += [f"unknown {name}" for name in sorted(given - set(shapes))]
    problems += [
        f"{name} of shape {tuple(weights[name].shape)} instead of {shown(shape)}"
        for name, shape in shapes.items()
        if name in given and weights[name].shape != shape
    ]
    if problems:
        raise CheckpointError(f"weights do not fit the model's configuration: {listed(problems, separator='; ')}")


def check_finite(weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Raises CheckpointError naming the first weight, and its value, that is not finite in ``dtype``."""
    for name, weight in weights.items():
        # Rounding is monotonic, so the smallest and the largest value suffice; both are NaN if any value is.
        for value in weight.aminmax() if weight.numel() else ():
            if not value.to(dtype).isfinite():
                raise CheckpointError(
                    f"the weight {name} holds {value.item():g}; expected values that are finite in {dtype}"
                )


def merge_weight_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replaces the two parts (g, v) of a weight-normed positional convolution by its weight, g v / |v|.

    The norm is over the first two dimensions, one per kernel position (fairseq's ``weight_norm(dim=2)``).
    """
    weights = dict(weights)
    if POS_CONV_WEIGHT not in weights:
        gain, direction = weights.pop(f"{POS_CONV_WEIGHT}_g"), weights.pop(f"{POS_CONV_WEIGHT}_v")
        exact = direction.double()
        norm = exact.norm(dim=(0, 1), keepdim=True)
        check_finite({f"{POS_CONV_WEIGHT}_v (its length)": norm}, norm.dtype)
        exact = gain.double() * exact / norm
        weights[POS_CONV_WEIGHT] = exact.to(direction.dtype)
    return weights


def from_fairseq(
    weights: dict[str, Tensor], config: ModelConfig, names: Iterable[str], dtype: torch.dtype
) -> dict[str, Tensor]:
    """This model's state dict from weights under fairseq's names.

    names: the keys of this model's state dict. dtype: the dtype of its weights. Raises CheckpointError naming weights
    that are missing, unknown, of another shape or not finite in ``dtype``.
    """
    check_shapes(weights, config)
    weights = merge_weight_norm(weights)
    check_finite({name: weight for name, weight in weights.items() if not PRETRAINING.match(name)}, dtype)

    state = {}
    conv = conv_names(config)
    for name in names:
        if name in conv:
            tensor = weights[conv[name]]
            state[name] = tensor.transpose(1, 2).flatten(1) if tensor.dim() == 3 else tensor
        elif ".qkv." in name:
            layer, kind = name.split(".qkv.")
            state[name] = torch.cat([weights[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
        elif name == POS_CONV:
            state[name] = weights[fairseq_name(name)].unsqueeze(2)
        else:
            state[name] = weights[fairseq_name(name)]
    return state


def to_fairseq(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Weights under fairseq's names from this model's state dict: the inverse of :func:`from_fairseq`."""
    weights = {}
    conv = conv_names(config)
    for name, tensor in state.items():
        if name in conv:
            if tensor.dim() == 2:
                kernel = config.conv_layers[int(name.rsplit(".", 1)[1])][1]
                tensor = tensor.unflatten(1, (kernel, -1)).transpose(1, 2).contiguous()
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
