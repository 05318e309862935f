"""Reads and writes fairseq's checkpoints, which are also the reference's.

A file is a dict with ``model`` (the state dict) and either ``cfg`` (a nested configuration) or, in older files,
``args`` (one flat Namespace).
"""

import ast
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from s3prl_ofa.checkpoint.contents import COMPRESSOR, Checkpoint, as_weights, codebook_sizes, named, split_weight_norm
from s3prl_ofa.checkpoint.plain_values import plain, unwrap
from s3prl_ofa.errors import CheckpointError, shown
from s3prl_ofa.model.config import SAMPLE_RATE, ModelConfig

logger = logging.getLogger(__name__)

HUBERT = "hubert"  # the same network as wav2vec 2.0, trained differently
MODEL_NAMES = ("wav2vec2", "ofa_wav2vec2", HUBERT)
CTC_NAMES = ("wav2vec_ctc", "ofa_wav2vec_ctc", "hubert_ctc")
HUBERT_TRAINING = ("final_proj.", "label_embs_concat", "target_glu.")  # wav2vec 2.0 has others under these names
WAVLM = ".self_attn.grep_"  # in the names of WavLM's weights, whose attention has gated relative positions
CTC_PREFIX = "w2v_encoder.w2v_model."
CTC_HEAD = "w2v_encoder.proj."
MAX_CONV_LAYERS = 64
MAX_FINAL_DIM = 65_536
FIXED_RATIO = 2  # the reference's default
MAX_EXPRESSION = 2_000  # characters


# --- one row per field of ModelConfig: fairseq's name and default, and how to read and write it ---


def reader(kind: type, what: str) -> Callable[[Any], Any]:
    """A function that returns a value of exactly this type, and raises ValueError for any other."""

    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"must be {what}, found {shown(value)}")
        return value

    return read


whole, boolean, text = reader(int, "a whole number"), reader(bool, "true or false"), reader(str, "a word")


def parse_conv_layers(value: Any) -> tuple[tuple[int, int, int], ...]:
    """(channels, kernel, stride) of each convolution, from fairseq's Python expression or its value.

    Nothing is evaluated: only lists or tuples of whole numbers, ``+`` between lists and ``*`` with a whole number are
    understood. Raises ValueError for anything else and for more than 64 layers.
    """
    if isinstance(value, str):
        if len(value) > MAX_EXPRESSION:
            raise ValueError(f"is {len(value)} characters long; expected at most {MAX_EXPRESSION}")
        try:
            value = literal(ast.parse(value.strip(), mode="eval").body)
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f"is not a list expression, found {shown(value)}") from error
    if not isinstance(value, list | tuple) or len(value) > MAX_CONV_LAYERS:
        raise ValueError(f"must be a list of at most {MAX_CONV_LAYERS} layers, found {shown(value)}")
    for layer in value:
        if not isinstance(layer, list | tuple) or len(layer) != 3:
            raise ValueError(f"must hold (channels, kernel, stride) triples, found {shown(layer)}")
    return tuple(tuple(whole(number) for number in layer) for layer in value)


def literal(node: ast.expr) -> Any:
    """The value of a node that is a whole number, a list or tuple, a sum of lists or a list times a number."""
    if isinstance(node, ast.Constant):
        return whole(node.value)
    if isinstance(node, ast.List | ast.Tuple):
        return [literal(item) for item in node.elts]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
        left, right = literal(node.left), literal(node.right)
        if isinstance(node.op, ast.Mult) and isinstance(left, int):
            left, right = right, left
        if isinstance(node.op, ast.Mult) and isinstance(left, list) and isinstance(right, int):
            if len(left) * right > MAX_CONV_LAYERS:
                raise ValueError(f"has more than {MAX_CONV_LAYERS} layers")
            return left * right
        if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return left + right
    raise ValueError(f"may hold only lists, whole numbers, + and *, found {ast.unparse(node)[:80]}")


CONV_NORMS = {"default": "group", "layer_norm": "layer"}


def conv_norm(value: Any) -> str:
    if not isinstance(value, str) or value not in CONV_NORMS:
        raise ValueError(f"must be one of {', '.join(CONV_NORMS)}, found {shown(value)}")
    return CONV_NORMS[value]


@dataclasses.dataclass(frozen=True)
class Field:
    """A setting: its name in ModelConfig and in fairseq, fairseq's default, and how to read and write its value."""

    ours: str
    theirs: str
    default: Any
    read: Callable[[Any], Any]
    write: Callable[[Any], Any] = lambda value: value


