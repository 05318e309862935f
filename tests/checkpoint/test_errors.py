"""Files that are not checkpoints, or contradict their configuration, are reported in one sentence."""

import json
import pickle

import pytest
import torch
from paths import REF_TINY

from s3prl_ofa.checkpoint import load, read_checkpoint
from s3prl_ofa.checkpoint.fairseq_format import parse_conv_layers
from s3prl_ofa.checkpoint.plain_values import plain
from s3prl_ofa.checkpoint.safe_pickle import Container
from s3prl_ofa.errors import CheckpointError

CONV = "[(32, 10, 5)] + [(32, 3, 2)] * 4 + [(32,2,2)] + [(32,2,2)]"


def without(weights, name):
    return {key: weight for key, weight in weights.items() if key != name}


WRONG_STATES = {
    "unknown weight": (lambda cfg, w: {"cfg": cfg, "model": {**w, "encoder.extra": torch.zeros(1)}}, r"encoder\.extra"),
    "missing weight": (
        lambda cfg, w: {"cfg": cfg, "model": without(w, "layer_norm.bias")},
        r"missing layer_norm\.bias",
    ),
    "missing big weight": (
        lambda cfg, w: {"cfg": cfg, "model": without(w, "encoder.pos_conv.0.weight_v")},
        r"missing encoder\.pos_conv\.0\.weight_v",
    ),
    "missing layer": (
        lambda cfg, w: {"cfg": cfg, "model": {k: v for k, v in w.items() if "encoder.layers.1." not in k}},
        r"weights for 1 layers; its configuration asks for 2",
    ),
    "wrong shape": (
        lambda cfg, w: {"cfg": cfg, "model": {**w, "layer_norm.weight": torch.zeros(31)}},
        r"layer_norm\.weight of shape \(31,\) instead of \(32,\)",
    ),
    "wrong small shape": (
        lambda cfg, w: {"cfg": cfg, "model": {**w, "layer_norm.bias": torch.zeros(31)}},
        r"layer_norm\.bias of shape \(31,\) instead of \(32,\)",
    ),
    "missing projection": (
        lambda cfg, w: {"cfg": changed(cfg, encoder_embed_dim=64), "model": w},
        r"without a projection \(post_extract_proj\) conv_layers must end with dim 64, found 32",
    ),
    "missing compressor": (
        lambda cfg, w: {"cfg": cfg, "model": {k: v for k, v in w.items() if not k.startswith("cif_")}},
        r"missing cif_subsampler",
    ),
    "huge config": (lambda cfg, w: {"cfg": changed(cfg, encoder_layers=10**9), "model": w}, r"asks for 1000000000"),
    "data2vec": (
        lambda cfg, w: {"cfg": changed(cfg, _name="data2vec_audio"), "model": w},
        r"model is 'data2vec_audio'; expected one of wav2vec2",
    ),
    "conformer": (
        lambda cfg, w: {"cfg": changed(cfg, layer_type="conformer"), "model": w},
        r"layer_type 'conformer'; only",
    ),
    "deep pos conv": (lambda cfg, w: {"cfg": changed(cfg, pos_conv_depth=5), "model": w}, r"pos_conv_depth 5; only 1"),
    "quantized input": (lambda cfg, w: {"cfg": changed(cfg, quantize_input=True), "model": w}, r"quantize_input True"),
    "activation": (
        lambda cfg, w: {"cfg": changed(cfg, activation_fn="tanh"), "model": w},
        r"activation must be one of",
    ),
    "extractor": (
        lambda cfg, w: {"cfg": changed(cfg, extractor_mode="x"), "model": w},
        r"extractor_mode must be one of",
    ),
    "list extractor": (
        lambda cfg, w: {"cfg": changed(cfg, extractor_mode=["x"]), "model": w},
        r"extractor_mode must be one of",
    ),
    "text number": (
        lambda cfg, w: {"cfg": changed(cfg, encoder_layers="2"), "model": w},
        r"encoder_layers must be a whole",
    ),
    "text truth": (
        lambda cfg, w: {"cfg": changed(cfg, conv_bias="yes"), "model": w},
        r"conv_bias must be true or false",
    ),
    "number text": (lambda cfg, w: {"cfg": changed(cfg, activation_fn=3), "model": w}, r"activation_fn must be a word"),
    "no config": (lambda cfg, w: {"cfg": None, "args": None, "model": w}, r"cfg and args entries are empty"),
    "odd config": (lambda cfg, w: {"cfg": [1], "model": w}, r"cfg entry is list"),
    "odd args": (lambda cfg, w: {"args": [1], "model": w}, r"args entry is list"),
    "no task": (lambda cfg, w: {"cfg": {"model": cfg["model"]}, "model": w}, r"no task section"),
    "bytes in config": (lambda cfg, w: {"cfg": changed(cfg, dropout=b"1"), "model": w}, r"holds a Bytes"),
    "no weights": (lambda cfg, w: {"cfg": cfg, "model": {}}, r"model entry is empty; expected a state dict"),
    "text weights": (lambda cfg, w: {"cfg": cfg, "model": {"mask_emb": "text"}}, r"holds a str under 'mask_emb'"),
    "integer weights": (
        lambda cfg, w: {"cfg": cfg, "model": {**w, "mask_emb": torch.zeros(2, dtype=torch.int64)}},
        r"mask_emb is of torch\.int64",
    ),
    "sparse weights": (
        lambda cfg, w: {"cfg": cfg, "model": {**w, "mask_emb": torch.eye(2).to_sparse()}},
        r"mask_emb is sparse",
    ),
    "float8 weights": (
        lambda cfg, w: {"cfg": cfg, "model": {**w, "mask_emb": w["mask_emb"].to(torch.float8_e4m3fn)}},
        r"mask_emb is .* of a rare dtype such as float8.*; expected a dense tensor",
    ),
    "weights with attributes": (
        lambda cfg, w: {"cfg": cfg, "model": {**w, "mask_emb": with_attribute(w["mask_emb"])}},
        r"mask_emb is .* or has attributes; expected a dense tensor",
    ),
    "other entries": (
        lambda cfg, w: {"state_dict": w, "epoch": 1},
        r"entries: epoch, state_dict; expected model with cfg",
    ),
    "nothing": (lambda cfg, w: {}, r"entries: none"),
    "a list": (lambda cfg, w: [1, 2], r"holds a list"),
    "odd s3prl": (lambda cfg, w: {"task_cfg": 1, "model_cfg": {}, "model_weight": w}, r"task_cfg entry is int"),
}


