"""The device of a model, by name."""

import pytest
import torch

import s3prl_ofa
from s3prl_ofa import cli
from s3prl_ofa.device import device_name, resolve_device
from s3prl_ofa.errors import UsageError


@pytest.mark.parametrize(("gpu", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto(monkeypatch, gpu, expected):
    """auto is the GPU where there is one."""
    tried = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch, "zeros", lambda size, device: tried.append(device) or torch.ones(size))
    assert resolve_device("auto") == torch.device(expected) and tried == [expected]


@pytest.mark.parametrize("name", ["cpu", "cpu:0", torch.device("cpu")])
def test_devices_that_are_there(name):
    """Names and torch's own devices are taken."""
    assert resolve_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["abacus", "", "cuda:99", "meta", torch.device("meta"), 1.5])
def test_devices_that_are_not(name, golden_checkpoint):
    """Unknown, missing, and meta, which holds no data: refused by name, before a checkpoint is read."""
    for use in (resolve_device, lambda name: s3prl_ofa.load(golden_checkpoint.with_name("none.pt"), device=name)):
        with pytest.raises(UsageError, match=f"^device {name} (cannot be used|is unknown).*expected auto, cpu, cuda"):
            use(name)


def test_name_of_a_processor(monkeypatch):
    """Two generations of processors that a virtual machine calls the same are told apart: their rounding differs."""
    names = []
    for capability in ("AVX2", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        names.append(device_name(torch.device("cpu")))
    assert names[0].removesuffix(" (AVX2)") == names[1].removesuffix(" (AVX512)") != ""
    assert names[0] != names[1]


@pytest.mark.parametrize(
    "command",
    [
        ["extract", "audio", "--ckpt", "tiny", "--out", "out"],
        ["info", "tiny"],
        ["guidance", "segment", "--manifest", "train.tsv", "--out", "out", "--ckpt", "tiny", "--layer", "1"],
        ["run_downstream", "-m", "train", "-u", "ofa_wav2vec2", "-k", "tiny", "-d", "sid", "--mini", "-p", "exp"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_checks_it(command, audio_folder, tmp_path, monkeypatch, capsys):
    """--device meta is refused in one line by every command that runs a model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.tsv").write_text(f"{audio_folder}\na.flac\t16000\n")
    if command[0] == "run_downstream":
        from s3prl_ofa.resources import AUDIO

        command = [*command, "--voxceleb1", str(AUDIO)]
    assert cli.main([*command, "--device", "meta"]) == 2
    assert "error: device meta cannot be used" in capsys.readouterr().err