MODEL_FIELDS = (
    Field(
        "conv_layers",
        "conv_feature_layers",
        "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2",
        parse_conv_layers,
        lambda layers: str([tuple(layer) for layer in layers]),
    ),
    Field(
        "conv_norm", "extractor_mode", "default", conv_norm, {ours: theirs for theirs, ours in CONV_NORMS.items()}.get
    ),
    Field("conv_bias", "conv_bias", False, boolean),
    Field("dim", "encoder_embed_dim", 768, whole),
    Field("ffn_dim", "encoder_ffn_embed_dim", 3072, whole),
    Field("heads", "encoder_attention_heads", 12, whole),
    Field("layers", "encoder_layers", 12, whole),
    Field("pre_norm", "layer_norm_first", False, boolean),
    Field("pos_conv_kernel", "conv_pos", 128, whole),
    Field("pos_conv_groups", "conv_pos_groups", 16, whole),
    Field("activation", "activation_fn", "gelu", text),
)
NORMALIZE = Field("normalize", "normalize", False, boolean)  # of the task
# Settings of which only one value is supported, because they change what the model computes.
ONLY = {"layer_type": "transformer", "pos_conv_depth": 1, "quantize_input": False, "crop_seq_to_multiple": 1}
ONLY |= {"conv_pos_batch_norm": False}

# The options of an old flat Namespace that concern the model and the task.
OTHER_MODEL_KEYS = """
    dropout attention_dropout activation_dropout encoder_layerdrop dropout_input dropout_features final_dim logit_temp
    quantize_targets same_quantizer target_glu feature_grad_mult quantizer_depth quantizer_factor latent_vars
    latent_groups latent_dim latent_temp mask_length mask_prob mask_selection mask_other no_mask_overlap mask_min_space
    mask_channel_length mask_channel_prob mask_channel_selection mask_channel_other no_mask_channel_overlap
    mask_channel_min_space num_negatives negatives_from_everywhere cross_sample_negatives codebook_negatives
    subsample mixup mixup_distro upper_lambd target_ratio card_loss seg_loss frame_loss fixed_subsample_ratio
""".split()  # noqa: SIM905 (a list would take fifty lines)
MODEL_KEYS = {*(field.theirs for field in MODEL_FIELDS), *ONLY, *OTHER_MODEL_KEYS}
TASK_KEYS = {"data", "normalize", "sample_rate", "enable_padding", "max_sample_size", "min_sample_size", "labels"}


# --- reading ---


def read_state(state: dict[str, Any]) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Config, weights, model_cfg and task_cfg of a fairseq file, pretrained or fine-tuned with CTC.

    Raises CheckpointError, without the file's name.
    """
    weights = as_weights(state.get("model"), "its model entry")
    if any(WAVLM in name for name in weights):
        raise CheckpointError(f"a WavLM, whose attention is different; expected one of {', '.join(MODEL_NAMES)}")
    if state.get("cfg") is not None:
        cfg = unwrap(state["cfg"])
        if not isinstance(cfg, dict):
            raise CheckpointError(
                f"its cfg entry is {type(cfg).__name__}; expected a configuration with model and task"
            )
        model_cfg, task_cfg = plain(cfg.get("model")), plain(cfg.get("task"))
    elif state.get("args") is not None:
        model_cfg, task_cfg = split_namespace(unwrap(state["args"]))
    else:
        raise CheckpointError("its cfg and args entries are empty; expected fairseq's configuration in one of them")
    for name, section in {"model": model_cfg, "task": task_cfg}.items():
        if not isinstance(section, dict):
            raise CheckpointError(f"its configuration has no {name} section; expected one")
    if model_name(model_cfg) in CTC_NAMES:
        model_cfg, task_cfg, weights = inside_ctc(model_cfg, task_cfg, weights)
    return read_model(model_cfg, task_cfg, weights)


def read_model(
    model_cfg: dict[str, Any], task_cfg: dict[str, Any], weights: dict[str, Tensor]
) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Config, weights, model_cfg and task_cfg; for HuBERT those of a wav2vec 2.0, without weights of its training."""
    config = read_config(model_cfg, task_cfg, weights)
    if model_name(model_cfg) == HUBERT:
        kept = {*(field.theirs for field in MODEL_FIELDS), *ONLY}
        model_cfg = {"_name": "wav2vec2", **{key: value for key, value in model_cfg.items() if key in kept}}
        task_cfg = {"_name": "audio_pretraining", "sample_rate": SAMPLE_RATE, "normalize": config.normalize}
        weights = {name: weight for name, weight in weights.items() if not name.startswith(HUBERT_TRAINING)}
    return config, weights, model_cfg, task_cfg


