"""SUPERB's tasks beside asr, pr and sid through S3PRL's training loop, on a few utterances, at any rate."""

import json
import pathlib
import signal
import subprocess
import sys

import pytest
import torch
from paths import CKPT, DEMO, ROOT

from s3prl_ofa import cli
from s3prl_ofa.sweep.grid.jobs import prepare
from s3prl_ofa.sweep.grid.schema import grid_from

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


@pytest.fixture(scope="module")
def real_corpora(mini_librispeech, tmp_path_factory) -> pathlib.Path:
    """Three clips of each kind of real speech, laid out as the corpora of the tasks are."""
    commands = mini_librispeech.with_name("mini_commands")
    if not (commands / "keywords.tsv").is_file():
        pytest.skip(f"keywords and orders are not at hand: {commands} is missing")
    root = tmp_path_factory.mktemp("real")
    lay_out = [sys.executable, ROOT / "benchmarks" / "superb_corpora.py", commands, mini_librispeech, root]
    subprocess.run([*lay_out, "--limit", "3"], check=True)
    (root / "VoxCeleb1").rename(root / "verification")
    return root


@pytest.fixture
def train(request, tmp_path, monkeypatch):
    """A function (task, *options, steps=2, folder="exp") that trains in a folder of an empty one, on the corpora of the
    fixture that is its parameter."""
    corpora = request.getfixturevalue(getattr(request, "param", "corpora"))
    monkeypatch.chdir(tmp_path)

    def call(task: str, *options: str, steps: int = 2, folder: str = "exp") -> int:
        option, corpus, _ = TASKS[task]
        data = [option, str(corpora / corpus), "--mini"]
        upstream = ["-u", "ofa_wav2vec2", "-k", CKPT]
        task_options = ["-m", "train", "-d", task, "-p", folder, *upstream, *data, "-o", STEPS.format(steps)]
        return cli.main(["run_downstream", *task_options, *options])

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


RATES = ["0", "0.5", "1"]
TWICE = STEPS.replace("total_steps={0}", "total_steps=4").format(2)  # a checkpoint halfway


def assert_same_weights() -> None:
    resumed, whole = (torch.load(f"{name}/states-4.ckpt", weights_only=True)["Downstream"] for name in ("exp", "whole"))
    weights = {name for name in whole if name != "best_score"}  # which an evaluation after step 2 sets
    assert all(torch.equal(resumed[name], whole[name]) for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("lambd", RATES)
def test_resume_at_any_rate(task, lambd, train):
    """Each task resumes from its last step, whatever the rate, and ends with the weights that it would have had."""
    assert train(task, "--lambd", lambd) == 0
    assert cli.main(["run_downstream", "-m", "train", "-e", "exp", "-o", STEPS.format(4)]) == 0
    assert 0 <= evaluated(TASKS[task][2]) <= 1
    assert train(task, "--lambd", lambd, "-o", TWICE, folder="whole") == 0
    assert_same_weights()


@pytest.mark.slow
@pytest.mark.parametrize("train", ["real_corpora"], indirect=True)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("lambd", RATES)
def test_interrupted_on_real_speech(task, lambd, train, monkeypatch):
    """Interrupted by SIGINT after a checkpoint, each task continues by the same command on real speech, whatever the
    rate, is evaluated, and ends with the weights that it would have had."""
    options, save = ("--lambd", lambd, "-a", "-o", TWICE), torch.save

    def interrupted(states, *args):
        if states["Step"] == 4:
            signal.raise_signal(signal.SIGINT)
        save(states, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        assert train(task, *options) == 130
    assert [path.name for path in pathlib.Path("exp").glob("states-*.ckpt")] == ["states-2.ckpt"]
    assert train(task, *options) == 0
    assert evaluated(TASKS[task][2]) >= 0
    assert train(task, *options, folder="whole") == 0
    assert_same_weights()


GRID = {"checkpoints": {"tiny": CKPT}, "rates": {"lambd": 0.5}, "mini": True}


@pytest.mark.parametrize(
    ("task", "metric", "higher_is_better", "frames"),
    [
        ("ks", "acc", True, "native"),
        ("ic", "acc", True, "native"),
        ("er", "acc", True, "native"),
        ("sf", "slot_type_f1", True, "native"),
        ("asv", "EER", False, "native"),
        ("sd", "der", False, "upsampled"),
    ],
)
def test_sweeps_know_each_score(task, metric, higher_is_better, frames, corpora):
    """A grid needs only a task's name and its data; shares are shown in percent."""
    option, folder, _ = TASKS[task]
    data = {option.removeprefix("--").replace("-", "_"): str(corpora / folder)}
    (job,) = prepare(grid_from(GRID | {"tasks": [task], "data": data})).values()
    assert (job.metric, job.higher_is_better, job.unit) == (metric, higher_is_better, 100)
    assert (job.output_frames, job.asked_repeat) == (frames, "auto" if task == "sf" else 1)
    assert job.config["runner"]["total_steps"] > 0 and job.test_split == "test"


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
def test_query_by_example_needs_no_training(search, split, capfd):
    """A part of a document is found in it and nowhere else; the search is an evaluation of a new experiment."""
    assert search("evaluate", "-t", split, "--lambd", "0.5", "-l", "0") == 0
    found = json.loads(pathlib.Path(f"exp/measured_{split}.json").read_text())
    assert found["scores"] == {"mtwv": 1.0} and found["options"]["output_frames"] == "upsampled"
    assert cli.main(["predict", "exp", str(DEMO / "audio")]) == 2
    assert "exp: qbe trains no model to predict with" in capfd.readouterr().err.splitlines()[-1]


def test_query_by_example_is_not_trained(search, capfd):
    assert search("train") == 2
    assert "-d quesst14_dtw is not trained" in capfd.readouterr().err.splitlines()[-1]
    assert not pathlib.Path("exp").exists()
