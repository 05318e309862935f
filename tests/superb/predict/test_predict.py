"""predict on trained experiments: what evaluation finds, without the corpus, at any rate, resumable; -f's upstream."""

import functools
import json
import pathlib
import types

import numpy as np
import pytest
import soundfile
import torch
import yaml
from paths import CKPT
from s3prl.downstream.ctc.text import CharacterTextSlotEncoder

from s3prl_ofa import cli
from s3prl_ofa.checkpoint import convert, load
from s3prl_ofa.errors import CheckpointError
from s3prl_ofa.io.audio import load_audio
from s3prl_ofa.superb.predict.experiment import open_experiment
from s3prl_ofa.superb.predict.predictors import recognize, segments

STEPS = "config.runner.total_steps=2,,config.runner.eval_step=2,,config.runner.save_step=2,,config.runner.log_step=2"
# the option that names each task's corpus, the corpus, the folder of it that is predicted, and the split evaluated
TASKS = {
    "asr": ("--librispeech", "LibriSpeech", "", "test-clean"),
    "pr": ("--librispeech", "LibriSpeech", "", "test"),
    "sf": ("--snips", "SNIPS", "test", "test"),
    "sid": ("--voxceleb1", "VoxCeleb1", "", "test"),
    "ks": ("--speech-commands", "speech_commands", "speech_commands_test_set_v0.01", "test"),
    "er": ("--iemocap", "IEMOCAP_full_release", "Session1", "test"),
    "ic": ("--fluent", "fluent_speech_commands_dataset", "wavs", "test"),
    "sd": ("--librimix", "LibriMix", "wav", "test"),
    "asv": ("--voxceleb1", "verification", "test/wav", "test"),
}
SLOTS = ("action", "object", "location")


@pytest.fixture(scope="module")
def experiments(corpora, tmp_path_factory):
    """A function (task) -> folder of it trained for two steps at lambd 0.5, sid with its upstream, and evaluated.

    probabilities.pt holds those of the evaluation. The corpus of the experiment is then gone."""
    root = tmp_path_factory.mktemp("experiments")
    common = ["--prepared", str(corpora / "prepared"), "--mini", "-u", "ofa_wav2vec2", "-k", CKPT, "--lambd", "0.5"]
    save = ["-o", "config.downstream_expert.scorerc.save_predictions=True"]

    @functools.cache
    def make(task):
        option, corpus, _, split = TASKS[task]
        options = [
            "-d",
            task,
            "-p",
            str(root / task),
            option,
            str(corpora / corpus),
            *common,
            *["-f"] * (task == "sid"),
        ]
        assert cli.main(["run_downstream", "-m", "train", *options, "-o", STEPS]) == 0
        states = torch.load(root / task / "states-2.ckpt", weights_only=True)
        generator = torch.Generator().manual_seed(1)
        for name, weight in states["Downstream"].items():
            if name.endswith(".linear.weight") and task != "sid":  # two steps teach nothing: outputs that say something
                states["Downstream"][name] = 9 * torch.randn(weight.shape, generator=generator)
        torch.save(states, root / task / "states-2.ckpt")
        found = []
        with pytest.MonkeyPatch.context() as patch:
            loss = torch.nn.CrossEntropyLoss.forward
            patch.setattr(
                torch.nn.CrossEntropyLoss, "forward", lambda *given: found.extend(given[1].softmax(1)) or loss(*given)
            )
            evaluation = ["run_downstream", "-m", "evaluate", "-e", str(root / task), "-t", split]
            assert cli.main([*evaluation, *save * (task == "sd")]) == 0
        torch.save(found, root / task / "probabilities.pt")
        gone = yaml.safe_dump(states["Config"]).replace(str(corpora), "/gone")
        torch.save({**states, "Config": yaml.safe_load(gone)}, root / task / "states-2.ckpt")
        return root / task

    return make


