"""SUPERB's tasks beside asr, pr and sid through S3PRL's training loop, on a few synthetic utterances, at any rate."""

import json
import pathlib

import pytest
import torch
from paths import CKPT

from s3prl_ofa import cli

STEPS = ",,".join(f"config.runner.{key}={{0}}" for key in ("total_steps", "eval_step", "save_step", "log_step"))
# the option that names each task's corpus, its folder, and the score
TASKS = {
    "ks": ("--speech-commands", "speech_commands", "acc"),
    "ic": ("--fluent", "fluent_speech_commands_dataset", "acc"),
    "sf": ("--snips", "SNIPS", "slot_type_f1"),
    "sd": ("--librimix", "LibriMix", "der"),
    "er": ("--iemocap", "IEMOCAP_full_release", "acc"),
    "asv": ("--voxceleb1", "verification", "EER"),
}


@pytest.fixture
def train(corpora, tmp_path, monkeypatch):
    """A function (task, *options) that trains two steps in an empty folder, in ``exp``."""
    monkeypatch.chdir(tmp_path)

    def call(task: str, *options: str) -> int:
        option, folder, _ = TASKS[task]
        data = [option, str(corpora / folder), "--mini"]
        upstream = ["-u", "ofa_wav2vec2", "-k", CKPT]
        return cli.main(
            [
                "run_downstream",
                "-m",
                "train",
                "-d",
                task,
                "-p",
                "exp",
                *upstream,
                *data,
                "-o",
                STEPS.format(2),
                *options,
            ]
        )

    return call


def evaluated(metric: str) -> float:
    assert cli.main(["run_downstream", "-m", "evaluate", "-e", "exp"]) == 0
    found = json.loads(pathlib.Path("exp/measured_test.json").read_text())
    return found["scores"][metric]


@pytest.mark.parametrize("task", TASKS)
def test_train_and_evaluate(task, train):
    """Each task trains and evaluates on compressed frames, and its score is measured."""
    assert train(task, "--lambd", "0.5") == 0
    assert 0 <= evaluated(TASKS[task][2]) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("lambd", ["0", "1"])
def test_resume_at_any_rate(task, lambd, train):
    """Each task resumes from its last step, whatever the rate."""
    assert train(task, "--lambd", lambd) == 0
    assert cli.main(["run_downstream", "-m", "train", "-e", "exp", "-o", STEPS.format(4)]) == 0
    assert pathlib.Path("exp/states-4.ckpt").is_file()
    assert 0 <= evaluated(TASKS[task][2]) <= 1


def test_slots_are_stored_with_the_model(train):
    """An experiment of sf holds the names of its slots, and no other labels are used with it."""
    assert train("sf") == 0
    slots = pathlib.Path("exp/slots.txt")
    assert slots.read_text() == "O\nsong\nartist"
    config = torch.load("exp/states-2.ckpt", weights_only=True)["Config"]
    assert config["downstream_expert"]["slots"] == slots.read_text()
    other = pathlib.Path("slots.txt")
    other.write_text("O\nartist")
    override = f"config.downstream_expert.text.slots_file={other.resolve()}"
    assert cli.main(["run_downstream", "-m", "evaluate", "-e", "exp", "-o", override]) == 0


@pytest.fixture
def search(corpora, tmp_path, monkeypatch):
    """A function (mode, *options) that runs query by example."""
    monkeypatch.chdir(tmp_path)
    task = ["-d", "qbe", "--mini", "--quesst", str(corpora / "quesst14Database"), "-u", "ofa_wav2vec2", "-k", CKPT]
    return lambda mode, *options: cli.main(["run_downstream", "-m", mode, *task, "-p", "exp", *options])


@pytest.mark.parametrize("split", ["dev", "test"])
def test_query_by_example_needs_no_training(search, split):
    """A part of a document is found in it and nowhere else; the search is an evaluation of a new experiment."""
    assert search("evaluate", "-t", split, "--lambd", "0.5", "-l", "0") == 0
    found = json.loads(pathlib.Path(f"exp/measured_{split}.json").read_text())
    assert found["scores"] == {"mtwv": 1.0} and found["options"]["output_frames"] == "upsampled"


def test_query_by_example_is_not_trained(search, capfd):
    assert search("train") == 2
    assert "-d qbe is not trained" in capfd.readouterr().err.splitlines()[-1]
    assert not pathlib.Path("exp").exists()
