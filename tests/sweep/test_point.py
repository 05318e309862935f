"""The process of a point: how its end is reported, and its row, whatever interrupted it. Nothing is trained."""

import dataclasses
import json
import os
import signal
import sys
import types

import pytest

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import DiskFull, digest
from s3prl_ofa.jobs.slurm import ProcessJob
from s3prl_ofa.sweep.job import Job
from s3prl_ofa.sweep.results import PointFolder, collect
from s3prl_ofa.sweep.run import launcher, point
from s3prl_ofa.sweep.run.point import End, PointProcess

JOB = Job(
    task="sid",
    model="tiny",
    upstream="ofa_wav2vec2",
    checkpoint=None,
    rate="lambd",
    value=0.0,
    output_frames="native",
    asked_repeat=1,
    learning_rate=None,
    seed=1,
    checkpoint_sha256=None,
    config={"optimizer": {"lr": 0.1}, "runner": {"total_steps": 4}},
    config_sha256="1" * 64,
    metric="acc",
    higher_is_better=True,
    unit=100,
    dev_split="dev",
    test_split="test",
    device="cpu",
)


def test_names_stay():
    """A sweep that began before a setting could be chosen resumes with the points that it has."""
    assert JOB.name == "sid_tiny_lambd0_seed1-b6bd8bb8"


@pytest.fixture
def folder(tmp_path):
    folder = PointFolder(tmp_path / "points" / JOB.name)
    folder.save(JOB)
    assert folder.job() == JOB
    return folder


@pytest.mark.parametrize(
    ("code", "state", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed", None),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "killed", None),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "failed", "it crashed with SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGUSR2)", "killed", None),
        ("import sys; sys.exit(137)", "killed", None),  # a shell's word for SIGKILL
        ("import sys; sys.exit(74)", "killed", None),  # a full disk
        ("import sys; sys.exit(134)", "failed", "it crashed with SIGABRT"),
        ("print('no such file'); import sys; sys.exit(3)", "failed", "status 3: no such file"),
    ],
)
def test_how_a_point_ended(code, state, words, folder, tmp_path, monkeypatch):
    """What was ended from outside is resumed the next time; a crash of its own is a failure, with a row that says when,
    after how long and with which versions."""
    (tmp_path / "process.py").write_text(code)
    shell = tmp_path / "shell"
    shell.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/process.py\n")
    shell.chmod(0o755)
    monkeypatch.setattr(point.sys, "executable", str(shell))
    assert PointProcess(folder, None, 1, None).end() == End(state)
    rows = list(collect(tmp_path).values())
    assert [row["error"] for row in rows] == ([] if words is None else [words])
    for row in rows:
        assert row["state"] == "failed" and row["duration_s"] > 0 and row["finished"] and row["versions"]["torch"]


def test_a_full_disk_is_not_the_points_failure(folder, monkeypatch, capsys):
    """One sentence in its log, and it is left to be resumed."""

    def call(job, arguments):
        raise DiskFull(28, "No space left on device", "/full/states-2.ckpt")

    monkeypatch.setattr(point, "run_downstream", call)
    assert point.main([str(folder.path)]) == 74
    said = capsys.readouterr().err
    assert said.startswith("s3prl-ofa run_downstream: error: /full/states-2.ckpt: no room") and said.count("\n") == 1


def test_a_job_whose_grid_has_gone(tmp_path):
    """A job that waited in a queue while the grid became another one runs nothing."""
    assert PointProcess(PointFolder(tmp_path / "points" / "p"), None, 1, None).end() == End("killed")
    assert not collect(tmp_path)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_row_does_not_depend_on_a_kill_after_training(interrupted, folder, monkeypatch):
    """Memory and duration are those of training and evaluation, in one process or in two."""
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(point.time, "monotonic", lambda: float(next(clock)))
    memory = {"train": 900.0, "dev": 300.0, "test": 200.0}
    folder.experiment.mkdir()
    folder.log.touch()
    calls = []

    def call(job, arguments):
        split = arguments[arguments.index("-t") + 1] if "-t" in arguments else "train"
        if interrupted and split == "dev" and "dev" not in calls:
            calls.append(split)
            raise KeyboardInterrupt
        calls.append(split)
        found = {"device": "x", "frames": 10, "options": {"repeat": 1}, "scores": {"acc": 0.5, "loss": 2.0}}
        path = folder.experiment / f"measured_{split}.json"
        path.write_text(json.dumps({**found, "peak_memory_mb": memory[split]}))

    monkeypatch.setattr(point, "run_downstream", call)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            point.work(folder, JOB, [])
    point.work(folder, JOB, [])
    assert calls == ["train", *["dev"] * interrupted, "dev", "test"]
    row = json.loads(folder.result.read_text())
    assert row["peak_memory_mb"] == 900.0 and row["duration_s"] == 20.0 and row["score"] == 0.5
    point.work(folder, dataclasses.replace(JOB, metric="loss"), [])  # whose metric was a slip
    assert json.loads(folder.result.read_text())["score"] == 2.0 and calls.count("test") == 1
    other = json.dumps({"scores": {"acc": 0.1}, "frames": 10, "options": {"repeat": 1}, "peak_memory_mb": 1.0})
    (folder.experiment / "measured_test.json").write_text(other)  # by someone's own evaluation, at another rate
    point.work(folder, JOB, [])
    assert json.loads(folder.result.read_text())["score"] == 0.5 and calls.count("test") == 2