@pytest.fixture
def predict(experiments, corpora, capsys):
    """A function (task, *options) -> the lines printed for the folder of its corpus."""

    def call(task, *options):
        folder, (_, corpus, below, _) = experiments(task), TASKS[task]
        capsys.readouterr()
        assert cli.main(["predict", str(folder), str(corpora / corpus / below), *map(str, options)]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

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


@pytest.mark.parametrize("task", ["asr", pytest.param("pr", marks=pytest.mark.slow), "sf"])
def test_transcripts_are_those_of_evaluation(task, predict, experiments):
    (ark,) = experiments(task).glob(f"{TASKS[task][3]}-*hyp.ark")
    expected = pairs(ark)
    rows = {pathlib.Path(row["name"]).stem: row for row in predict(task)}
    assert expected.keys() <= rows.keys() and any(len(text) > 3 for text in expected.values())
    for name, text in expected.items():
        row = rows[name]
        assert row["text"].strip() == text
        pieces = row["phones" if task == "pr" else "words"]
        assert_ordered(row, pieces)
        if task == "asr":
            assert " ".join(piece["word"] for piece in pieces) == row["text"]


@pytest.mark.parametrize(
    ("marks", "last", "slots"),
    [
        ("O O song", None, [("song", "HIT")]),
        ("O artist artist", None, [("artist", "A HIT")]),
        ("artist O song", None, [("artist", "PLAY"), ("song", "HIT")]),
        ("O O song", -1, []),  # a slot that does not end is none in S3PRL's metrics
    ],
)
def test_slots_are_those_of_the_metrics(marks, last, slots):
    tokenizer = CharacterTextSlotEncoder([*" AHILPTY"], ["B-song", "E-song", "B-artist", "E-artist"])
    labels = tokenizer.encode(f"BOS PLAY A HIT EOS\tO {marks} PlayMusic")[:-1][:last]
    path = torch.eye(tokenizer.vocab_size)[[label for one in labels for label in (one, 0)]]
    expert = types.SimpleNamespace(tokenizer=tokenizer, projector=lambda frames: frames, model=lambda *given: given)
    times = torch.arange(len(path) + 1).unfold(0, 2, 1) / 50
    (row,) = recognize(expert, lambda waves: ([path], [times]), [None])
    assert row["text"] == tokenizer.decode(labels)
    assert [(word["word"], word["start"]) for word in row["words"]][0] == ("PLAY", 0.04 if "art" in marks[:3] else 0)
    assert " ".join(word["word"] for word in row["words"]) == "PLAY A HIT"
    assert [(slot["slot"], slot["value"]) for slot in row["slots"]] == slots


@pytest.mark.parametrize("task", ["ks", "er", "sid"])
def test_classes_are_those_of_evaluation(task, predict, experiments):
    """By S3PRL's names of the files, and with the probabilities of its logits."""
    (path,) = experiments(task).glob("test*_predict.txt")
    names = {"ks": 2, "sid": 3, "er": 1}[task]  # parts of the path in a name
    rows = {"-".join(pathlib.Path(row["audio"]).with_suffix("").parts[-names:]): row for row in predict(task)}
    expected = pairs(path)
    probabilities = torch.load(experiments(task) / "probabilities.pt")
    assert len(expected) == len(probabilities) > 1
    for (name, label), of_name in zip(expected.items(), probabilities, strict=True):
        assert rows[name]["class"] == label
        assert_probable(rows[name], of_name)


def assert_probable(row, probabilities):
    found = row["probabilities"]
    assert next(iter(found)) == row["class"]
    assert list(found.values()) == pytest.approx(sorted(probabilities.tolist())[::-1][:5], abs=1e-4)


def test_intents_are_those_of_evaluation(predict, experiments):
    rows = {pathlib.Path(row["name"]).stem: row for row in predict("ic")}
    lines = (experiments("ic") / "test_predict.csv").read_text().splitlines()
    probabilities = iter(torch.load(experiments("ic") / "probabilities.pt"))
    assert len(lines) == 2
    for name, *values in (line.split(",") for line in lines):
        for slot, value in zip(SLOTS, values, strict=True):
            assert rows[name][slot]["class"] == value
            assert_probable(rows[name][slot], next(probabilities))


def test_speaker_activity_is_that_of_evaluation(predict, experiments):
    """Also in the recording's last piece, which is one frame."""
    h5py = pytest.importorskip("h5py")
    for row in predict("sd"):
        if not row["name"].startswith("test"):
            continue
        with h5py.File(experiments("sd") / "scoring" / "predictions" / f"{pathlib.Path(row['name']).stem}.h5") as file:
            expected = file["T_hat"][:251] > row["threshold"]
        found = np.zeros_like(expected)
        for speaker, intervals in enumerate(row["speakers"]):
            for start, end in intervals:
                found[round(start * 50) : round(end * 50), speaker] = True
        assert (found == expected).all() and 0 < expected.sum() < expected.size


def test_speakers_are_verified_as_in_evaluation(predict, experiments, corpora, tmp_path, capsys):
    """The scores of trials are S3PRL's; without trials there is one for every pair; others than asv have none."""
    trials = corpora / "verification" / "veri_test2.txt"
    *rows, first, second = predict("asv", "--trials", trials)
    assert len(rows) == 4 and all(np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-4) for row in rows)
    lines = (experiments("asv") / "test_predict.txt").read_text().splitlines()
    expected = [float(line.split()[1]) for line in lines]
    assert [first["score"], second["score"]] == pytest.approx(expected, abs=1e-5)
    assert [first["enrol"], first["test"]] == trials.read_text().split()[1:3]
    assert predict("asv", "--out", tmp_path / "out") == []
    every = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert len(every) == 6 and first in every
    other = tmp_path / "other.txt"
    other.write_text("a.wav b.wav\n")
    capsys.readouterr()
    command = ["predict", str(experiments("asv")), str(corpora / "verification"), "--trials", str(other)]
    assert cli.main(command) == 2
    assert "other.txt, line 1: a.wav is not among the audio given" in capsys.readouterr().err
    other.write_text("a.wav")
    assert cli.main(command) == 2
    assert "line 1: expected two files, or 0 or 1 and two files, found 'a.wav'" in capsys.readouterr().err
    command[1] = str(experiments("ks"))
    other.write_text("")
    assert cli.main(command) == 2
    assert "is for an experiment of asv, found speech_commands" in capsys.readouterr().err


