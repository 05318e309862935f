"""predict on trained experiments of asr, pr and sid: what evaluation finds, at any rate, resumable; -f's upstream."""

import functools
import json
import pathlib

import numpy as np
import pytest
import torch
from paths import CKPT

from s3prl_ofa import cli
from s3prl_ofa.checkpoint import convert, load
from s3prl_ofa.errors import CheckpointError
from s3prl_ofa.io.audio import load_audio
from s3prl_ofa.superb.predict.experiment import opened
from s3prl_ofa.superb.predict.predictors import segments

STEPS = "config.runner.total_steps=2,,config.runner.eval_step=2,,config.runner.save_step=2,,config.runner.log_step=2"
SPLIT = {"asr": "test-clean", "pr": "test", "sid": "test"}


@pytest.fixture(scope="module")
def experiments(corpora, tmp_path_factory):
    """A function (task) -> folder of it trained for two steps at lambd 0.5, sid with its upstream, and evaluated."""
    root = tmp_path_factory.mktemp("experiments")
    data = ["--librispeech", str(corpora / "LibriSpeech"), "--voxceleb1", str(corpora / "VoxCeleb1")]
    data += ["--prepared", str(corpora / "prepared"), "--mini", "-u", "ofa_wav2vec2", "-k", CKPT, "--lambd", "0.5"]

    @functools.cache
    def make(task):
        options = ["-m", "train", "-d", task, "-p", str(root / task), *data, "-o", STEPS, *["-f"] * (task == "sid")]
        assert cli.main(["run_downstream", *options]) == 0
        states = torch.load(root / task / "states-2.ckpt", weights_only=True)
        if task != "sid":  # two steps teach nothing: an output that says something
            shape = states["Downstream"]["model.linear.weight"].shape
            weight = 9 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
            states["Downstream"]["model.linear.weight"] = weight
        torch.save(states, root / task / "states-2.ckpt")
        assert cli.main(["run_downstream", "-m", "evaluate", "-e", str(root / task), "-t", SPLIT[task]]) == 0
        return root / task

    return make


@pytest.fixture
def predict(experiments, capsys):
    """A function (task, *options) -> the rows printed, by the stem of the file."""

    def call(task, *options):
        folder = experiments(task)
        capsys.readouterr()
        assert cli.main(["predict", str(folder), *map(str, options)]) == 0
        return {pathlib.Path(row["name"]).stem: row for row in map(json.loads, capsys.readouterr().out.splitlines())}

    return call


def pairs(path) -> dict[str, str]:
    """name and text of each line of what S3PRL's evaluation wrote."""
    lines = [line.split(maxsplit=1) for line in path.read_text().splitlines()]
    return {pathlib.Path(name).stem: (rest or [""])[0].strip() for name, *rest in lines}


def assert_ordered(row, pieces):
    times = [time for piece in pieces for time in (piece["start"], piece["end"])]
    assert all(0 <= time <= row["seconds"] + 0.03 for time in times)
    assert all(piece["start"] < piece["end"] for piece in pieces)
    assert [piece["start"] for piece in pieces] == sorted(piece["start"] for piece in pieces)


@pytest.mark.parametrize("task", ["asr", pytest.param("pr", marks=pytest.mark.slow)])
def test_transcripts_are_those_of_evaluation(task, predict, experiments, corpora):
    (ark,) = experiments(task).glob(f"{SPLIT[task]}-*hyp.ark")
    expected = pairs(ark)
    rows = predict(task, corpora / "LibriSpeech")
    assert expected.keys() <= rows.keys() and any(len(text) > 3 for text in expected.values())
    for name, text in expected.items():
        row = rows[name]
        assert row["text"].strip() == text
        pieces = row["words" if task == "asr" else "phones"]
        assert_ordered(row, pieces)
        if task == "asr":
            assert " ".join(piece["word"] for piece in pieces) == row["text"]


def test_speakers_are_those_of_evaluation(predict, experiments, corpora):
    rows = predict("sid", corpora / "VoxCeleb1")
    expected = pairs(experiments("sid") / "test_predict.txt")
    by_path = {row["audio"]: row for row in rows.values()}
    assert by_path
    for row in rows.values():
        probabilities = list(row["probabilities"].values())
        assert row["class"] == next(iter(row["probabilities"])) and probabilities == sorted(probabilities)[::-1]
        assert 0 < sum(probabilities) <= 1.0001
    found = {pathlib.Path(path).stem: row["class"] for path, row in by_path.items()}
    assert {name: found[name] for name in expected if name in found}.items() <= expected.items()


