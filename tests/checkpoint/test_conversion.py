"""Conversion keeps what the target can hold, overwrites nothing unless forced, and leaves no partial files."""

import json
import os
from pathlib import Path

import pytest
import torch
from paths import REF_TINY

from s3prl_ofa import cli
from s3prl_ofa.checkpoint import conversion, convert, load, read_checkpoint
from s3prl_ofa.errors import CheckpointError, UsageError
from s3prl_ofa.model import ModelConfig, OFAWav2Vec2
from s3prl_ofa.model.storage import write_safetensors

TINY = ModelConfig(
    conv_layers=((8, 20, 10), (8, 32, 32)), dim=12, ffn_dim=16, heads=2, layers=2, pos_conv_kernel=4, pos_conv_groups=2
)
FILE_NAMES = {"safetensors": "x.safetensors", "fairseq": "x.pt", "s3prl": "x_s3prl.pt"}


@pytest.fixture
def plain(tmp_path):
    """A plain model with random weights, without those of pretraining."""
    torch.manual_seed(0)
    OFAWav2Vec2(TINY).save(tmp_path / "plain.safetensors")
    return tmp_path / "plain.safetensors"


def same_content(one, other):
    one, other = read_checkpoint(one), read_checkpoint(other)
    assert one.config == other.config and one.model_cfg == other.model_cfg and one.task_cfg == other.task_cfg
    assert set(one.weights) == set(other.weights)
    assert all(torch.equal(weight, other.weights[name]) for name, weight in one.weights.items())


@pytest.mark.parametrize("first", FILE_NAMES)
@pytest.mark.parametrize("second", FILE_NAMES)
def test_chains_keep_everything(tmp_path, first, second):
    """Config, weights (pretraining's too) and fairseq's configuration survive any two conversions bit for bit."""
    (tmp_path / "1").mkdir()
    one = convert(REF_TINY, tmp_path / "1" / FILE_NAMES[first], to=first)
    two = convert(one, tmp_path / FILE_NAMES[second], to=second)
    assert read_checkpoint(two).format == second
    same_content(REF_TINY, two)


def test_fairseq_file_has_fairseqs_layout(tmp_path):
    """The written file has the entries and names that fairseq's loader needs."""
    state = torch.load(convert(REF_TINY, tmp_path / "x.pt"), weights_only=True)
    original = torch.load(REF_TINY, weights_only=True)
    assert set(state) == set(original)
    assert state["args"] is None and state["cfg"]["model"] == original["cfg"]["model"]
    assert state["cfg"]["task"] == original["cfg"]["task"]
    assert state["extra_state"]["train_iterator"]["epoch"] == 1 and state["optimizer_history"][-1]["num_updates"] == 0
    assert set(state["model"]) == set(original["model"])
    assert (tmp_path / "x.pt").stat().st_size < 1.5 * sum(weight.nbytes for weight in state["model"].values())


def test_fairseq_file_of_a_plain_model(plain, tmp_path, caplog):
    """Configuration follows from the model; weights that fairseq's strict loading needs are added, with a warning."""
    state = torch.load(convert(plain, tmp_path / "x.pt"), weights_only=True)
    cfg, weights = state["cfg"]["model"], state["model"]
    assert cfg["_name"] == "wav2vec2" and cfg["conv_feature_layers"] == "[(8, 20, 10), (8, 32, 32)]"
    assert cfg["encoder_embed_dim"] == 12 and cfg["extractor_mode"] == "default" and not cfg["quantize_targets"]
    assert state["cfg"]["task"]["_name"] == "audio_pretraining" and "subsample" not in cfg
    assert weights["encoder.pos_conv.0.weight_g"].shape == (1, 1, 4) and "encoder.pos_conv.0.weight" not in weights
    assert weights["mask_emb"].shape == (12,) and weights["project_q.weight"].shape == (12, 8)
    assert weights["final_proj.weight"].shape == (12, 12)
    assert "mask_emb" in caplog.text and "random ones are written" in caplog.text
    again = load(tmp_path / "x.pt")
    assert again.config == TINY
    for name, weight in load(plain).weights().items():
        torch.testing.assert_close(again.weights()[name], weight)


