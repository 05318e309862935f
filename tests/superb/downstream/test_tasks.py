"""SUPERB's tasks beside asr, pr and sid through S3PRL's training loop, on a few synthetic utterances, at any rate."""

import json
import pathlib

import pytest
from paths import CKPT

from s3prl_ofa import cli
from s3prl_ofa.superb.compat.task_names import S3PRL_DOWNSTREAM

STEPS = ",,".join(f"config.runner.{key}={{0}}" for key in ("total_steps", "eval_step", "save_step", "log_step"))
# the option that names each task's corpus, its folder, and the score
TASKS = {
    "ks": ("--speech-commands", "speech_commands", "acc"),
    "ic": ("--fluent", "fluent_speech_commands_dataset", "acc"),
}


@pytest.fixture
def train(corpora, tmp_path, monkeypatch):
    """A function (task, *options) that trains two steps in an empty folder, in ``exp``."""
    monkeypatch.chdir(tmp_path)

    def call(task: str, *options: str) -> int:
        option, folder, _ = next(value for name, value in TASKS.items() if task in (name, S3PRL_DOWNSTREAM[name]))
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
    """Each task resumes from its last step, whatever the rate, by S3PRL's name of it too."""
    assert train(S3PRL_DOWNSTREAM[task], "--lambd", lambd) == 0
    assert cli.main(["run_downstream", "-m", "train", "-e", "exp", "-o", STEPS.format(4)]) == 0
    assert pathlib.Path("exp/states-4.ckpt").is_file()
    assert 0 <= evaluated(TASKS[task][2]) <= 1
