"""Points of a sweep through stand-ins of Slurm's commands."""

import pathlib
import shutil

import pytest
import yaml
from paths import CKPT
from slurm import stand_in
from submitit import SlurmJob

from s3prl_ofa import cli
from s3prl_ofa.resources import folder
from s3prl_ofa.sweep.grid.jobs import prepare
from s3prl_ofa.sweep.grid.schema import Executor, read_grid
from s3prl_ofa.sweep.results import PointFolder, collect
from s3prl_ofa.sweep.run import launcher
from s3prl_ofa.sweep.run.point import End

ROOT = pathlib.Path(cli.__file__).parent
DATARC = "downstream_expert.datarc"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.setitem(launcher.POLL_SECONDS, "slurm", 0.2)
    return stand_in(tmp_path / "cluster", monkeypatch)


@pytest.mark.slow
def test_a_sweep(cluster, tmp_path, capsys):
    """The same code as on one's own machine: a point is a job with what the grid asks for, its row is in the results,
    and the same sweep again has nothing to do."""
    grid = {
        "checkpoints": {"tiny": CKPT},
        "tasks": {
            "sid": {"steps": 2, "overrides": {f"{DATARC}.train_batch_size": 2, f"{DATARC}.max_timestep": 16_000}}
        },
        "rates": {"lambd": 1},
        "mini": True,
        "device": "cpu",
        "data": {"voxceleb1": str(ROOT / "demo" / "audio")},
        "executor": {"kind": "slurm", "partition": "gpu", "hours": 2, "gpus": 1, "cpus": 1, "memory_gb": 20},
    }
    grid["executor"]["setup"] = ["echo a module is loaded"]
    path, out = tmp_path / "grid.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(grid))
    assert cli.main(["sweep", str(path), "--out", str(out)]) == 0, capsys.readouterr()
    (row,) = collect(out).values()
    assert row["point"].startswith("sid_tiny_lambd1_seed1-") and row["state"] == "finished"
    script = (cluster / "7.sh").read_text()
    wanted = ("--partition=gpu", "--time=120", "--gpus-per-node=1", "--cpus-per-task=1", "--mem=20GB")
    assert all(line in script for line in wanted), script
    assert "a module is loaded" in (cluster / "7.log").read_text()
    assert cli.main(["sweep", str(path), "--out", str(out)]) == 0
    assert not (cluster / "8.sh").exists() and "1 of 1 points are finished" in capsys.readouterr().out


def test_superb(cluster, corpora, tmp_path, monkeypatch, capsys):
    """The packaged grid for published sizes: on a cluster its dry run lists Base at five rates, for three tasks with
    SUPERB's numbers of updates."""
    path = folder("downstream_configs") / "sweeps" / "superb.yaml"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(corpora, tmp_path, dirs_exist_ok=True)
    for split, name in {"train-mini": "train-clean-100", "dev-mini": "dev-clean", "test-mini": "test-clean"}.items():
        (tmp_path / "LibriSpeech" / name).symlink_to(tmp_path / "LibriSpeech" / split)
        lengths = (tmp_path / "prepared" / "bucket" / f"{split}.csv").read_text()
        (tmp_path / "prepared" / "bucket" / f"{name}.csv").write_text(lengths.replace(split, name))
    shutil.copy(CKPT, "base.pt")
    assert cli.main(["sweep", str(path), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    names = [line.rpartition("-")[0] for line in printed.splitlines()[:15]]
    lambds = ("0", "0.25", "0.5", "0.75", "1")
    assert names == [f"{task}_base_lambd{lambd}_seed1337" for task in ("asr", "pr", "sid") for lambd in lambds]
    assert "15 points, 0 of them finished" in printed and not (tmp_path / "sweeps").exists()
    steps = {job.task: job.settings["steps"] for job in prepare(read_grid(path)).values()}
    assert steps == {"asr": 200_000, "pr": 100_000, "sid": 200_000}


def test_a_job_that_ends_without_a_word(cluster, tmp_path, monkeypatch, capsys):
    """A node that dies leaves no result: the point is reported as killed, and the same command resumes it."""
    monkeypatch.setattr(SlurmJob, "_results_timeout_s", 1)
    (cluster / "srun").write_text("#!/bin/bash\nkill -9 $PPID\n")
    runner = launcher.Launcher(Executor(kind="slurm", cpus=2), tmp_path)
    assert runner.parallel == 64 and runner.gpu[0] is None and runner.threads == 2
    (tmp_path / "points" / "p").mkdir(parents=True)
    assert list(runner.run({"p": PointFolder(tmp_path / "points" / "p")}, started=print)) == [("p", End("killed"))]
