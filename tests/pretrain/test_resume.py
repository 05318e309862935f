"""Trainings that were stopped and resumed through the real command: the same weights bit for bit."""

import os
import pathlib
import re
import shutil
import signal
import time

import pytest
from pretraining import corpus_settings, differences, make_corpus, read_checkpoint, run_here, start, write_config

UPDATES, EVERY = 12, 5  # 8 updates in the first epoch, then 4 of two batches each
PATIENCE = 600  # seconds


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


def config(path: pathlib.Path, **sections):
    return write_config(
        path,
        checkpoint={"save_interval_updates": EVERY, "keep_interval_updates": -1},
        optimization={"max_update": UPDATES, "update_freq": [1, 2]},
        dataset={"disable_validation": True},
        **sections,
    )


def kill(arguments, log: pathlib.Path, updates: int) -> None:
    """Runs the command, and kills it and its workers once it has made so many updates."""
    process = start(arguments, log)
    try:
        give_up = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < give_up:
            done = [int(number) for number in re.findall(r'"num_updates": "(\d+)"', log.read_text())]
            if done and max(done) >= updates:
                break
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    assert status == -signal.SIGKILL, log.read_text()[-3000:]


def assert_same_training(one: pathlib.Path, other: pathlib.Path):
    """Weights, optimizer and counters of two checkpoints are the same bit for bit."""
    one, other = read_checkpoint(one), read_checkpoint(other)
    for key in ("model", "last_optimizer_state", "task_state"):
        assert differences(one[key], other[key], key) == []
    histories = [state["optimizer_history"][-1] for state in (one, other)]
    assert histories[0] == histories[1] and histories[0]["num_updates"] == UPDATES


def copy_fifth_update(through: pathlib.Path, stopped: pathlib.Path, name: str) -> None:
    """Leaves ``stopped`` as a run that was killed after its fifth update."""
    (stopped / "checkpoints").mkdir(parents=True)
    shutil.copy(through / "checkpoints" / name, stopped / "checkpoints" / "checkpoint_last.pt")


@pytest.mark.slow
def test_killed_equals_never_stopped(corpus, tmp_path):
    """Resumed in the middle of an epoch with update_freq 1, killed with SIGKILL at update_freq 2 and resumed
    again: every bit as if it had never stopped, with a different number of data workers too."""
    yaml = config(tmp_path / "tiny.yaml")
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    assert run_here(["--config", yaml, *corpus_settings(corpus, through)]) == 0

    copy_fifth_update(through, stopped, "checkpoint_1_5.pt")
    command = ["--config", yaml, *corpus_settings(corpus, stopped)]
    kill([*command, "dataset.num_workers=2"], tmp_path / "killed.log", 2 * EVERY)
    assert run_here(command) == 0
    resumed = r"Loaded checkpoint .*checkpoint_last.pt \(epoch (\d) @ (\d+) updates\)"
    first, second = re.findall(resumed, (stopped / "hydra_train.log").read_text())
    # the kill came when update 10 had been logged: its checkpoint may or may not have been written
    assert first == ("1", "5") and second in [("1", "5"), ("1", "8"), ("2", "8"), ("2", "10")]
    assert_same_training(through / "checkpoints/checkpoint_last.pt", stopped / "checkpoints/checkpoint_last.pt")
    weights = read_checkpoint(through / "checkpoints/checkpoint_1_5.pt")["model"]
    assert differences(weights, read_checkpoint(through / "checkpoints/checkpoint_last.pt")["model"])


@pytest.mark.slow
def test_two_processes(corpus, tmp_path, capfd):
    """N + N updates with two processes equal 2N bit for bit."""
    yaml = config(tmp_path / "tiny.yaml", model={"lambd_per": "utterance"})
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    command = ["--nproc", 2, "--config", yaml]
    assert run_here([*command, *corpus_settings(corpus, through)]) == 0
    assert len(re.findall("^trained: ", capfd.readouterr().out, re.M)) == 1
    copy_fifth_update(through, stopped, "checkpoint_2_5.pt")
    assert run_here([*command, *corpus_settings(corpus, stopped)]) == 0
    assert_same_training(through / "checkpoints/checkpoint_last.pt", stopped / "checkpoints/checkpoint_last.pt")
