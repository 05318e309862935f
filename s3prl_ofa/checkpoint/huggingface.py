"""Reads and writes Hugging Face's folders: config.json, preprocessor_config.json and the weights.

A model without a compressor is transformers' wav2vec 2.0; one with a compressor is the model of ``s3prl_ofa.hf``.
"""

import dataclasses
import json
import logging
import pathlib
import re
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from s3prl_ofa.checkpoint.contents import Checkpoint, as_weights, codebook_sizes, named, split_weight_norm
from s3prl_ofa.checkpoint.torch_file import read_torch_file
from s3prl_ofa.errors import CheckpointError, shown, shown_text
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.model.config import SAMPLE_RATE, ModelConfig
from s3prl_ofa.model.names import PRETRAINING, from_fairseq, to_fairseq
from s3prl_ofa.model.ofa import OFAWav2Vec2
from s3prl_ofa.model.storage import read_tensors

logger = logging.getLogger(__name__)

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
PROCESSOR = "processor_config.json"  # where transformers 5 puts the same, under feature_extractor, beside a tokenizer
WEIGHT_FILES = (WEIGHTS, f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
PREFIX = "wav2vec2."  # of the model inside a model with a head
HUBERT = "hubert"  # the same network as wav2vec 2.0
MAX_JSON = 2**22  # bytes
HEADS = ("lm_head.", "projector.", "classifier.", "layer_weights")  # of fine-tuned models, left out
OFA_TYPE = "ofa_wav2vec2"  # the model_type of s3prl_ofa.hf
MODEL_TYPES = ("wav2vec2", HUBERT, OFA_TYPE)
OFA_PREFIX = "model."  # of OFAWav2Vec2 inside it, below OFA_TYPE if there is a head

# --- one row per setting: its name in ModelConfig, its name and default in Hugging Face's config ---

FIELDS = (
    ("conv_norm", "feat_extract_norm", "group"),
    ("conv_bias", "conv_bias", False),
    ("dim", "hidden_size", 768),
    ("ffn_dim", "intermediate_size", 3072),
    ("heads", "num_attention_heads", 12),
    ("layers", "num_hidden_layers", 12),
    ("pre_norm", "do_stable_layer_norm", False),
    ("pos_conv_kernel", "num_conv_pos_embeddings", 128),
    ("pos_conv_groups", "num_conv_pos_embedding_groups", 16),
    ("activation", "hidden_act", "gelu"),
)
CONV_FIELDS = (  # the three numbers of ModelConfig.conv_layers
    ("conv_dim", (512,) * 7),
    ("conv_kernel", (10, 3, 3, 3, 3, 2, 2)),
    ("conv_stride", (5, 2, 2, 2, 2, 2, 2)),
)
# Settings of which only one value is supported, because they change what the model computes.
ONLY = {
    "feat_extract_activation": "gelu",
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "layer_norm_eps": 1e-5,
    "add_adapter": False,
    "adapter_attn_dim": None,
}
# Settings of training, kept when the source is a fairseq file: fairseq's name, Hugging Face's.
TRAINING_FIELDS = (
    ("dropout", "hidden_dropout"),
    ("attention_dropout", "attention_dropout"),
    ("activation_dropout", "activation_dropout"),
    ("dropout_input", "feat_proj_dropout"),
    ("dropout_features", "feat_quantizer_dropout"),
    ("encoder_layerdrop", "layerdrop"),
    ("logit_temp", "contrastive_logits_temperature"),
    ("num_negatives", "num_negatives"),
)

# --- one row per family of weights: Hugging Face's name, fairseq's; {} is the number of a layer ---

FAMILIES = (
    ("masked_spec_embed", "mask_emb"),
    ("feature_extractor.conv_layers.{}.conv", "feature_extractor.conv_layers.{}.0"),
    ("feature_projection.layer_norm", "layer_norm"),
    ("feature_projection.projection", "post_extract_proj"),
    ("encoder.pos_conv_embed.conv", "encoder.pos_conv.0"),
    ("encoder.layer_norm", "encoder.layer_norm"),
    *(
        (f"encoder.layers.{{}}.attention.{part}_proj", f"encoder.layers.{{}}.self_attn.{part}_proj")
        for part in ("q", "k", "v", "out")
    ),
    ("encoder.layers.{}.layer_norm", "encoder.layers.{}.self_attn_layer_norm"),
    ("encoder.layers.{}.feed_forward.intermediate_dense", "encoder.layers.{}.fc1"),
    ("encoder.layers.{}.feed_forward.output_dense", "encoder.layers.{}.fc2"),
    ("encoder.layers.{}.final_layer_norm", "encoder.layers.{}.final_layer_norm"),
)
CONV_NORM = {  # fairseq names GroupNorm and LayerNorm differently
    "group": ("feature_extractor.conv_layers.{}.layer_norm", "feature_extractor.conv_layers.{}.2"),
    "layer": ("feature_extractor.conv_layers.{}.layer_norm", "feature_extractor.conv_layers.{}.2.1"),
}
PRETRAINING_FAMILIES = (  # besides the model in Wav2Vec2ForPreTraining
    ("quantizer.codevectors", "quantizer.vars"),
    ("quantizer.weight_proj", "quantizer.weight_proj"),
    ("project_q", "project_q"),
    ("project_hid", "final_proj"),
)
PARAMETER = r"(|\.weight|\.bias|\.weight_g|\.weight_v|\.parametrizations\.weight\.original[01])"


def rename(name: str, families: list[tuple[str, str]]) -> str | None:
    """Renames from the first column of ``families`` to the second; None if no row matches."""
    for source, target in families:
        match = re.fullmatch(re.escape(source).replace(r"\{\}", r"(\d+)") + PARAMETER, name)
        if match:
            return target.format(*match.groups()) + match.groups()[-1]
    return None


# --- reading ---


def read_folder(folder: pathlib.Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Config and weights of a Wav2Vec2Model, also of one inside a model with a head.

    The heads of fine-tuned models are dropped, those of pretraining kept. Whether waves are normalized is read from
    ``preprocessor_config.json`` or ``processor_config.json``; without either it is Hugging Face's default, true. Raises
    CheckpointError, without the folder's name.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"a folder without {CONFIG}; expected a Hugging Face wav2vec 2.0 model or a checkpoint file"
        )
    values = read_json(folder / CONFIG)
    if values.get("model_type") == OFA_TYPE:
        return read_ofa(values, read_weights(folder))
    config = read_config(values, reads_normalized(folder))
    families = [*FAMILIES, CONV_NORM[config.conv_norm], *PRETRAINING_FAMILIES]
    weights, unknown = {}, set()
    for name, weight in read_weights(folder).items():
        ours = rename(name.removeprefix(PREFIX).removeprefix(f"{HUBERT}."), families)
        if ours is not None:
            weights[ours] = weight
        elif name.startswith(HEADS):
            logger.info("the weight %s of the head is dropped", name)
        else:
            unknown.add(name)
    if unknown:
        raise CheckpointError(f"unknown weights {named(unknown)}; expected those of a Hugging Face wav2vec 2.0")
    return config, as_weights(weights, "its weights")


def read_ofa(values: dict[str, Any], weights: dict[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Config and weights of a model of ``s3prl_ofa.hf``. values: of ``config.json``; missing ones have defaults."""
    try:
        config = ModelConfig(
            **{field.name: values[field.name] for field in dataclasses.fields(ModelConfig) if field.name in values}
        )
    except ValueError as error:
        raise CheckpointError(f"{CONFIG} cannot be a model: {error}") from error
    state = {name.removeprefix(f"{OFA_TYPE}."): weight for name, weight in weights.items()}
    state = {name.removeprefix(OFA_PREFIX): weight for name, weight in state.items() if not name.startswith(HEADS)}
    return config, internal_weights(state, config)


def internal_weights(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Weights under fairseq's names from those of an OFAWav2Vec2 in a file. Raises CheckpointError."""
    try:
        return as_weights(to_fairseq(state, config), "its weights")
    except (LookupError, RuntimeError) as error:
        found = shown_text(str(error))
        raise CheckpointError(f"its weights are not those that its configuration describes ({found})") from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON:
        raise CheckpointError(f"{path.name} has {path.stat().st_size} bytes; expected at most {MAX_JSON}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not JSON ({shown_text(str(error))})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path.name} holds a {type(values).__name__}; expected names and values")
    return values


def reads_normalized(folder: pathlib.Path) -> bool:
    """Whether the model expects waves of mean 0 and variance 1."""
    if (folder / PREPROCESSOR).is_file():
        values = read_json(folder / PREPROCESSOR)
    elif (folder / PROCESSOR).is_file():
        found = read_json(folder / PROCESSOR).get("feature_extractor")
        values = found if isinstance(found, dict) else {}
    else:
        logger.warning("%s has no %s: waves are normalized, Hugging Face's default", folder, PREPROCESSOR)
        return True
    value = values.get("do_normalize", True)
    if not isinstance(value, bool):
        raise CheckpointError(f"do_normalize of the feature extractor is {shown(value)}; expected true or false")
    return value


def read_config(values: dict[str, Any], normalize: bool) -> ModelConfig:
    """ModelConfig from the values of ``config.json``; missing ones have Hugging Face's defaults."""
    if values.get("model_type") not in MODEL_TYPES:
        found = shown(values.get("model_type"))
        raise CheckpointError(f"{CONFIG} says model_type {found}; expected one of {', '.join(MODEL_TYPES)}")
    for key, only in ONLY.items():
        if values.get(key, only) != only:
            raise CheckpointError(f"{CONFIG} says {key} {shown(values[key])}; only {only!r} is supported")
    columns = []
    for key, of_base in CONV_FIELDS:
        column = values.get(key, of_base)
        if not isinstance(column, list | tuple) or not all(type(number) is int for number in column):
            raise CheckpointError(f"{CONFIG} says {key} {shown(column)}; expected a list of whole numbers")
        columns.append(column)
    if len({len(column) for column in columns}) != 1:
        raise CheckpointError(f"{CONFIG} has {', '.join(key for key, _ in CONV_FIELDS)} of different lengths")
    layers = tuple(zip(*columns, strict=True))
    ours: dict[str, Any] = {"conv_layers": layers, "normalize": normalize, "projection": True}
    for field, key, default in FIELDS:
        ours[field] = values.get(key, default)
        if type(ours[field]) is not type(default):
            raise CheckpointError(f"{CONFIG} says {key} {shown(ours[field])}; expected a value like {default!r}")
    try:
        return ModelConfig(**ours)
    except ValueError as error:
        raise CheckpointError(f"{CONFIG} cannot be a model: {error}") from error


def read_weights(folder: pathlib.Path) -> dict[str, Tensor]:
    """All weights of the folder, from one file or from the parts that an index lists."""
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"a folder without weights; expected one of {', '.join(WEIGHT_FILES)}")
    if found.suffix != ".json":
        return read_weight_file(found)
    parts = read_json(found).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise CheckpointError(f"{found.name} has no weight_map from weights to file names")
    weights: dict[str, Tensor] = {}
    for part in sorted(set(parts.values())):
        # The index must not point outside its folder.
        if pathlib.PurePath(part).name != part or not (folder / part).is_file():
            raise CheckpointError(f"{found.name} lists {shown(part)}; there is no such file in the folder")
        weights |= read_weight_file(folder / part)
    missing = set(parts) - set(weights)
    if missing:
        raise CheckpointError(f"{found.name} lists weights {named(missing)}; the parts do not hold them")
    return weights


def read_weight_file(path: pathlib.Path) -> dict[str, Tensor]:
    try:
        tensors = read_tensors(path)[0] if path.suffix == ".safetensors" else read_torch_file(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {str(error).removeprefix(f'{path}: ')}") from error
    return as_weights(tensors, path.name)


# --- writing ---


def write_folder(folder: pathlib.Path, checkpoint: Checkpoint) -> None:
    """Writes the three files into an existing folder.

    A checkpoint with a compressor becomes an OFAWav2Vec2Model, one with all pretraining weights a
    Wav2Vec2ForPreTraining, any other a Wav2Vec2Model. Weights that the model has no place for are dropped with a
    warning.
    """
    config = checkpoint.config
    plain = config.compressor == "none" and config.pooling == 1
    if plain:
        values, tensors, left_out = as_wav2vec2(checkpoint)
    else:
        values, tensors, left_out = as_ofa(checkpoint)
    if left_out:
        logger.warning("the weights %s are dropped: the Hugging Face model has no place for them", named(left_out))
    extractor = {
        "do_normalize": config.normalize and plain,  # an OFAWav2Vec2Model does it itself
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": config.conv_norm == "layer" or not plain,
        "sampling_rate": SAMPLE_RATE,
    }
    for name, content in {CONFIG: values, PREPROCESSOR: extractor}.items():
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    with atomic_path(folder / WEIGHTS) as temporary:  # save_file alone would make it readable only by its owner
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"format": "pt"})


def as_ofa(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Tensor], set[str]]:
    """The values of ``config.json``, the weights, and the names of those left out, of a model of ``s3prl_ofa.hf``."""
    config, weights = checkpoint.config, checkpoint.weights
    with torch.device("meta"):
        names = OFAWav2Vec2(config).state_dict()
    state = from_fairseq(weights, config, names, weights["layer_norm.weight"].dtype)
    values = {"architectures": ["OFAWav2Vec2Model"], "model_type": OFA_TYPE, **config.to_dict()}
    return (
        values,
        {OFA_PREFIX + name: weight for name, weight in state.items()},
        set(filter(PRETRAINING.match, weights)),
    )