def test_a_checkpoint_that_changes(folder, tmp_path, monkeypatch):
    """Training and evaluations get the point's checkpoint, wherever it was when the training began; another file in its
    place is refused before each of them, so that a row never names weights that it was not made with."""
    calls, checkpoint = [], tmp_path / "checkpoint_last.pt"
    checkpoint.write_bytes(b"weights")
    job = dataclasses.replace(JOB, checkpoint=str(checkpoint), checkpoint_sha256=digest(checkpoint))

    def call(name, arguments):
        calls.append(arguments.arguments)
        if len(calls) == 2:
            checkpoint.write_bytes(b"better weights")
        folder.experiment.mkdir(exist_ok=True)
        found = {"frames": 10, "options": None, "scores": {"acc": 0.5}}
        (folder.experiment / f"measured_{'dev' if len(calls) == 2 else 'train'}.json").write_text(json.dumps(found))

    parser = types.SimpleNamespace(parse_args=lambda arguments: types.SimpleNamespace(arguments=arguments))
    monkeypatch.setattr(point, "build_command_parser", lambda name: parser)
    monkeypatch.setattr(point, "run_command", call)
    with pytest.raises(UsageError, match=f"{checkpoint} has changed since the sweep was started; start it again"):
        point.work(folder, job, [])
    assert [arguments[arguments.index("-k") + 1] for arguments in calls] == [str(checkpoint)] * 2
    assert "train" in calls[0] and "dev" in calls[1] and not folder.result.exists()


def test_outcomes_of_utterances(folder):
    """Those of the test split in the point's metric are kept; a task, or a metric, without any leaves nothing."""
    point.keep_utterances(folder, JOB, folder.experiment)
    folder.experiment.mkdir()
    outcomes = {"sums": [1, 0], "counts": [1, 1]}
    found = {"utterances": ["a", "b"], "acc": outcomes, "other": {"sums": [3, 4], "counts": [5, 6]}}
    (folder.experiment / "utterances_test.json").write_text(json.dumps(found))
    (folder.experiment / "utterances_dev.json").write_text("{}")
    point.keep_utterances(folder, dataclasses.replace(JOB, metric="loss"), folder.experiment)
    assert not folder.utterances.exists()
    point.keep_utterances(folder, JOB, folder.experiment)
    assert json.loads(folder.utterances.read_text()) == {"utterances": ["a", "b"], **outcomes}


def test_a_job_leaves_sigterm_to_submitit(folder, monkeypatch):
    """On a cluster submitit waits for Slurm's other signal, and the point goes on."""
    heard = []
    monkeypatch.setattr(point, "wait_for", lambda process: os.kill(os.getpid(), signal.SIGTERM) or process.wait())
    monkeypatch.setattr(point.sys, "executable", "true")
    before = signal.signal(signal.SIGTERM, lambda *arguments: heard.append(arguments))
    try:
        ProcessJob(point.PointProcess)(folder, None, 1, None)
        assert len(heard) == 1
    finally:
        signal.signal(signal.SIGTERM, before)


class EndedJob:
    """What submitit gives for a job that ended with an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def exception(self) -> Exception:
        return self.error


def test_what_kept_a_process_from_telling_its_end():
    """The exception at the end of submitit's text is reported, not the paths of its logs; no word at all is a kill."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    rule = "-" * 22
    text = (
        f"Job (task=0) failed during processing with trace:\n{rule}\nTraceback (most recent call last):\n  File x\n"
        f"OSError: disk gone\n\n{rule}\nYou can check full logs with 'job.stderr(0)' and 'job.stdout(0)'"
        "or at paths:\n  - /a/0_log.err\n  - /a/0_log.out"
    )
    assert launcher.end_of_job(EndedJob(FailedJobError(text))) == End("failed", "OSError: disk gone")
    silent = UncompletedJobError("Job 7 (task: 0) has not produced any output\n  - /a/0_log.err")
    assert launcher.end_of_job(EndedJob(silent)) == End("killed")
    assert launcher.end_of_job(EndedJob(ValueError(""))) == End("failed", "ValueError")
