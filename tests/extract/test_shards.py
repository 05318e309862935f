"""``s3prl-ofa extract --shards``: several processes give the same result as one, even if they are killed."""

import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import read_index
from paths import ROOT
from slurm import stand_in

from s3prl_ofa import cli
from s3prl_ofa.extract import shards
from s3prl_ofa.extract.inputs import Utterance, make_shards
from s3prl_ofa.io.output_folder import locked_folder

AUDIO = ROOT / "s3prl_ofa" / "demo" / "audio" / "dev"
PATIENCE = 300  # seconds


def assert_same(out: pathlib.Path, expected: pathlib.Path) -> None:
    """The index, the features within 1e-5, and the times; and nothing is left of the shards."""
    found, wanted = read_index(out), read_index(expected)
    assert len((out / "index.jsonl").read_text().splitlines()) == len(found)
    for rows in (found, wanted):
        for row in rows.values():
            row["lambd"] = round(row["lambd"], 5)
    assert found == wanted
    for row in found.values():
        for path in (row["file"], row["file"].replace("features/", "times/")):
            assert np.abs(np.load(out / path) - np.load(expected / path)).max() < 1e-5
    assert {path.name for path in out.iterdir()} == {path.name for path in expected.iterdir()}


@pytest.fixture(scope="module")
def alone(golden_checkpoint, tmp_path_factory):
    """The output of a run without shards."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert cli.main(["extract", str(AUDIO), "--ckpt", str(golden_checkpoint), "--out", str(out), "--lambd", "0.5"]) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_the_same_as_without_shards(extract, alone, tmp_path, capsys, count):
    files = len(read_index(alone))
    assert extract(AUDIO, "--lambd", 0.5, "--shards", count) == 0
    assert capsys.readouterr().err == f"{files} of {files} files extracted to {tmp_path / 'out'}, 0 already done\n"
    assert_same(tmp_path / "out", alone)
    assert extract(AUDIO, "--lambd", 0.5, "--shards", 9) == 0  # nothing is left to be divided
    assert f"0 of {files} files extracted" in capsys.readouterr().err


def test_shards_are_balanced_and_none_is_empty():
    pairs = [(Utterance(None, str(number), 0, 0), seconds) for number, seconds in enumerate([9, 1, 2, 8, 3, 0, 0, 5])]
    parts = make_shards(pairs, 3)
    assert sorted(sum(seconds for _, seconds in part) for part in parts) == [9, 9, 10]
    assert sorted(pair[0].name for part in parts for pair in part) == list("01234567")
    assert len(make_shards(pairs[:2], 5)) == 2 and make_shards([], 5) == []


@pytest.mark.slow
def test_bad_files_and_unreached_periods_are_reported_as_without_shards(extract, audio_folder, tmp_path, capsys):
    (audio_folder / "corrupt.wav").write_bytes(b"RIFF but no more")
    (audio_folder / "short.wav").write_bytes((audio_folder / "a.wav").read_bytes())
    with open(audio_folder / "damaged.flac", "wb") as file:
        content = (audio_folder / "a.flac").read_bytes()
        file.write(content[: len(content) // 2])
    arguments = (audio_folder, "--frame-period-ms", 200)
    assert extract(*arguments, out=tmp_path / "alone") == 1
    said = capsys.readouterr().err
    assert "cannot reach 200 ms" in said and "2 could not be used" in said
    assert extract(*arguments, "--shards", 2) == 1
    again = capsys.readouterr().err.replace(str(tmp_path / "out"), str(tmp_path / "alone"))
    assert sorted(again.splitlines()) == sorted(said.splitlines())
    errors = [(tmp_path / name / "errors.jsonl").read_text().splitlines() for name in ("out", "alone")]
    assert sorted(errors[0]) == sorted(errors[1])
    assert_same(tmp_path / "out", tmp_path / "alone")


@pytest.fixture
def dying(monkeypatch):
    """A function (shard, times): its process is killed so many times after its first utterance."""
    start, left = shards.LocalSlots.start, {}

    def start_and_kill(slots, folder, slot):
        shard = start(slots, folder, slot)
        if left.get(folder.name, 0) > 0:
            left[folder.name] -= 1
            wait_for_rows(folder / "index.jsonl", shard.process)
            shard.process.kill()
        return shard

    monkeypatch.setattr(shards.LocalSlots, "start", start_and_kill)
    return left


def wait_for_rows(index: pathlib.Path, process: subprocess.Popen) -> None:
    give_up = time.monotonic() + PATIENCE
    while not (index.exists() and index.stat().st_size) and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.005)


@pytest.mark.slow
def test_a_dead_shard_is_run_again(extract, alone, dying, tmp_path, caplog):
    dying["2"] = shards.ATTEMPTS - 1
    assert extract(AUDIO, "--lambd", 0.5, "--shards", 2, "--batch-seconds", 2) == 0
    assert caplog.text.count("shard 2 ended (Killed); running it again") == shards.ATTEMPTS - 1
    assert_same(tmp_path / "out", alone)


@pytest.mark.slow
def test_a_shard_that_always_dies_is_named(extract, alone, dying, tmp_path, capsys):
    """The rest is done, what it did is kept, and the same command resumes it, with another number of shards too."""
    dying["1"] = shards.ATTEMPTS
    assert extract(AUDIO, "--lambd", 0.5, "--shards", 2, "--batch-seconds", 1) == 1
    assert f"shard 1 ended {shards.ATTEMPTS} times (Killed); the same command resumes it" in capsys.readouterr().err
    done = len(read_index(tmp_path / "out"))
    assert len(read_index(alone)) // 2 < done < len(read_index(alone))
    assert extract(AUDIO, "--lambd", 0.5, "--shards", 3) == 0
    assert f"{done} already done" in capsys.readouterr().err
    assert_same(tmp_path / "out", alone)


@pytest.mark.slow
def test_what_a_shard_cannot_do_is_its_last_line(extract, tmp_path, monkeypatch, capsys):
    """An error of its process is reported, as that of a checkpoint that has changed meanwhile."""
    monkeypatch.setattr("s3prl_ofa.model.OFAWav2Vec2.fingerprint", lambda model: "of another")
    assert extract(AUDIO, "--shards", 1) == 1
    assert "is not the checkpoint that extract was started with" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_launcher(extract, alone, golden_checkpoint, tmp_path, number):
    """Its processes end with it, and the same command, without shards too, resumes what they did."""
    out = tmp_path / "out"
    arguments = ["extract", str(AUDIO), "--ckpt", str(golden_checkpoint), "--out", str(out), "--lambd", "0.5"]
    command = [sys.executable, "-m", "s3prl_ofa", *arguments, "--shards", "2", "--batch-seconds", "1"]
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(command, stderr=log, start_new_session=True)
    for shard in ("1", "2"):
        wait_for_rows(out / "shards" / shard / "index.jsonl", launcher)
    assert launcher.poll() is None
    launcher.send_signal(number)
    launcher.wait(PATIENCE)
    assert launcher.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    give_up = time.monotonic() + PATIENCE
    while of_session(launcher.pid) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert of_session(launcher.pid) == []
    before = sum(len((out / "shards" / shard / "index.jsonl").read_text().splitlines()) for shard in ("1", "2"))
    assert 2 <= before < len(read_index(alone)) and "Traceback" not in (tmp_path / "log").read_text()
    assert extract(AUDIO, "--lambd", 0.5, *(["--shards", 3] if number == signal.SIGKILL else [])) == 0
    assert_same(out, alone)


def of_session(session: int) -> list[str]:
    """Its processes that have not ended."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, *fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == session and state != "Z":
            found.append(path.parent.name)
    return found


