"""Every known format is read."""

import argparse
import sys
import types

import numpy as np
import pytest
import torch
from paths import GOLDEN, REF_TINY

from s3prl_ofa.checkpoint import convert, load, read_checkpoint
from s3prl_ofa.checkpoint.contents import split_weight_norm
from s3prl_ofa.errors import CheckpointError, UsageError
from s3prl_ofa.model import ModelConfig, OFAWav2Vec2
from s3prl_ofa.model.names import merge_weight_norm
from s3prl_ofa.model.products import Int8Linear

CONV = "[(32, 10, 5)] + [(32, 3, 2)] * 4 + [(32,2,2)] + [(32,2,2)]"


def same_as_reference(path):
    """The checkpoint at ``path`` has the config and the weights of the reference's file."""
    expected, found = read_checkpoint(REF_TINY), read_checkpoint(path)
    assert found.config == expected.config
    assert set(found.weights) == set(expected.weights)
    assert all(torch.equal(found.weights[name], weight) for name, weight in expected.weights.items())
    return found


def test_reference_file(reference):
    """The reference's file: config, weights including those of pretraining, and fairseq's configuration."""
    checkpoint = read_checkpoint(REF_TINY)
    assert checkpoint.format == "fairseq" and checkpoint.path == REF_TINY
    assert checkpoint.config == ModelConfig(
        conv_layers=((32, 10, 5), *((32, 3, 2),) * 4, *((32, 2, 2),) * 2),
        projection=False,
        dim=32,
        ffn_dim=64,
        heads=4,
        layers=2,
        pos_conv_kernel=16,
        pos_conv_groups=4,
        compressor="cif",
    )
    assert {"mask_emb", "quantizer.vars", "encoder.pos_conv.0.weight_g"} <= set(checkpoint.weights)
    assert checkpoint.model_cfg == reference["cfg"]["model"] and checkpoint.task_cfg == reference["cfg"]["task"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_loaded_reference_computes_the_golden_values(reference, save, zipped):
    """The loaded model is the reference's, from both file formats of torch, in eval mode and frozen."""
    model = load(save(reference, zipped))
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    golden = np.load(GOLDEN / "ref_tiny_golden.npz")
    out = model.extract([np.load(GOLDEN / "ref_tiny_wav_1s.npy").squeeze()], lambd=0.5)
    np.testing.assert_allclose(out.hidden_states[-1], golden["1s/lambd0.5/x"], atol=1e-4)


def test_load_takes_device_and_dtype():
    """``load`` respects device and dtype; a dtype that is not floating point is refused."""
    assert load(REF_TINY, device=torch.device("cpu"), dtype=torch.bfloat16).feature_norm.weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype must be one of"):
        load(REF_TINY, dtype=torch.int8)


@torch.inference_mode()
def test_a_model_loaded_in_inference_mode_packs_its_weights():
    """Promise: inference mode does not make a model slower, whose weights would be packed again at every call."""
    model = load("tiny")
    assert not any(weight.is_inference() for weight in model.parameters())


@pytest.mark.parametrize("native", [True, False])
def test_load_takes_the_fastest_dtype(native, monkeypatch):
    """``auto`` is bfloat16 where the CPU has instructions for it; ``int8`` changes the encoder's linear layers only."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    expected = torch.bfloat16 if native else torch.float32
    model = load(REF_TINY, dtype="auto")
    assert {weight.dtype for weight in model.parameters()} == {expected}
    quantized = load(REF_TINY, dtype="int8")
    assert {weight.dtype for weight in quantized.parameters()} == {expected}
    assert quantized.fingerprint() == model.fingerprint()
    kinds = {type(module) for module in quantized.encoder.modules()}
    assert Int8Linear in kinds and torch.nn.Linear not in kinds
    assert quantized.extract([torch.randn(4_000)]).hidden_states[-1].isfinite().all()


def test_8_bits_are_for_the_cpu(monkeypatch):
    """Another device is refused, and what to use there said."""
    monkeypatch.setattr("s3prl_ofa.checkpoint.reading.resolve_device", torch.device)
    with pytest.raises(UsageError, match="'int8' is for the CPU, found device cuda.*bfloat16"):
        load(REF_TINY, device="cuda", dtype="int8")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_old_file_with_namespace(reference, save, zipped):
    """fairseq's older files have one flat Namespace and no cfg; only arguments of model and task are kept."""
    model_cfg = {key: value for key, value in reference["cfg"]["model"].items() if key != "_name"}
    args = argparse.Namespace(
        **model_cfg, arch="wav2vec2", task="audio_pretraining", normalize=False, lr=[0.1], data="d"
    )
    path = save({"args": args, "cfg": None, "model": reference["model"], "extra_state": {"epoch": 1}}, zipped)
    found = same_as_reference(path)
    assert found.model_cfg["_name"] == "wav2vec2" and found.model_cfg["final_dim"] == 16 and "lr" not in found.model_cfg
    assert found.task_cfg == {"_name": "audio_pretraining", "data": "d", "normalize": False}


@pytest.fixture
def omegaconf(monkeypatch):
    """Classes with omegaconf's names and pickled layout, which fail if a reader builds them."""

    def make(module, name):
        def refuse(self, state):
            raise AssertionError(f"{name} was built")

        made = type(name, (), {"__module__": module, "__qualname__": name, "__setstate__": refuse})
        monkeypatch.setattr(sys.modules[module], name, made, raising=False)
        return made

    for module in ("omegaconf", "omegaconf.dictconfig", "omegaconf.listconfig", "omegaconf.nodes", "omegaconf.base"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    classes = {
        "dict": make("omegaconf.dictconfig", "DictConfig"),
        "list": make("omegaconf.listconfig", "ListConfig"),
        "node": make("omegaconf.nodes", "AnyNode"),
        "int": make("omegaconf.nodes", "IntegerNode"),
        "container metadata": make("omegaconf.base", "ContainerMetadata"),
        "metadata": make("omegaconf.base", "Metadata"),
    }

    def wrap(value, parent=None):
        from collections import defaultdict
        from typing import Any

        kind = type(value).__name__ if type(value) in (dict, list, int) else "node"
        made, metadata = classes[kind](), classes["metadata" if kind in ("node", "int") else "container metadata"]()
        metadata.__dict__.update(ref_type=Any, object_type=dict, optional=True, resolver_cache=defaultdict(dict))
        content = value
        if kind == "dict":
            content = {key: wrap(item, made) for key, item in value.items()}
        elif kind == "list":
            content = [wrap(item, made) for item in value]
        made.__dict__.update(
            _metadata=metadata, _parent=parent, **{"_val" if kind in ("node", "int") else "_content": content}
        )
        return made

    return wrap


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_old_file_with_omegaconf(reference, save, monkeypatch, omegaconf, zipped):
    """fairseq's files with a cfg of omegaconf's classes and a numpy number as loss: nothing is built."""
    state = {
        "args": None,
        "cfg": omegaconf(reference["cfg"]),
        "model": reference["model"],
        "extra_state": {"val_loss": np.float64(2.5), "curve": np.arange(3.0)},
    }
    path = save(state, zipped)
    monkeypatch.undo()
    found = same_as_reference(path)
    assert found.model_cfg == reference["cfg"]["model"] and found.task_cfg == reference["cfg"]["task"]


@pytest.mark.parametrize("core", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numpy_numbers_of_old_and_new_numpy(reference, save, core):
    """Numbers of numpy 1 and 2, which are pickled under different names, are read."""
    path = save({"cfg": reference["cfg"], "model": reference["model"], "loss": np.float64(2.5)}, zipped=False)
    data = path.read_bytes()
    spelling = b"numpy._core.multiarray" if b"numpy._core.multiarray" in data else b"numpy.core.multiarray"
    path.write_bytes(data.replace(spelling, core))
    same_as_reference(path)


def test_ctc_model_gives_the_wav2vec2_inside(reference, save, caplog):
    """A model fine-tuned with CTC gives the wav2vec 2.0 inside and its config, without the output layer."""
    inside = {f"w2v_encoder.w2v_model.{name}": weight for name, weight in reference["model"].items()}
    head = {"w2v_encoder.proj.weight": torch.zeros(9, 32), "w2v_encoder.proj.bias": torch.zeros(9)}
    model_cfg = {
        "_name": "wav2vec_ctc",
        "w2v_args": {"model": reference["cfg"]["model"], "task": reference["cfg"]["task"]},
    }
    cfg = {"model": model_cfg, "task": {"_name": "audio_finetuning", "normalize": True, "labels": "ltr"}}
    found = read_checkpoint(save({"cfg": cfg, "model": {**inside, **head}}))
    assert found.config.normalize and found.config.layers == 2 and found.config.compressor == "cif"
    assert found.task_cfg["_name"] == "audio_pretraining" and set(found.weights) == set(reference["model"])

    w2v_args = argparse.Namespace(**{**reference["cfg"]["model"], "arch": "wav2vec2", "normalize": False})
    args = argparse.Namespace(arch="wav2vec_ctc", task="audio_pretraining", normalize=False, w2v_args=w2v_args)
    assert read_checkpoint(save({"args": args, "model": {**inside, **head}})).config == read_checkpoint(REF_TINY).config

    with pytest.raises(CheckpointError, match=r"unknown weights decoder\.weight"):
        read_checkpoint(save({"cfg": cfg, "model": {**inside, "decoder.weight": torch.zeros(1)}}))
    with pytest.raises(CheckpointError, match="w2v_args"):
        read_checkpoint(save({"cfg": {"model": {"_name": "wav2vec_ctc"}, "task": {}}, "model": inside}))


def test_s3prl_converted_file(reference, save):
    """S3PRL's layout of a converted file."""
    state = {
        "task_cfg": reference["cfg"]["task"],
        "model_cfg": reference["cfg"]["model"],
        "model_weight": reference["model"],
    }
    found = same_as_reference(save(state))
    assert found.format == "s3prl" and found.model_cfg == reference["cfg"]["model"]


def test_own_file_is_read_bit_for_bit(tmp_path):
    """``load`` is the inverse of ``model.save`` for a model with a compressor."""
    model = load(REF_TINY)
    model.save(tmp_path / "own.safetensors")
    again = load(tmp_path / "own.safetensors")
    assert again.config == model.config
    weights = again.weights()
    assert all(torch.equal(weights[name], weight) for name, weight in model.weights().items())


def test_missing_settings_have_fairseqs_defaults(save):
    """Settings that are missing or null are those of wav2vec 2.0 Base, as in fairseq."""
    config = ModelConfig(layers=1)
    weights = OFAWav2Vec2(config).weights()
    path = save(
        {"cfg": {"model": {"_name": "wav2vec2", "encoder_layers": 1, "conv_pos": None}, "task": {}}, "model": weights}
    )
    assert read_checkpoint(path).config == config


@pytest.mark.parametrize(("ratio", "pooling"), [({}, 2), ({"fixed_subsample_ratio": 3}, 3)])
def test_fixed_subsampling_is_average_pooling(ratio, pooling, reference, save, tmp_path):
    """The reference's ``subsample: fixed`` has no weights; it is read from the configuration, 2 where that has no
    number, and kept in every format that can hold it."""
    model_cfg = {**reference["cfg"]["model"], "subsample": "fixed"}
    model_cfg.pop("fixed_subsample_ratio", None)
    weights = {name: weight for name, weight in reference["model"].items() if not name.startswith("cif_")}
    path = save({"cfg": {"model": {**model_cfg, **ratio}, "task": {}}, "model": weights})
    config = read_checkpoint(path).config
    assert (config.compressor, config.pooling, config.frame_period_ms) == ("none", pooling, 20 * pooling)
    load(path).save(tmp_path / "saved.safetensors")
    convert(tmp_path / "saved.safetensors", tmp_path / "again.pt")
    convert(path, tmp_path / "folder")
    for name in ("saved.safetensors", "again.pt", "folder"):
        assert read_checkpoint(tmp_path / name).config == config


def test_weights_of_a_compressor_decide(reference, save):
    """A file with them is read with a compressor, whatever its configuration says."""
    cfg = {"model": {**reference["cfg"]["model"], "subsample": "fixed"}, "task": {}}
    config = read_checkpoint(save({"cfg": cfg, "model": reference["model"]})).config
    assert (config.compressor, config.pooling) == ("cif", 1)


def test_only_model_and_task_sections_matter(reference, save):
    """Odd values in other sections, or in arguments that do not concern the model, are ignored."""
    same_as_reference(save({"cfg": {**reference["cfg"], "common": {"odd": b"1"}}, "model": reference["model"]}))
    args = argparse.Namespace(**reference["cfg"]["model"], arch="wav2vec2", odd=b"1")
    same_as_reference(save({"args": args, "model": reference["model"]}))


def test_new_names_of_weight_norm(reference, save):
    """Newer torch's names of the parts of the positional convolution give the same model."""
    weights = dict(reference["model"])
    for old, new in {"weight_g": "original0", "weight_v": "original1"}.items():
        weights[f"encoder.pos_conv.0.parametrizations.weight.{new}"] = weights.pop(f"encoder.pos_conv.0.{old}")
    same_as_reference(save({"cfg": reference["cfg"], "model": weights}))


def test_split_weight_norm_is_the_inverse_of_merging(reference):
    """A positional convolution is the same after weight norm and merging, also with a kernel position of zeros."""
    torch.manual_seed(0)
    whole = torch.randn(8, 2, 5)
    whole[..., 3] = 0
    halves = split_weight_norm({"encoder.pos_conv.0.weight": whole})
    assert halves["encoder.pos_conv.0.weight_g"].shape == (1, 1, 5)
    torch.testing.assert_close(merge_weight_norm(halves)["encoder.pos_conv.0.weight"], whole)