def test_s3prl_file_loads_in_s3prls_layout(plain, tmp_path):
    """S3PRL's converted files have exactly its three entries, with the sections its classes are made from."""
    state = torch.load(convert(plain, tmp_path / "x.pt", to="s3prl"), weights_only=True)
    assert list(state) == ["task_cfg", "model_cfg", "model_weight"]
    assert state["task_cfg"]["normalize"] is False and state["model_cfg"]["encoder_layers"] == 2


def test_compressor_without_known_configuration(tmp_path):
    """A model with a compressor from our format is written with the reference's settings for it."""
    load(REF_TINY).save(tmp_path / "own.safetensors")
    state = torch.load(convert(tmp_path / "own.safetensors", tmp_path / "x.pt"), weights_only=True)
    assert state["cfg"]["model"]["subsample"] == "cif" and state["cfg"]["model"]["mixup"] is True
    assert load(tmp_path / "x.pt").config == load(REF_TINY).config


def test_projection_that_fairseq_cannot_hold(tmp_path):
    """A projection between equal widths that is not the identity cannot be written for fairseq."""
    config = ModelConfig(**{**TINY.to_dict(), "dim": 8, "ffn_dim": 8})
    torch.manual_seed(0)
    OFAWav2Vec2(config).save(tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match="both 8 wide"):
        convert(tmp_path / "own.safetensors", tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


def test_a_quantizer_that_contradicts_itself(plain, tmp_path):
    """Weights that contradict each other do not give the sizes that fairseq's configuration needs."""
    checkpoint = read_checkpoint(plain)
    heads = {"quantizer.vars": torch.zeros(1, 7, 4), "project_q.weight": torch.zeros(6, 8)}
    write_safetensors(tmp_path / "odd.safetensors", checkpoint.config, {**checkpoint.weights, **heads})
    with pytest.raises(CheckpointError, match=r"quantizer\.vars of shape \(1, 7, 4\) and project_q\.weight"):
        convert(tmp_path / "odd.safetensors", tmp_path / "x.pt")


@pytest.mark.parametrize("to", ["safetensors", "fairseq", "s3prl", "huggingface"])
def test_nothing_is_overwritten_unasked(plain, tmp_path, to):
    """An existing target is left alone, or with force replaced as a whole."""
    target = tmp_path / "target"
    convert(plain, target, to=to)
    before = target.stat().st_ino
    with pytest.raises(UsageError, match="target exists"):
        convert(plain, target, to=to)
    assert target.stat().st_ino == before
    convert(plain, target, to=to, force=True)
    assert target.stat().st_ino != before and read_checkpoint(target).config == TINY
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["plain.safetensors", "target"]


@pytest.mark.parametrize("to", ["safetensors", "fairseq", "s3prl", "huggingface"])
def test_in_place(plain, tmp_path, to):
    """A checkpoint can be converted onto itself, although its tensors are mapped from the file that is replaced."""
    target = convert(plain, tmp_path / "self", to=to)
    expected = {name: weight.clone() for name, weight in read_checkpoint(target).weights.items()}
    convert(target, target, to=to, force=True)
    found = read_checkpoint(target).weights
    assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


def test_force_does_not_empty_a_strange_folder(plain, tmp_path):
    """force replaces the folder of a model, but no folder with anything else in it, and no folder by a file."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        convert(plain, tmp_path / "home", force=True)
    with pytest.raises(UsageError, match="would become a file but is a folder"):
        convert(plain, tmp_path / "home", to="fairseq", force=True)
    with pytest.raises(UsageError, match="would become a folder but is a file"):
        convert(plain, plain, to="huggingface", force=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("to", ["safetensors", "fairseq", "huggingface"])
def test_a_failed_write_leaves_what_was_there(plain, tmp_path, monkeypatch, to):
    """If writing fails halfway, the old target is intact and nothing else is left behind."""
    target = convert(plain, tmp_path / "target", to=to)

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr("s3prl_ofa.model.storage.save_file", fail)
    monkeypatch.setattr("s3prl_ofa.checkpoint.huggingface.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        convert(plain, target, to=to, force=True)
    assert read_checkpoint(target).config == TINY
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["plain.safetensors", "target"]


def test_a_folder_that_cannot_be_put_in_place_brings_the_old_one_back(plain, tmp_path, monkeypatch):
    """If the last rename fails, the old folder is restored."""
    target = convert(plain, tmp_path / "target", to="huggingface")
    rename = Path.rename

    def fail_for_new(self, other):
        if self.name == "new":
            raise OSError("no")
        return rename(self, other)

    monkeypatch.setattr(conversion.pathlib.Path, "rename", fail_for_new)
    with pytest.raises(OSError, match="no"):
        convert(plain, target, to="huggingface", force=True)
    assert read_checkpoint(target).config == TINY


def test_the_format_is_seen_from_the_name(plain, tmp_path):
    """The suffix chooses the format; for an unknown one the error lists the choices and nothing is written."""
    for name, expected in {
        "a.safetensors": "safetensors",
        "a.pt": "fairseq",
        "a.pth": "fairseq",
        "a": "huggingface",
    }.items():
        assert read_checkpoint(convert(plain, tmp_path / "new" / name)).format == expected
    with pytest.raises(UsageError, match="one of safetensors, fairseq, s3prl, huggingface, found '.onnx'"):
        convert(plain, tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="found 'onnx'"):
        convert(plain, tmp_path / "a.pt", to="onnx")
    with pytest.raises(UsageError, match="found a URL"):
        convert(plain, "https://host/a.pt")


def test_command(plain, tmp_path, capsys):
    """``s3prl-ofa convert IN OUT --to FORMAT --force`` says what it wrote, with --quiet nothing."""
    arguments = ["convert", os.fspath(plain), os.fspath(tmp_path / "x.pt"), "--to", "s3prl"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'x.pt'}\n"
    assert read_checkpoint(tmp_path / "x.pt").format == "s3prl"
    assert cli.main(arguments) == 2
    assert cli.main([*arguments, "--force", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_half_precision_is_kept(plain, tmp_path):
    """Weights keep their dtype."""
    load(plain, dtype=torch.float16).save(tmp_path / "half.safetensors")
    convert(tmp_path / "half.safetensors", tmp_path / "x.pt")
    weights = read_checkpoint(tmp_path / "x.pt").weights
    assert weights["encoder.layers.0.fc1.weight"].dtype == torch.float16
    assert weights["encoder.pos_conv.0.weight_g"].dtype == torch.float16


def test_weights_are_rounded_on_request(plain, tmp_path):
    """dtype=float16 halves a file that still loads, by the command too; a weight beyond its range is named."""
    assert cli.main(["convert", str(plain), str(tmp_path / "half.safetensors"), "--dtype", "float16"]) == 0
    half, whole = read_checkpoint(tmp_path / "half.safetensors"), read_checkpoint(plain)
    assert all(torch.equal(weight, whole.weights[name].half()) for name, weight in half.weights.items())
    assert load(tmp_path / "half.safetensors").feature_norm.weight.dtype == torch.float32
    with pytest.raises(UsageError, match="float16, bfloat16, float32.*int8"):
        convert(plain, tmp_path / "x.safetensors", dtype="int8")
    weights = whole.weights | {"layer_norm.weight": 1e6 * torch.ones_like(whole.weights["layer_norm.weight"])}
    write_safetensors(tmp_path / "large.safetensors", whole.config, weights)
    with pytest.raises(CheckpointError, match="layer_norm.weight holds 1e\\+06; .* finite in torch.float16"):
        convert(tmp_path / "large.safetensors", tmp_path / "x.safetensors", dtype="float16")
    weights["layer_norm.weight"][3] = float("nan")
    write_safetensors(tmp_path / "nan.safetensors", whole.config, weights)
    with pytest.raises(CheckpointError, match="layer_norm.weight holds nan"):
        convert(tmp_path / "nan.safetensors", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_own_metadata_is_json(tmp_path):
    """Our files hold fairseq's configuration as plain JSON."""
    from safetensors import safe_open

    convert(REF_TINY, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert json.loads(file.metadata()["model_cfg"])["subsample"] == "cif"
