"""Where a checkpoint may be: the Hugging Face Hub (a stand-in), a URL, the home folder, a folder with our own file."""

import http.server
import json
import pathlib
import shutil
import subprocess
import sys

import pytest
import torch
from hub import Hub
from huggingface_hub import constants
from paths import CKPT

from s3prl_ofa import cli
from s3prl_ofa.checkpoint import checkpoint_path, convert, is_remote, load
from s3prl_ofa.checkpoint.push import push
from s3prl_ofa.errors import CheckpointError, UsageError

WAVES = [torch.sin(torch.arange(8_000) / 9)]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub whose cache is empty, and a token that may write."""
    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)  # older versions have none
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fingerprint(golden_model):
    return golden_model.fingerprint()


def test_push_and_load(hub, fingerprint, capsys):
    """What push writes is the checkpoint, whatever the spelling; private and revision go to the Hub."""
    assert cli.main(["push", CKPT, "user/ofa"]) == 0
    assert capsys.readouterr().out.strip() == f"{hub.address}/user/ofa"
    assert not hub.private["user/ofa"]
    assert set(hub.repositories["user/ofa"]["main"]) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    for spelling in ("user/ofa", "hf://user/ofa", "hf://user/ofa@main", "user/ofa@main"):
        assert is_remote(spelling) and load(spelling).fingerprint() == fingerprint
    push(CKPT, "hf://user/other", private=True, revision="step-5")
    assert hub.private["user/other"] and hub.repositories["user/other"]["main"] == {}
    assert load("user/other@step-5").fingerprint() == fingerprint


def test_model_card(hub):
    """The lines of the card load the model, with transformers too; a plain model needs nothing of ours there."""
    push(CKPT, "user/ofa")
    card = hub.repositories["user/ofa"]["main"]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: s3prl-ofa\n") and "trust_remote_code" in card
    python = [block.partition("```")[0] for block in card.split("```python\n")[1:]]
    assert len(python) == 2
    scope = {"waves": WAVES}
    exec(python[0], scope)
    assert scope["out"].hidden_states[-1].shape[2] == 32
    # the second line is run by tests/test_hf.py, where transformers is imported
    assert 'AutoModel.from_pretrained("user/ofa", lambd=0.5)' in python[1] and "import s3prl_ofa.hf" in python[1]


def test_offline(hub, monkeypatch):
    """What is in the Hub's cache loads without the Hub; what is not, is refused by name."""
    push(CKPT, "user/ofa")
    here = load("user/ofa").fingerprint()
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load("user/ofa").fingerprint() == here and not hub.requests
    with pytest.raises(
        CheckpointError, match="^user/unknown: there is no such file or folder, and the Hugging Face Hub"
    ):
        load("user/unknown")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("user/none", "user/none: there is no such file or folder, and the Hugging Face Hub does not provide it"),
        ("user/empty@v9", "does not provide it"),
        ("hf://user", "hf://user: expected a repository of the Hugging Face Hub, hf://USER/NAME@REVISION"),
        ("user/empty", "user/empty: this repository has no weights"),
        ("user/text", "what was downloaded from user/text is not a checkpoint"),
    ],
)
def test_errors_of_the_hub(hub, source, message):
    hub.repositories["user/empty"] = {"main": {"config.json": b"{}"}}
    hub.repositories["user/text"] = {"main": {"config.json": b"{}", "model.safetensors": b"no weights"}}
    with pytest.raises(CheckpointError, match=message):
        load(source)


def test_pickles_are_taken_only_without_safetensors(hub, tmp_path, reference):
    """A repository's safetensors are read even if it has pickles; our own file of any name will do."""
    convert(CKPT, tmp_path / "ours.safetensors")
    ours = (tmp_path / "ours.safetensors").read_bytes()
    hub.repositories["user/ours"] = {"main": {"ofa_base.safetensors": ours, "pytorch_model.bin": b"x"}}
    assert load("user/ours").compressor is not None
    assert not [path for path in hub.requests if "pytorch_model" in path]
    hub.repositories["user/pickle"] = {
        "main": {"pytorch_model.bin": b"x", "config.json": b'{"model_type": "wav2vec2"}'}
    }
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load("user/pickle")


def test_push_keeps_a_card(hub):
    """A repository's README.md, which someone may have written, stays; the weights are replaced."""
    push(CKPT, "user/ofa")
    files = hub.repositories["user/ofa"]["main"]
    files |= {"README.md": b"by hand", "model.safetensors": b"old"}
    push(CKPT, "user/ofa")
    assert files["README.md"] == b"by hand" and files["model.safetensors"] != b"old"


def test_push_is_refused(hub, monkeypatch):
    with pytest.raises(UsageError, match="expected the name of a repository, USER/NAME"):
        push(CKPT, "ofa")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(UsageError, match="^user/ofa: the Hugging Face Hub does not accept it .*401.*hf auth login"):
        push(CKPT, "user/ofa")


def test_local_names_win(tmp_path, monkeypatch, fingerprint):
    """A path is never a repository, nor is a name whose folder is here or that ends like a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    assert not any(
        map(is_remote, ("tiny", "models/none", "user/model.pt", "a/b/c", pathlib.Path("user/name"), "./x/y"))
    )
    with pytest.raises(CheckpointError, match=r"^user/model\.pt: no such file"):
        load("user/model.pt")
    convert(CKPT, tmp_path / "models" / "any.safetensors")
    for source in ("~/models/any.safetensors", "~/models", "models", tmp_path / "models"):
        assert load(source).fingerprint() == fingerprint
    shutil.copy(tmp_path / "models" / "any.safetensors", tmp_path / "models" / "second.safetensors")
    with pytest.raises(CheckpointError, match=r"models: a folder without config\.json"):
        load("models")


def test_url(served, tmp_path, monkeypatch):
    """A URL is downloaded once, or again with refresh; a failed download is one message and leaves nothing."""
    address, requests = served
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        assert load(f"{address}/ref_tiny.pt").config.layers == 2
    assert len(requests) == 1
    checkpoint_path(f"{address}/ref_tiny.pt", refresh=True)
    assert len(requests) == 2
    with pytest.raises(CheckpointError, match=f"^{address}/none.pt cannot be downloaded .*404"):
        load(f"{address}/none.pt")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["ref_tiny.pt"]


def test_a_download_that_is_cut(served, tmp_path, monkeypatch):
    """Half a file is never kept: one message says so, and the next call gets the whole."""
    address, _ = served
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(
            http.server.SimpleHTTPRequestHandler, "copyfile", lambda self, file, to: to.write(file.read(5000))
        )
        with pytest.raises(CheckpointError, match=rf"^{address}/ref_tiny.pt cannot be downloaded \(.*5000 out of \d+"):
            load(f"{address}/ref_tiny.pt")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert load(f"{address}/ref_tiny.pt").config.layers == 2


@pytest.mark.slow
def test_environment(hub, tmp_path, fingerprint):
    """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are those of huggingface_hub; commands take the same spellings."""
    push(CKPT, "user/ofa")
    home = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        command = [sys.executable, "-m", "s3prl_ofa", "info", "hf://user/ofa", "--json"]
        import os

        done = subprocess.run(command, env={**os.environ, **home, **more}, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["format"] == "huggingface"