def test_another_rate_resuming_and_bad_files(experiments, tmp_path, audio_folder, caplog, capsys):
    (audio_folder / "bad.wav").write_bytes(b"RIFF")
    out = tmp_path / "out"
    command = ["predict", str(experiments("asr") / "states-2.ckpt"), str(audio_folder), "--out", str(out)]
    assert cli.main([*command, "--frame-period-ms", "60"]) == 1
    assert "bad.wav" in capsys.readouterr().err
    rows = (out / "predictions.jsonl").read_text().splitlines()
    assert len(rows) == 4
    (out / "predictions.jsonl").write_text("\n".join(rows[:2]) + "\n" + rows[2][:10])
    assert cli.main([*command, "--frame-period-ms", "60"]) == 1
    assert "2 of 5 files predicted" in capsys.readouterr().err
    lines = [line for line in (out / "predictions.jsonl").read_text().splitlines() if line in rows]
    assert sorted(lines) == sorted(rows)
    assert cli.main(command) == 2
    assert "holds results made with rate frame period 60 ms" in capsys.readouterr().err
    assert cli.main([*command, "--force", "--lambd", "0"]) == 1


def test_predict_needs_no_corpus_but_an_experiment(experiments, tmp_path, audio_folder, capsys):
    assert cli.main(["predict", str(tmp_path / "none"), str(audio_folder)]) == 2
    assert "there is neither a checkpoint nor a folder with states-*.ckpt" in capsys.readouterr().err
    states = torch.load(experiments("asr") / "states-2.ckpt", weights_only=True)
    states["Args"].downstream = "speech_translation"
    torch.save(states, tmp_path / "other.ckpt")
    assert cli.main(["predict", str(tmp_path / "other.ckpt"), str(audio_folder)]) == 2
    assert "predict knows the tasks asr, pr, sid; found speech_translation" in capsys.readouterr().err


def test_segments():
    """Labels have the times of the frames of the best path, also where the model subsamples them."""
    path = torch.eye(3)[[0, 1, 1, 0, 1, 2]]
    times = torch.stack([torch.arange(12) * 0.02, torch.arange(1, 13) * 0.02], 1)
    found = list(segments(path, times, {0}))
    assert [label for label, _, _ in found] == [1, 1, 2]
    assert [start for _, start, _ in found] == pytest.approx([0.04, 0.16, 0.2])
    assert [end for _, _, end in found] == pytest.approx([0.12, 0.2, 0.24])
    assert list(segments(path, times[:6], {0, 1})) == [(2, pytest.approx(0.1), pytest.approx(0.12))]


def test_upstream_of_an_experiment(experiments, tmp_path, make_wave, capsys):
    """What -f trained is read from the folder and the file, as a model, and converted; nothing else is one."""
    folder = experiments("sid")
    trained = torch.load(folder / "states-2.ckpt", weights_only=True)["Upstream"]
    model = load(folder)
    assert all(torch.equal(tensor, trained[f"model.{name}"]) for name, tensor in model.state_dict().items())
    assert model.fingerprint() != load(CKPT).fingerprint()
    convert(folder, tmp_path / "trained.safetensors")
    for source in (folder / "states-2.ckpt", tmp_path / "trained.safetensors"):
        assert load(source).fingerprint() == model.fingerprint()
    assert cli.main(["info", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "experiment"
    with pytest.raises(CheckpointError, match="did not train an upstream of ours"):
        load(experiments("asr"))
    states = torch.load(folder / "states-2.ckpt", weights_only=True)
    torch.save({**states, "UpstreamConfig": {"layers": "two"}}, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match="its UpstreamConfig cannot be used"):
        load(tmp_path / "bad.ckpt")


@pytest.mark.parametrize("shards", [(), pytest.param(("--shards", "2"), marks=pytest.mark.slow)], ids=["one", "two"])
def test_weighted_layers(experiments, tmp_path, audio_folder, capsys, shards):
    """extract --layer weighted writes what the task's featurizer gives its model."""
    states = torch.load(experiments("asr") / "states-2.ckpt", weights_only=True)
    states["Featurizer"]["weights"] = torch.tensor([0.5, -1.0, 2.0])
    states["Args"].upstream_feature_normalize = True
    (tmp_path / "exp").mkdir()
    torch.save(states, tmp_path / "exp" / "states-2.ckpt")
    command = ["extract", str(audio_folder), "--ckpt", CKPT, "--lambd", "0.5", "--out", str(tmp_path / "out")]
    weighted = ["--layer", "weighted", "--weights", str(tmp_path / "exp")]
    assert cli.main([*command, *weighted, *shards]) == 0
    wave = torch.from_numpy(load_audio(audio_folder / "a.flac"))
    with opened(tmp_path / "exp", {}, None, "cpu") as experiment, torch.no_grad():
        runner = experiment.runner
        (expected,) = runner.featurizer.model([wave], runner.upstream.model([wave]))
    found = torch.from_numpy(np.load(tmp_path / "out" / "features" / "a.flac.npy"))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert cli.main([*command, "--weights", str(experiments("asr")), "--layer", "weighted"]) == 2
    assert "holds results made with layer_weights" in capsys.readouterr().err
    assert cli.main([*command, *weighted[:3], CKPT]) == 2
    assert "neither an experiment of run_downstream nor a checkpoint of one" in capsys.readouterr().err
    states["Featurizer"]["weights"] = torch.zeros(2)
    torch.save(states, tmp_path / "exp" / "states-2.ckpt")
    assert cli.main([*command, *weighted]) == 2
    assert "expected the weights of 3 hidden states, found (2,)" in capsys.readouterr().err
