"""Trainings that were stopped and gone on with, through the real command: the same weights bit for bit."""

import os
import pathlib
import re
import shutil
import signal
import time

import pytest
from pretraining import corpus_settings, differences, make_corpus, read_checkpoint, start, write_config

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


def finish(arguments, log: pathlib.Path, kill_after: int | None = None) -> str:
    """Runs the command to its end, or kills it and its workers once it has made so many updates. Its output."""
    process = start(arguments, log)
    try:
        give_up = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < give_up:
            done = [int(number) for number in re.findall(r'"num_updates": "(\d+)"', log.read_text())]
            if kill_after is not None and done and max(done) >= kill_after:
                break
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    output = log.read_text()
    assert status == (-signal.SIGKILL if kill_after else 0), output[-3000:]
    return output


def assert_same_training(one: pathlib.Path, other: pathlib.Path):
    """Weights, optimizer and counters of two checkpoints are the same bit for bit."""
    one, other = read_checkpoint(one), read_checkpoint(other)
    for key in ("model", "last_optimizer_state", "task_state"):
        assert differences(one[key], other[key], key) == []
    histories = [state["optimizer_history"][-1] for state in (one, other)]
    assert histories[0] == histories[1] and histories[0]["num_updates"] == UPDATES


def test_killed_twice_equals_never_stopped(corpus, tmp_path):
    """Promise: killed with SIGKILL in the middle of an epoch, with update_freq 1 and again with update_freq 2, and gone
    on with each time: every bit as if it had never stopped, with other numbers of data workers too."""
    yaml = config(tmp_path / "tiny.yaml")
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    finish(["--config", yaml, *corpus_settings(corpus, through)], tmp_path / "through.log")

    command = ["--config", yaml, *corpus_settings(corpus, stopped)]
    finish([*command, "dataset.num_workers=2"], tmp_path / "first.log", kill_after=EVERY + 1)
    assert sorted(path.name for path in (stopped / "checkpoints").glob("*_*_*.pt")) == ["checkpoint_1_5.pt"]
    output = finish(command, tmp_path / "second.log", kill_after=2 * EVERY)
    assert re.search(r"Loaded checkpoint .*checkpoint_last.pt \(epoch 1 @ 5 updates\)", output)
    # killed when update 10 had been logged: its checkpoint may or may not have been written
    output = finish([*command, "dataset.num_workers=2"], tmp_path / "third.log")
    assert re.search(r"Loaded checkpoint .*checkpoint_last.pt \(epoch [12] @ (5|8|10) updates\)", output)
    assert_same_training(through / "checkpoints/checkpoint_last.pt", stopped / "checkpoints/checkpoint_last.pt")
    weights = read_checkpoint(through / "checkpoints/checkpoint_1_5.pt")["model"]
    assert differences(weights, read_checkpoint(through / "checkpoints/checkpoint_last.pt")["model"])


def test_two_processes(corpus, tmp_path):
    """Promise: N + N updates with two processes equal 2N bit for bit."""
    yaml = config(tmp_path / "tiny.yaml", model={"lambd_per": "utterance"})
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    command = ["--nproc", 2, "--config", yaml]
    output = finish([*command, *corpus_settings(corpus, through)], tmp_path / "through.log")
    assert len(re.findall("^trained: ", output, re.M)) == 1
    # as a run is left that was killed after its fifth update
    (stopped / "checkpoints").mkdir(parents=True)
    shutil.copy(through / "checkpoints/checkpoint_2_5.pt", stopped / "checkpoints/checkpoint_last.pt")
    finish([*command, *corpus_settings(corpus, stopped)], tmp_path / "stopped.log")
    assert_same_training(through / "checkpoints/checkpoint_last.pt", stopped / "checkpoints/checkpoint_last.pt")