def test_refused_before_work(extract, tmp_path, capsys, monkeypatch):
    for arguments, words in {
        ("--shards", 0): "at least 1",
        ("--shards", 2, "--partition", "gpu"): "--partition is for --executor slurm",
        ("--shards", 2, "--device", "meta"): "cannot be used",
        ("--executor", "slurm", "--device", "abacus"): "abacus",
        ("--executor", "slurm"): "srun was not found",
    }.items():
        monkeypatch.setenv("PATH", str(tmp_path))
        assert extract(AUDIO, *arguments) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with locked_folder(tmp_path / "out", "--out", ()):
        assert extract(AUDIO, "--shards", 2) == 2
    assert "in use" in capsys.readouterr().err


@pytest.mark.slow
def test_slurm(extract, alone, tmp_path, monkeypatch):
    """Each shard is a job with what was asked for; one that ends without a result is submitted again."""
    cluster = stand_in(tmp_path / "cluster", monkeypatch)
    monkeypatch.setattr(shards.SlurmSlots, "poll_seconds", 0.2)
    monkeypatch.setattr("submitit.SlurmJob._results_timeout_s", 1)
    srun = (cluster / "srun").read_text()
    (cluster / "srun").write_text(f"#!/bin/bash\n[ $SLURM_JOB_ID = 7 ] && kill -9 $PPID\n{srun}")
    asked = ("--partition", "gpu", "--hours", 2, "--cpus", 1, "--memory-gb", 20, "--setup", "echo a module is loaded")
    assert extract(AUDIO, "--lambd", 0.5, "--device", "cpu", "--executor", "slurm", "--shards", 2, *asked) == 0
    script = (cluster / "8.sh").read_text()
    wanted = ("--partition=gpu", "--time=120", "--gpus-per-node=0", "--cpus-per-task=1", "--mem=20GB")
    assert all(line in script for line in wanted), script
    assert "a module is loaded" in (cluster / "8.log").read_text()
    assert (cluster / "9.sh").exists() and not (cluster / "10.sh").exists()
    assert_same(tmp_path / "out", alone)