def test_another_rate_resuming_and_bad_files(experiments, tmp_path, audio_folder, caplog, capsys):
    (audio_folder / "bad.wav").write_bytes(b"RIFF")
    soundfile.write(audio_folder / "short.wav", np.zeros(320), 16_000)
    out = tmp_path / "out"
    command = ["predict", str(experiments("asr") / "states-2.ckpt"), str(audio_folder), "--out", str(out)]
    assert cli.main([*command, "--frame-period-ms", "60"]) == 1
    said = capsys.readouterr().err
    assert "bad.wav" in said
    assert "short.wav: too short: 320 samples at 16000 Hz, at least 400 are needed" in said
    rows = (out / "predictions.jsonl").read_text().splitlines()
    assert len(rows) == 4
    (out / "predictions.jsonl").write_text("\n".join(rows[:2]) + "\n" + rows[2][:10])
    assert cli.main([*command, "--frame-period-ms", "60"]) == 1
    assert "2 of 6 files predicted" in capsys.readouterr().err
    lines = [line for line in (out / "predictions.jsonl").read_text().splitlines() if line in rows]
    assert sorted(lines) == sorted(rows)
    assert cli.main(command) == 2
    assert "holds results made with rate frame period 60 ms" in capsys.readouterr().err
    assert cli.main([*command, "--force", "--lambd", "0"]) == 1


def test_predictions_of_others_stay(experiments, tmp_path, make_wave, capsys):
    """Another file of the same name, and another upstream, are refused: earlier predictions are neither replaced nor
    taken for those of the new one."""
    for number, day in enumerate(("day1", "day2")):
        (tmp_path / day).mkdir()
        soundfile.write(tmp_path / day / "a.wav", make_wave(0.5 + number), 16_000)
    options = ["--out", str(tmp_path / "out")]
    command = ["predict", str(experiments("asr") / "states-2.ckpt")]
    assert cli.main([*command, str(tmp_path / "day1"), *options]) == 0
    rows = (tmp_path / "out" / "predictions.jsonl").read_text()
    capsys.readouterr()
    assert cli.main([*command, str(tmp_path / "day2"), *options]) == 2
    assert f"a.wav was already made from {tmp_path / 'day1' / 'a.wav'}; give another --out" in capsys.readouterr().err
    model = load(CKPT)
    with torch.no_grad():
        model.encoder.layers[0].fc1.weight.mul_(2)
    model.save(tmp_path / "other.safetensors")
    assert cli.main([*command, str(tmp_path / "day1"), "-k", str(tmp_path / "other.safetensors"), *options]) == 2
    assert "holds results made with upstream " in capsys.readouterr().err
    assert (tmp_path / "out" / "predictions.jsonl").read_text() == rows


def test_predict_needs_no_corpus_but_an_experiment(experiments, tmp_path, audio_folder, capsys):
    assert cli.main(["predict", str(tmp_path / "none"), str(audio_folder)]) == 2
    assert "there is neither a checkpoint nor a folder with states-*.ckpt" in capsys.readouterr().err
    states = torch.load(experiments("asr") / "states-2.ckpt", weights_only=True)
    states["Args"].downstream = "speech_translation"
    torch.save(states, tmp_path / "other.ckpt")
    assert cli.main(["predict", str(tmp_path / "other.ckpt"), str(audio_folder)]) == 2
    assert (
        "predict knows the tasks asr, pr, sid, ks, ic, sf, asv, sd, er; found speech_translation"
        in capsys.readouterr().err
    )


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
    capsys.readouterr()
    assert cli.main(["info", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "experiment"
    with pytest.raises(CheckpointError, match="did not train an ofa_wav2vec2 upstream"):
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
    with open_experiment(tmp_path / "exp", {}, None, "cpu") as experiment, torch.no_grad():
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