def as_wav2vec2(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Tensor], set[str]]:
    """The same for transformers' wav2vec 2.0."""
    config, weights = checkpoint.config, split_weight_norm(checkpoint.weights)
    if not config.projection:  # Hugging Face's model always has one: the identity
        like = weights["layer_norm.weight"]
        weights["post_extract_proj.weight"] = torch.eye(config.dim, dtype=like.dtype)
        weights["post_extract_proj.bias"] = torch.zeros(config.dim, dtype=like.dtype)

    backwards = [(ours, theirs) for theirs, ours in [*FAMILIES, CONV_NORM[config.conv_norm]]]
    heads_backwards = [(ours, theirs) for theirs, ours in PRETRAINING_FAMILIES]
    body = {name: theirs for name in weights if (theirs := rename(name, backwards))}
    heads = {name: theirs for name in weights if (theirs := rename(name, heads_backwards))}
    for_pretraining = len(heads) == 7 and "mask_emb" in weights
    names = {name: PREFIX + theirs for name, theirs in body.items()} | heads if for_pretraining else body
    tensors = {names[name]: weight for name, weight in weights.items() if name in names}
    return config_values(checkpoint, for_pretraining), tensors, set(weights) - set(names)


def config_values(checkpoint: Checkpoint, for_pretraining: bool) -> dict[str, Any]:
    """The values of ``config.json``."""
    config, weights = checkpoint.config, checkpoint.weights
    architecture = "Wav2Vec2ForPreTraining" if for_pretraining else "Wav2Vec2Model"
    values = {"architectures": [architecture], "model_type": "wav2vec2", **ONLY}
    values |= {key: getattr(config, field) for field, key, _ in FIELDS}
    values |= {
        key: list(column) for (key, _), column in zip(CONV_FIELDS, zip(*config.conv_layers, strict=True), strict=True)
    }
    values |= {theirs: checkpoint.model_cfg[ours] for ours, theirs in TRAINING_FIELDS if ours in checkpoint.model_cfg}
    if "mask_emb" not in weights:  # the model has mask_emb only if training masks something
        values |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    if for_pretraining and (sizes := codebook_sizes(weights)) is not None:
        groups, codes, width = sizes
        values |= {
            "codevector_dim": groups * width,
            "num_codevector_groups": groups,
            "num_codevectors_per_group": codes,
            "proj_codevector_dim": weights["project_q.weight"].shape[0],
        }
    return values