def changed(cfg, **values):
    return {**cfg, "model": {**cfg["model"], **values}}


def with_attribute(weight):
    parameter = torch.nn.Parameter(weight)
    parameter.extra = [1]
    return parameter


@pytest.mark.parametrize("case", WRONG_STATES)
def test_wrong_content_is_one_sentence(reference, save, case):
    """Every contradiction is a CheckpointError in one line with the file, what was found and what was expected."""
    make, message = WRONG_STATES[case]
    path = save(make(reference["cfg"], reference["model"]))
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


WRONG_FILES = {
    "empty": (b"", "an empty file"),
    "text": (b"<!DOCTYPE html><html>not found</html>", r"begins with b'<!DOCTYP'"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git-lfs pointer"),
    "zip": (b"PK\x03\x04 and nothing more", "damaged, cut short or not a checkpoint"),
    "pickle": (pickle.dumps([1], protocol=2), "not a checkpoint"),
    "safetensors": (b"\x10\0\0\0\0\0\0\0{nothing more", "not a readable safetensors file"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_not_a_checkpoint(tmp_path, case):
    """The error for a file that is not a checkpoint says what it is."""
    content, message = WRONG_FILES[case]
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_torchscript_is_refused(tmp_path):
    """The error for a TorchScript archive, which torch.load would run, says what it is."""
    torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(tmp_path / "program.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_checkpoint(tmp_path / "program.pt")


def test_missing_file_and_strange_folder(tmp_path):
    """A missing file and a folder that is not a Hugging Face model are named."""
    with pytest.raises(CheckpointError, match=r"absent\.pt: no such file"):
        read_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match="a folder without config.json"):
        read_checkpoint(tmp_path)


def test_strange_metadata_of_an_own_file(tmp_path):
    """Unexpected metadata in a file of our format is an error, not a crash."""
    from s3prl_ofa.model.storage import write_safetensors

    model, path = load(REF_TINY), tmp_path / "own.safetensors"
    write_safetensors(path, model.config, model.weights(), {"model_cfg": "[1]"})
    with pytest.raises(CheckpointError, match="model_cfg in its metadata holds a list"):
        read_checkpoint(path)
    write_safetensors(path, model.config, model.weights(), {"model_cfg": "{"})
    with pytest.raises(CheckpointError, match=r"own\.safetensors"):
        read_checkpoint(path)


def test_endless_configuration_is_refused():
    """A configuration that contains itself, or that expands from a few bytes, is an error."""
    loop = Container()
    loop.state = {"_content": [loop]}
    with pytest.raises(CheckpointError, match="more than 32 levels"):
        plain(loop)
    bomb = [0]
    for _ in range(30):
        bomb = [bomb, bomb]
    with pytest.raises(CheckpointError, match="100000 values"):
        plain(bomb)
    for value in ("x" * 1_000, {"x" * 1_000: 1}):
        with pytest.raises(CheckpointError, match="1000000 characters"):
            plain([value] * 1_001)


def test_conv_layers_are_parsed():
    """fairseq's expressions and lists from JSON give the same triples."""
    expected = ((32, 10, 5), *((32, 3, 2),) * 4, *((32, 2, 2),) * 2)
    assert parse_conv_layers(CONV) == expected
    assert parse_conv_layers("[(32, 10, 5)] + 4 * [[32, 3, 2]] + [(32, 2, 2)] * 2") == expected
    assert parse_conv_layers(json.loads(json.dumps(expected))) == expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("__import__('os').system('true')", "may hold only lists"),
        ("[(512, 10, 5)] * 10**9", "may hold only"),
        ("[(512, 10, 5)] * 1000000000", "more than 64 layers"),
        ("[(1, 1, 1)] * 64 + [(1, 1, 1)]", "at most 64"),
        ("[(1, 1, 1) for _ in 'a']", "may hold only"),
        ("[(1, 1)]", "triples"),
        ("[(1, 1, 'x')]", "whole number"),
        ("[(1, 1, True)]", "whole number"),
        ("7", "must be a list"),
        ("[(1,", "not a list expression"),
        ("\0", "."),
        ("(" * 500 + ")" * 500, "not a list expression"),
        ("[" * 3000, "characters long"),
        (3, "must be a list"),
    ],
)
def test_conv_layers_are_never_evaluated(expression, message):
    """Anything else in the expression is an error; nothing is called and nothing grows without bound."""
    with pytest.raises(ValueError, match=message):
        parse_conv_layers(expression)
