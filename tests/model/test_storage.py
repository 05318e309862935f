"""Our own file format: what is saved is read back bit for bit, and nothing else passes for it."""

import json

import pytest
import safetensors.torch
import torch
from models import BASE, CONFIGS, noise_waves, random_model, random_weights

import s3prl_ofa
from s3prl_ofa.errors import CheckpointError
from s3prl_ofa.model import OFAWav2Vec2
from s3prl_ofa.model.storage import read_safetensors, write_safetensors

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_save_and_load_weights_round_trip_bit_for_bit(tmp_path, name, dtype):
    """Promise: what model.save writes is read back bit for bit, config included, in float32, float16 and bfloat16, and
    gives the same features bit for bit."""
    model = random_model(CONFIGS[name]).to(dtype)
    path = tmp_path / "model.safetensors"
    model.save(path)
    config, weights, _ = read_safetensors(path)
    assert config == CONFIGS[name]
    expected = model.weights()
    assert set(weights) == set(expected)
    for key, weight in weights.items():
        assert weight.dtype == dtype and torch.equal(weight, expected[key]), key
    again = OFAWav2Vec2(config).to(dtype)
    again.load_weights(weights)
    waves = noise_waves([3000, 700])
    for rate in ({}, {"lambd": 0.5}):
        one, two = model.extract(waves, **rate), again.extract(waves, **rate)
        assert all(torch.equal(a, b) for a, b in zip(one.hidden_states, two.hidden_states, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_load_reads_a_saved_model_bit_for_bit(tmp_path, dtype):
    """Promise: s3prl_ofa.load reads a saved model back bit for bit."""
    model = random_model(BASE).to(dtype)
    path = tmp_path / "model.safetensors"
    model.save(path)
    again = s3prl_ofa.load(path, dtype=dtype)
    assert again.config == BASE and not again.training
    assert all(torch.equal(weight, again.weights()[name]) for name, weight in model.weights().items())
    if dtype != torch.float32:
        assert all(torch.equal(w.float(), s3prl_ofa.load(path).weights()[k]) for k, w in model.weights().items())


def test_the_file_holds_the_config_and_fairseq_s_names(tmp_path):
    """Promise: safetensors with the config, as JSON, in its metadata, and fairseq's names: any safetensors reader can
    read it."""
    path = tmp_path / "model.safetensors"
    random_model(BASE).save(path)
    with safetensors.safe_open(path, "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert names == set(random_weights(BASE))
    assert any(json.loads(text).get("pos_conv_kernel") == 128 for text in metadata.values() if text.startswith("{"))


def test_further_metadata_is_kept(tmp_path):
    """Promise: further metadata goes into the file and comes back."""
    path = tmp_path / "folder" / "model.safetensors"
    write_safetensors(path, BASE, random_weights(BASE), {"source": "a test"})
    config, weights, metadata = read_safetensors(path)
    assert metadata["source"] == "a test" and config == BASE and set(weights) == set(random_weights(BASE))


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    """Promise: a file is written whole or not at all."""
    path = tmp_path / "model.safetensors"
    random_model(BASE).save(path)
    before = path.read_bytes()
    with pytest.raises(Exception):  # noqa: B017 (any failure will do)
        write_safetensors(path, BASE, {"weight": "no tensor"})
    assert path.read_bytes() == before and [item.name for item in tmp_path.iterdir()] == [path.name]


def truncated(data):
    return data[: len(data) // 2]


def cut_in_the_header(data):
    return data[:40]


def empty(data):
    return b""


def longer(data):
    return data + b"more"


def other_bytes(data):
    return bytes(range(256)) * 20


def text(data):
    return b"hello, this is no checkpoint\n" * 10


def huge_header(data):
    return (2**62).to_bytes(8, "little") + data[8:]


@pytest.mark.parametrize("damage", [truncated, cut_in_the_header, empty, longer, other_bytes, text, huge_header])
def test_damaged_files_are_refused(tmp_path, damage):
    """Promise: not a checkpoint or truncated: a CheckpointError, one line that names the file; load says the same."""
    path = tmp_path / "model.safetensors"
    random_model(BASE).save(path)
    path.write_bytes(damage(path.read_bytes()))
    for read in (read_safetensors, s3prl_ofa.load):
        with pytest.raises(CheckpointError, match="model.safetensors") as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["metadata", "json", "key", "value", "list", "format"])
def test_safetensors_of_others_are_refused(tmp_path, kind):
    """Promise: a safetensors file that is not ours, or whose config cannot be, is a CheckpointError that names it."""
    path = tmp_path / "model.safetensors"
    random_model(BASE).save(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    key = next(key for key, text in metadata.items() if text.startswith("{"))
    values = json.loads(metadata[key])
    changed = {
        "metadata": None,
        "json": metadata | {key: metadata[key][:-5]},
        "key": metadata | {key: json.dumps(values | {"color": "blue"})},
        "value": metadata | {key: json.dumps(values | {"heads": 5})},
        "list": metadata | {key: "[1, 2]"},
        "format": {name: "of a later version" if name == "format" else text for name, text in metadata.items()},
    }[kind]
    safetensors.torch.save_file(random_weights(BASE), path, changed)
    with pytest.raises(CheckpointError, match="model.safetensors"):
        read_safetensors(path)


def test_weights_that_do_not_fit_the_config_are_named(tmp_path):
    """Promise: unknown, missing or misshapen weights in our own file are an error that names them."""
    path = tmp_path / "model.safetensors"
    good = random_weights(BASE)
    name = "encoder.layers.2.fc2.bias"
    cases = (
        {key: weight for key, weight in good.items() if key != name},
        good | {name: torch.zeros(3)},
        good | {"encoder.surplus.weight": torch.zeros(48)},
    )
    for weights, said in zip(cases, (name, name, "encoder.surplus.weight"), strict=True):
        write_safetensors(path, BASE, weights)
        with pytest.raises(CheckpointError, match=f"model.safetensors.*{said}"):
            s3prl_ofa.load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    """Promise: a missing file is one clear sentence that names it; so is a folder without a model."""
    for path in (tmp_path / "nothing.safetensors", tmp_path):
        for read in (read_safetensors, s3prl_ofa.load):
            with pytest.raises(CheckpointError, match=path.name):
                read(path)
