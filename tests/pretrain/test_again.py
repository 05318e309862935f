"""``s3prl-ofa pretrain`` again in the same folder: finished, resumed, in use."""

import json
import re

import absl.logging  # noqa: F401  as tensorboard does: a pretraining must not close its stream
import pytest
from pretraining import corpus_settings, differences, make_corpus, read_checkpoint, run_here, write_config

from s3prl_ofa.io.locks import is_locked, locked
from s3prl_ofa.io.output_folder import LOCK


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """More utterances longer than the crop than fit into a batch: their order is random."""
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus", valid=9)


def command(path, corpus, out, *settings, **sections):
    return ["--config", write_config(path / "tiny.yaml", **sections), *corpus_settings(corpus, out), *settings]


def content(out):
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def valid_losses(out) -> dict[str, dict[str, str]]:
    """What each validation logged, by the number of updates."""
    found = [
        json.loads(text) for text in re.findall(r"\[valid\]\[INFO\] - (\{.*\})", (out / "hydra_train.log").read_text())
    ]
    kept = ("valid_loss", "valid_accuracy", "valid_code_perplexity", "valid_best_loss")
    return {stats["valid_num_updates"]: {key: stats[key] for key in stats if key.startswith(kept)} for stats in found}


ENDS = {
    "max_update": ({}, "optimization.max_update=2", "optimization.max_update=3"),
    "max_epoch": ({}, "optimization.max_epoch=1", "optimization.max_epoch=2"),
    "patience": ({"checkpoint": {"patience": 1}}, "optimization.lr=[1e-9]", "checkpoint.patience=2"),
}


@pytest.mark.parametrize("end", [pytest.param(end, marks=[pytest.mark.slow] * (end != "max_update")) for end in ENDS])
def test_a_finished_training_again(corpus, tmp_path, capsys, end):
    """Whatever ended it, the same command changes no byte of the folder and says why; with more to do it resumes."""
    out, (sections, ending, more) = tmp_path / "out", ENDS[end]
    sections = {"optimization": {"max_update": 2 if end == "max_update" else 12}, **sections}
    sections["checkpoint"] = {"save_interval_updates": 2, **sections.get("checkpoint", {})}
    arguments = command(tmp_path, corpus, out, ending, **sections)
    assert run_here(arguments) == 0
    last = out / "checkpoints" / "checkpoint_last.pt"
    before, times = content(out), {path: path.stat().st_mtime_ns for path in last.parent.iterdir()}
    updates = read_checkpoint(last)["optimizer_history"][-1]["num_updates"]
    assert updates < 12
    capsys.readouterr()
    assert run_here(arguments) == 0
    printed = capsys.readouterr().out
    assert f"nothing left to train: {last}" in printed and end in printed and f"trained: {last}" in printed
    assert content(out) == before
    assert run_here([*arguments, "optimization.lr=[0.5]"]) == 0  # not what it was trained with
    assert content(out) == before
    assert times == {path: path.stat().st_mtime_ns for path in last.parent.iterdir()}
    assert "was trained with" not in capsys.readouterr().err
    (tmp_path / "moved").symlink_to(corpus)
    moved = command(tmp_path, tmp_path / "moved", out, ending, **sections)
    assert run_here(moved) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "was trained with" in line]
    assert [line.split()[4] for line in told] == ["data", "guidance"] and all("/moved" in line for line in told)
    assert run_here([*arguments[:-1], more]) == 0
    assert read_checkpoint(last)["optimizer_history"][-1]["num_updates"] > updates


@pytest.mark.slow
def test_validation_after_a_resume(corpus, tmp_path):
    """Validation depends only on the weights, so that 2 + 2 updates give the validation losses, the best
    score and the checkpoint_best.pt of 4."""
    sections = {"checkpoint": {"save_interval_updates": 1}, "optimizer": {"_name": "adam", "adam_betas": "(0.9,0.98)"}}
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    assert run_here(command(tmp_path, corpus, through, "optimization.max_update=4", **sections)) == 0
    for updates in (2, 4):
        assert run_here(command(tmp_path, corpus, stopped, f"optimization.max_update={updates}", **sections)) == 0
    for out in (through, stopped):  # in one process, each has its own logs
        assert list((out / "tensorboard").rglob("events*"))
    losses = valid_losses(through)
    assert losses.keys() == {"1", "2", "3", "4"} and losses == valid_losses(stopped)
    assert len({stats["valid_loss"] for stats in losses.values()}) > 1
    for name in ("checkpoint_best.pt", "checkpoint_last.pt"):
        one, other = (read_checkpoint(out / "checkpoints" / name) for out in (through, stopped))
        assert differences(one["model"], other["model"]) == []
        for key in ("best", "val_loss"):
            assert one["extra_state"][key] == other["extra_state"][key]


