"""run_downstream in several processes: one experiment by all of them together, or a refusal."""

import argparse
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from paths import CKPT, TESTS
from superb_corpora import make_voxceleb1

from s3prl_ofa import cli
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.downstream import processes

STEPS = (
    "config.runner.total_steps={0},,config.runner.eval_step=2,,config.runner.save_step=2,,config.runner.log_step=1,,"
    "config.downstream_expert.datarc.max_timestep=None"  # whole utterances, which the feature cache keeps
)


def launched(folder: pathlib.Path, launcher: str, *program: str) -> subprocess.CompletedProcess:
    """Two processes on this machine, started in ``folder`` by a launcher of torch's."""
    command = [sys.executable, "-m", f"torch.distributed.{launcher}", "--standalone", "--nproc-per-node", "2", *program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def train(folder: pathlib.Path, *options: str, steps: int = 2) -> list[str]:
    data = ["--voxceleb1", str(folder / "VoxCeleb1"), "--prepared", str(folder / "prepared"), "--mini"]
    task = ["run_downstream", "-m", "train", "-d", "sid", "-u", "ofa_wav2vec2", "-k", CKPT, *data]
    return [*task, "-o", STEPS.format(steps), *options]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    """A folder in which torchrun's two processes have trained ``exp``."""
    folder = tmp_path_factory.mktemp("processes")
    make_voxceleb1(folder)
    options = ("-p", "exp", "--lambd", "0.5", "--cache-gb", "1", "--feature-cache", "features")
    found = launched(folder, "run", str(TESTS / "rank.py"), *train(folder, *options))
    assert found.returncode == 0, found.stderr[-3000:]
    return folder


def loaded(path: pathlib.Path) -> dict:
    torch.serialization.add_safe_globals([argparse.Namespace])
    return torch.load(path, map_location="cpu", weights_only=True)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_two_processes_train_one_model(trained):
    """torchrun's processes share the data, average their gradients and end with the same weights, those that are saved
    in the one folder, which the leader alone writes."""
    ranks = [loaded(trained / f"rank{rank}.pt") for rank in range(2)]
    for epoch in range(2):
        halves = [set(rank["heard"][epoch]) for rank in ranks]
        assert [len(half) for half in halves] == [2, 2] and len(halves[0] | halves[1]) == 4
    assert [len(rank["heard"]) for rank in ranks] == [2, 2]
    states = loaded(trained / "exp" / "states-2.ckpt")
    assert (states["Step"], states["WorldSize"], states["Args"].local_rank) == (2, 2, 0)
    for name in ("Featurizer", "Downstream"):
        first, second = (rank["weights"][name] for rank in ranks)
        first.pop("best_score", None), second.pop("best_score", None)  # the leader's alone
        states[name].pop("best_score", None)
        assert same(first, second) and same(first, states[name])
    names = [path.name for path in (trained / "exp").iterdir()]
    once = ("args_", "config_", "events.out", "measured_train", "states-", "dev-best", "config.yaml")
    assert [sum(name.startswith(start) for name in names) for start in once] == [1] * len(once)
    assert ".lock" not in names
    sections = [folder for folder in (trained / "features").iterdir() if folder.is_dir()]
    cached = [len(list(section.rglob("[!.]*.safetensors"))) for section in sections]
    assert cached == [6, 6, 6]  # samples, front ends, hidden states of what both processes heard: 4 to train, 2 of dev


@pytest.mark.slow
def test_two_processes_resume_together_and_one_evaluates(trained, monkeypatch, capfd):
    """torch.distributed.launch, which passes --local-rank, resumes with as many processes as before; another number is
    refused, and one process evaluates."""
    found = launched(trained, "launch", "-m", "s3prl_ofa", *train(trained, "-p", "exp", "-a", steps=4))
    assert found.returncode == 0, found.stderr[-3000:]
    assert loaded(trained / "exp" / "states-4.ckpt")["Step"] == 4
    noise = ("broadcast_buffers", "cuda.amp", "ESPnet")  # a user could do nothing about them
    assert not [line for line in found.stderr.splitlines() if any(word in line for word in noise)]
    monkeypatch.chdir(trained)
    assert cli.main(train(trained, "-p", "exp", "-a", steps=6)) == 2
    assert "expected 2 (torchrun --nproc-per-node 2 " in capfd.readouterr().err
    assert cli.main(["run_downstream", "-m", "evaluate", "-e", "exp"]) == 0
    assert (trained / "exp" / "measured_test.json").exists()


@pytest.mark.slow
def test_two_processes_learn_one_rate(trained):
    """An adaptive lambd is the same in all processes after each update."""
    options = ("-p", "adaptive", "--lambd", "adaptive", "--rate-weight", "1")
    found = launched(trained, "run", str(TESTS / "rank.py"), *train(trained, *options, steps=4))
    assert found.returncode == 0, found.stderr[-3000:]
    first, second = (loaded(trained / f"rank{rank}.pt")["weights"] for rank in range(2))
    assert torch.equal(first["Rate"]["raw"], second["Rate"]["raw"]) and same(first["Featurizer"], second["Featurizer"])
    assert loaded(trained / "adaptive" / "states-4.ckpt")["Rate"]["curve.batches"] == 2


TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def settled(monkeypatch):
    """A function (environment, mode="train", local_rank=None, device="cpu") -> args after ``settle``."""
    for name in (*processes.WORLD_SIZES, *processes.NEEDED):
        monkeypatch.delenv(name, raising=False)

    def settle(environment, mode="train", local_rank=None, device="cpu"):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        args = argparse.Namespace(mode=mode, local_rank=local_rank, device=device, backend="nccl")
        processes.settle(args)
        return args

    return settle


@pytest.mark.parametrize(
    ("environment", "local_rank"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, None),
        ({"WORLD_SIZE": "1"}, 0),
        ({"RANK": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),
    ],
)
def test_one_process_joins_nothing(settled, environment, local_rank):
    """Where one process was started nothing is distributed, whatever else a launcher or a shell has set."""
    args = settled(environment, local_rank=local_rank)
    assert args.local_rank is None
    assert settled(environment, mode="evaluate", local_rank=local_rank).local_rank is None


@pytest.mark.parametrize("local_rank", [None, 1])
def test_torchrun_is_recognized(settled, local_rank):
    """By its environment, with --local_rank and without it; on CPUs the processes talk through gloo."""
    args = settled(TORCHRUN | {"SLURM_STEP_NUM_TASKS": "2"}, local_rank=local_rank)
    assert (args.local_rank, args.backend) == (1, "gloo")


@pytest.mark.parametrize(
    ("environment", "options", "words"),
    [
        ({"WORLD_SIZE": "2"}, {}, "WORLD_SIZE=2 .*without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT each.*torchrun"),
        ({**TORCHRUN, "LOCAL_RANK": ""}, {}, "WORLD_SIZE=2 .*without LOCAL_RANK each"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}, {}, "SLURM_STEP_NUM_TASKS=4 says that 4 processes"),
        ({**TORCHRUN, "WORLD_SIZE": "1", "PMI_SIZE": "2"}, {}, "PMI_SIZE=2 .*without WORLD_SIZE=2 each"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}, "OMPI_COMM_WORLD_SIZE=2 .*--nproc-per-node 2 -m s3prl_ofa"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, {}, "MV2_COMM_WORLD_SIZE=2 says that 2 processes"),
        ({"WORLD_SIZE": "two"}, {}, "WORLD_SIZE must be the number of processes .*, found 'two'; unset it"),
        ({**TORCHRUN, "PMI_SIZE": "0"}, {"mode": "evaluate"}, "-m evaluate runs in one process, found WORLD_SIZE=2"),
        ({"OMPI_COMM_WORLD_SIZE": "-4"}, {}, "OMPI_COMM_WORLD_SIZE must be the number of processes .*, found '-4'"),
        ({}, {"local_rank": 0}, "--local_rank is what a launcher gives"),
        (TORCHRUN, {"mode": "evaluate"}, "-m evaluate runs in one process"),
        (TORCHRUN, {"mode": "inference"}, "-m inference runs in one process"),
        (TORCHRUN, {"device": "cuda"}, "local rank 1 has no GPU"),
    ],
)
def test_other_starts_of_several_processes_are_refused(settled, monkeypatch, environment, options, words):
    """Processes that would not train together are refused in a sentence that says how to start them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=words):
        settled(environment, **options)


@pytest.mark.slow
def test_a_refusal_leaves_nothing(settled, trained, monkeypatch, capfd):
    """One sentence, and no folder."""
    monkeypatch.chdir(trained)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(train(trained, "-p", "none")) == 2
    assert "WORLD_SIZE=2 says that 2 processes were started" in capfd.readouterr().err.splitlines()[-1]
    assert not (trained / "none").exists()


def test_processes_that_see_other_checkpoints_are_refused(monkeypatch):
    """A node whose file system does not show the leader's checkpoint would train on from another step."""
    for leader, here in ((4, {"Step": 2}), (4, None), (None, {"Step": 2})):
        monkeypatch.setattr(processes, "from_leader", lambda value, found=leader: found)
        with pytest.raises(UsageError, match="do not see the same checkpoint"):
            processes.check_resumed(here)


def test_a_task_that_does_not_divide_its_data_is_refused():
    """A training loader without a distributed sampler would give every process all of the data."""
    data = [1, 2]
    with pytest.raises(UsageError, match="-d ks does not divide its data"):
        processes.divided_loader("ks", lambda: torch.utils.data.DataLoader(data))
    sampler = torch.utils.data.DistributedSampler(data, num_replicas=2, rank=0)
    loader = torch.utils.data.DataLoader(data, sampler=sampler)
    assert processes.divided_loader("ks", lambda: loader) is loader


@pytest.mark.parametrize("spelling", ["--local_rank=1", "--local-rank=1"])
def test_both_spellings_of_local_rank_are_taken(settled, monkeypatch, tmp_path, capfd, spelling):
    """Before the command, where torch.distributed.launch puts it, and after it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in ([spelling, *train(tmp_path)], [*train(tmp_path), spelling]):
        assert cli.main(command) == 2
        error = capfd.readouterr().err
        assert "unrecognized" not in error and "-n NAME" in error  # the next thing that is wrong