def model_name(model_cfg: dict[str, Any]) -> Any:
    """fairseq's name of the model; older configurations have it under arch."""
    return model_cfg.get("_name") or model_cfg.get("arch")


def split_namespace(args: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model and task configuration from the flat arguments of an older file."""
    if not isinstance(args, dict):
        raise CheckpointError(f"its args entry is {type(args).__name__}; expected fairseq's arguments")
    known = MODEL_KEYS | TASK_KEYS | {"arch", "task"} | ({"w2v_args"} if args.get("arch") in CTC_NAMES else set())
    args = plain({key: value for key, value in args.items() if key in known})
    model_cfg = {"_name": args["arch"]} if args.get("arch") else {}
    model_cfg |= {key: value for key, value in args.items() if key in MODEL_KEYS | {"w2v_args"}}
    task_cfg = {"_name": args["task"]} if isinstance(args.get("task"), str) else {}
    return model_cfg, task_cfg | {key: value for key, value in args.items() if key in TASK_KEYS}


def inside_ctc(
    model_cfg: dict[str, Any], task_cfg: dict[str, Any], weights: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """The wav2vec 2.0 inside a model fine-tuned with CTC, and its configuration, without the output layer."""
    inner = model_cfg.get("w2v_args")
    if not isinstance(inner, dict):
        raise CheckpointError(
            "its model is fine-tuned with CTC, but w2v_args does not hold the configuration it began with"
        )
    if isinstance(inner.get("model"), dict) and isinstance(inner.get("task"), dict):
        inner_model, inner_task = inner["model"], inner["task"]
    else:
        inner_model, inner_task = split_namespace(inner)
    unknown = {name for name in weights if not name.startswith((CTC_PREFIX, CTC_HEAD))}
    if unknown:
        raise CheckpointError(f"unknown weights {named(unknown)}; expected {CTC_PREFIX}* and {CTC_HEAD}*")
    logger.info("the output layer of the CTC model (%s*) is left out", CTC_HEAD)
    kept = {name.removeprefix(CTC_PREFIX): weight for name, weight in weights.items() if name.startswith(CTC_PREFIX)}
    # If fine-tuning and pretraining normalized waves differently, fine-tuning is right.
    inner_task = inner_task | {key: task_cfg[key] for key in ("normalize",) if task_cfg.get(key) is not None}
    return inner_model, inner_task, as_weights(kept, f"its {CTC_PREFIX}* part")


def read_config(model_cfg: dict[str, Any], task_cfg: dict[str, Any], weights: dict[str, Tensor]) -> ModelConfig:
    """ModelConfig from fairseq's configuration; settings that are missing or null have fairseq's defaults.

    The weights show whether there is a compressor and a projection. Average pooling (the reference's ``subsample:
    fixed``) has no weights and is read from the configuration.
    """
    name = model_name(model_cfg)
    if name not in (*MODEL_NAMES, None):
        raise CheckpointError(f"its model is {shown(name)}; expected one of {', '.join((*MODEL_NAMES, *CTC_NAMES))}")
    for key, only in ONLY.items():
        if model_cfg.get(key) not in (only, None):
            raise CheckpointError(f"its model has {key} {shown(model_cfg[key])}; only {only!r} is supported")
    values = {}
    for section, field in [*((model_cfg, field) for field in MODEL_FIELDS), (task_cfg, NORMALIZE)]:
        value = section.get(field.theirs)
        try:
            values[field.ours] = field.read(field.default if value is None else value)
        except ValueError as error:
            raise CheckpointError(f"its {field.theirs} {error}") from error
    compressed = model_cfg.get("subsample") == "cif" or any(key.startswith(COMPRESSOR) for key in weights)
    values["compressor"] = "cif" if compressed else "none"
    if model_cfg.get("subsample") == "fixed" and not compressed:
        values["pooling"] = model_cfg.get("fixed_subsample_ratio") or FIXED_RATIO
    values["projection"] = "post_extract_proj.weight" in weights
    try:
        return ModelConfig(**values)
    except ValueError as error:
        raise CheckpointError(f"its configuration cannot be a model: {error}") from error


# --- writing ---


def fairseq_parts(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """model_cfg, task_cfg and weights from which fairseq can build and load its pretraining model.

    Configuration in the checkpoint is kept, the rest follows from the model. fairseq's model always has the weights of
    pretraining; if the checkpoint lacks them (a fine-tuned or a Hugging Face model), random ones are added with a
    warning.
    """
    config, weights = checkpoint.config, split_weight_norm(drop_needless_projection(checkpoint))
    model_cfg = {"_name": "wav2vec2"} | {
        field.theirs: field.write(getattr(config, field.ours)) for field in MODEL_FIELDS
    }
    if config.compressor == "cif":
        model_cfg |= {"subsample": "cif", "mixup": True}
    if config.pooling > 1:
        model_cfg |= {"subsample": "fixed", "fixed_subsample_ratio": config.pooling}
    model_cfg |= pretraining_sizes(weights) | checkpoint.model_cfg
    model_cfg["_name"] = model_cfg["_name"] or "wav2vec2"
    model_cfg["quantize_targets"] = any(name.startswith("quantizer.") for name in weights)
    task_cfg = {"_name": "audio_pretraining", "data": "", "sample_rate": SAMPLE_RATE, "normalize": config.normalize}
    task_cfg |= checkpoint.task_cfg
    return model_cfg, task_cfg, with_pretraining_weights(config, weights, model_cfg)


def drop_needless_projection(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Drops an identity projection, because fairseq has none between equal widths.

    Raises CheckpointError for a projection between equal widths that is not the identity.
    """
    config, weights = checkpoint.config, dict(checkpoint.weights)
    if not config.projection or config.conv_dim != config.dim:
        return weights
    weight, bias = weights.pop("post_extract_proj.weight"), weights.pop("post_extract_proj.bias")
    if not torch.equal(weight.float(), torch.eye(config.dim)) or bias.any():
        raise CheckpointError(
            f"its front end and encoder are both {config.dim} wide with a projection between them, which fairseq's "
            "model does not have; convert it to safetensors"
        )
    return weights


def pretraining_sizes(weights: dict[str, Tensor]) -> dict[str, Any]:
    """fairseq's settings for the quantizer and the final projection, from the shapes of their weights."""
    sizes = {}
    if "final_proj.weight" in weights:
        sizes["final_dim"] = weights["final_proj.weight"].shape[0]
    codebook = codebook_sizes(weights)
    if codebook:
        groups, codes, width = codebook
        sizes |= {"latent_groups": groups, "latent_vars": codes, "latent_dim": groups * width}
    return sizes


def with_pretraining_weights(
    config: ModelConfig, weights: dict[str, Tensor], model_cfg: dict[str, Any]
) -> dict[str, Tensor]:
    """Adds the weights that fairseq's strict loading needs, always drawn from the same seed."""
    final_dim = model_cfg.get("final_dim") or config.dim
    if type(final_dim) is not int or not 0 < final_dim <= MAX_FINAL_DIM:
        raise CheckpointError(f"its final_dim is {shown(final_dim)}; expected a whole number up to {MAX_FINAL_DIM}")
    shapes = {"mask_emb": (config.dim,), "final_proj.weight": (final_dim, config.dim), "final_proj.bias": (final_dim,)}
    if not model_cfg["quantize_targets"]:
        shapes |= {"project_q.weight": (final_dim, config.conv_dim), "project_q.bias": (final_dim,)}
    missing = {name: shape for name, shape in shapes.items() if name not in weights}
    if missing:
        logger.warning("the weights %s of pretraining are missing: random ones are written", named(set(missing)))
    generator = torch.Generator().manual_seed(0)
    for name, shape in missing.items():
        bound = shape[-1] ** -0.5
        weights[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return weights


def write_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The dict that fairseq itself would save, without the state of a training."""
    model_cfg, task_cfg, weights = fairseq_parts(checkpoint)
    return {
        "args": None,
        "cfg": {"_name": None, "model": model_cfg, "task": task_cfg, "criterion": {"_name": "wav2vec"}},
        "model": {name: weight.clone() for name, weight in weights.items()},
        "criterion": {},
        "optimizer_history": [
            {
                "criterion_name": "Wav2vecCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {},
                "num_updates": 0,
            }
        ],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }
