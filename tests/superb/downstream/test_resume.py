"""An interrupted training ends like an uninterrupted one, and every run writes what it measured."""

import json
import pathlib

import pytest
import torch
from paths import CKPT

from s3prl_ofa import cli


@pytest.fixture
def train(corpora, tmp_path, monkeypatch):
    """A function (task, folder, *overrides, upstream=...) that trains 10 steps, saving at each second."""
    monkeypatch.chdir(tmp_path)
    data = ["--librispeech", str(corpora / "LibriSpeech"), "--voxceleb1", str(corpora / "VoxCeleb1")]
    data += ["--prepared", str(corpora / "prepared"), "--mini"]
    every = {"total_steps": 10, "eval_step": 3, "save_step": 2, "log_step": 2, "max_keep": 9}

    def call(task, folder, *overrides, upstream=("ofa_wav2vec2", "-k", CKPT, "--lambd", "0.5")):
        changes = [*(f"config.runner.{name}={value}" for name, value in every.items()), *overrides]
        options = ["-m", "train", "-a", "-d", task, "-p", folder, "-o", ",,".join(changes), *data, "-u", *upstream]
        return cli.main(["run_downstream", *options])

    return call


def stored(path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def kill_at(monkeypatch, step: int):
    """Makes saving at this step fail."""
    save = torch.save

    def killed(states, file, *args):
        if states["Step"] == step:
            raise KeyboardInterrupt
        save(states, file, *args)

    monkeypatch.setattr(torch, "save", killed)


DATARC = "config.downstream_expert.datarc"
SHORT_PIECES = (f"{DATARC}.max_timestep=16000", f"{DATARC}.train_batch_size=1")  # random ones; 4 batches an epoch


@pytest.mark.parametrize(
    ("task", "overrides"),
    [
        ("sid", SHORT_PIECES),
        ("sid", (*SHORT_PIECES, f"{DATARC}.num_workers=1", "config.runner.gradient_accumulate_steps=3")),
        ("asr", (f"{DATARC}.batch_size=2", "config.downstream_expert.modelrc.RNNs.dropout=[0.5]")),
    ],
)
def test_interrupted_and_the_same(task, overrides, train, monkeypatch):
    """Resumed from a checkpoint in the middle of an epoch and from one at its end, a run ends with the weights of an
    uninterrupted one, bit for bit: order of utterances, random pieces, dropout, SpecAug, optimizer."""
    assert train(task, "whole", *overrides) == 0
    for step in (4, 8, 10):
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            assert train(task, "cut", *overrides) == 130
        assert not pathlib.Path("cut", f"states-{step}.ckpt").exists()
    assert train(task, "cut", *overrides) == 0
    whole, cut = stored("whole/states-10.ckpt"), stored("cut/states-10.ckpt")
    assert whole["Step"] == cut["Step"] == 10 and whole["Epoch"] == cut["Epoch"]
    for part in ("Downstream", "Featurizer"):
        assert all(torch.equal(value, cut[part][name]) for name, value in whole[part].items()), part
    before = stored("whole/states-8.ckpt")["Downstream"]
    assert any(not torch.equal(value, before[name]) for name, value in whole["Downstream"].items())


def test_checkpoints_without_a_position_resume(train):
    """An experiment of S3PRL, or of an earlier version, has none, and resumes as in S3PRL."""
    assert train("sid", "exp") == 0
    states = stored("exp/states-8.ckpt")
    del states["Position"]
    pathlib.Path("exp/states-10.ckpt").unlink()
    torch.save(states, "exp/states-8.ckpt")
    assert train("sid", "exp") == 0
    assert stored("exp/states-10.ckpt")["Step"] == 10


@pytest.mark.parametrize("upstream", [("ofa_wav2vec2", "-k", CKPT, "--lambd", "0.5"), ("mfcc",)])
def test_measured(upstream, train, capfd):
    """measured_test.json has score, frame period, MACs and speed of an evaluation, measured_train.json the time per
    batch; for S3PRL's upstreams too."""
    assert train("sid", "exp", upstream=upstream) == 0
    assert json.loads(pathlib.Path("exp/measured_train.json").read_text())["seconds_per_batch"] > 0
    capfd.readouterr()
    assert cli.main(["run_downstream", "-m", "evaluate", "-e", "exp"]) == 0
    printed = float(capfd.readouterr().out.split("test acc: ")[1].split()[0])
    found = json.loads(pathlib.Path("exp/measured_test.json").read_text())
    assert found["scores"]["acc"] == pytest.approx(printed) and "loss" in found["scores"]
    assert (found["options"] or {}).get("lambd") == (None if upstream == ("mfcc",) else 0.5)
    assert found["split"] == "test" and found["utterances"] == 2 and 3 < found["audio_seconds"] < 5
    assert found["frame_period_ms"] == pytest.approx(1000 * found["audio_seconds"] / found["frames"])
    expected = 10 if upstream == ("mfcc",) else 33
    assert found["frame_period_ms"] == pytest.approx(expected, rel=0.1)
    assert found["upstream_seconds_per_second"] > 0 and found["downstream_seconds_per_second"] > 0
    assert found["macs_per_second"] > 1000 and found["peak_memory_mb"] > 100 and found["device"]