def test_validating_twice(corpus, tmp_path):
    """The same weights give the same numbers, however many validations came before."""
    out = tmp_path / "out"
    settings = ["optimization.lr=[0.0]", "optimization.max_update=4", "model.latent_temp=[2.0,2.0,0.9]"]
    assert run_here(command(tmp_path, corpus, out, *settings, checkpoint={"save_interval_updates": 1})) == 0
    losses = valid_losses(out)
    for key in losses["1"]:
        assert len({stats[key] for updates, stats in losses.items() if key in stats}) == 1, key


def test_early_stopping_counts_through_a_resume(corpus, tmp_path):
    """With checkpoint.patience a resumed training stops where an uninterrupted one does."""
    sections = {"checkpoint": {"save_interval_updates": 1, "patience": 3}}
    out = tmp_path / "out"
    for updates in (2, 8):
        settings = ["optimization.lr=[0.0]", f"optimization.max_update={updates}"]
        assert run_here(command(tmp_path, corpus, out, *settings, **sections)) == 0
    last = read_checkpoint(out / "checkpoints" / "checkpoint_last.pt")
    assert last["optimizer_history"][-1]["num_updates"] == 4  # one that was best, and three that were no better


@pytest.mark.parametrize("processes", [1, 2])
def test_one_training_a_folder(corpus, tmp_path, capfd, processes):
    """A second training in the same folder is refused in one sentence, and writes nothing."""
    out = tmp_path / "out"
    with locked(out / LOCK, wait=False):
        assert run_here(["--nproc", processes, *command(tmp_path, corpus, out)]) == 2
        assert [path.name for path in out.iterdir()] == [LOCK]
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and f"out={out} is in use by another process" in said


def test_only_the_leader_locks(corpus, tmp_path, monkeypatch):
    """Of processes that train together, the first locks the folder; so does a single process, whatever rank its
    environment has."""
    from s3prl_ofa.pretrain import launch

    seen = []
    monkeypatch.setattr(launch, "hydra_main", lambda *arguments: seen.append(is_locked(tmp_path / "out" / LOCK)))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    for world, rank in (("2", "0"), ("2", "1"), ("1", "3"), ("", "3")):
        monkeypatch.setenv("WORLD_SIZE", world)
        monkeypatch.setenv("RANK", rank)
        launch.train(tmp_path / "tiny.yaml", [], tmp_path / "out", None)
    assert seen == [True, False, True, True]


def test_what_an_environment_says_of_processes(corpus, tmp_path, capfd, monkeypatch):
    """Processes that cannot find one another, and a number of them that is none, are refused in one sentence; a process
    that is alone according to its environment starts --nproc processes."""
    from s3prl_ofa.pretrain import launch

    asked = []
    monkeypatch.setattr(launch, "launch", lambda processes, arguments: asked.append(processes) or 0)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_here(command(tmp_path, corpus, tmp_path / "out")) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "WORLD_SIZE=2" in said and "without RANK" in said
    monkeypatch.setenv("RANK", "0")
    for world in ("1", ""):
        monkeypatch.setenv("WORLD_SIZE", world)
        assert run_here(["--nproc", 2, *command(tmp_path, corpus, tmp_path / "out")]) == 0
    assert asked == [2, 2]
    for world in ("two", "0", "-2", "1.5"):
        monkeypatch.setenv("WORLD_SIZE", world)
        assert run_here(command(tmp_path, corpus, tmp_path / "out")) == 2
        expected = f"error: WORLD_SIZE must be the number of processes that a launcher has started, found '{world}'"
        assert expected in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
