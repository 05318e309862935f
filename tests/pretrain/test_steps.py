"""Random numbers of a single step, and checkpoints that a kill interrupts."""

import os
import signal

import numpy as np
import pytest
import torch
from fairseq.tasks.audio_pretraining import AudioPretrainingTask

from s3prl_ofa.pretrain import task as task_module
from s3prl_ofa.pretrain.config import OFATaskConfig
from s3prl_ofa.pretrain.task import OFAPretrainingTask


@pytest.fixture
def drawn(monkeypatch):
    """The numbers of torch's and numpy's generators in a step, by seed, update and rank."""
    found = []

    def step(*arguments, **names):
        found.append((tuple(torch.rand(4).tolist()), np.random.rand()))

    monkeypatch.setattr(AudioPretrainingTask, "train_step", step)
    monkeypatch.setattr(AudioPretrainingTask, "valid_step", lambda *a: step() or (0.0, 0, {}))

    def draw(task, update, rank):
        monkeypatch.setattr(task_module, "rank", lambda: rank)
        torch.manual_seed(1)  # the trainer does so, with the same seed on every rank
        task.train_step(None, None, None, None, update)
        return found[-1]

    return draw


def make_task(seed=1):
    return OFAPretrainingTask(OFATaskConfig(data="", seed=seed, max_update=9))


def test_draws_of_a_step(drawn):
    """lambd, masks, dropout (torch) and layer dropout (numpy) depend on seed, update, micro-batch and rank,
    and on nothing else: a run that starts at that update draws the same."""
    task = make_task()
    steps = [(update, rank) for update in (0, 1, 2) for rank in (0, 1)]
    found = {}
    for update in (0, 1, 2):
        for rank in (0, 1):
            task = make_task()
            for part in (0, 1):
                found[update, rank, part] = drawn(task, update, rank)
    assert len({torch_draw for torch_draw, _ in found.values()}) == 2 * len(steps)
    assert len({numpy_draw for _, numpy_draw in found.values()}) == 2 * len(steps)
    task = make_task()
    drawn(task, 0, 1)
    drawn(task, 1, 1)
    assert [drawn(task, 2, 1), drawn(task, 2, 1)] == [found[2, 1, 0], found[2, 1, 1]]
    assert drawn(make_task(2), 0, 0) != found[0, 0, 0]


def test_validation_draws_do_not_reach_training(drawn):
    """The number of validations does not affect training, and validation is the same every time."""
    task = make_task()
    sample = {"id": torch.tensor([3, 4]), "net_input": {}}
    seen = []

    class Criterion:
        training = False

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    for _ in range(2):
        task.valid_step_at(sample, None, Criterion(), 0.5)
        seen.append(torch.rand(1).item())
        torch.random.set_rng_state(before)
    assert seen[0] == seen[1] and torch.equal(before, torch.random.get_rng_state())


def test_killed_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """A SIGKILL while checkpoint_last.pt is copied leaves the one before it, whole."""
    from fairseq.file_io import PathManager

    from s3prl_ofa.pretrain import patches

    new, last = tmp_path / "checkpoint_1_10.pt", tmp_path / "checkpoint_last.pt"
    torch.save({"weights": torch.ones(50_000)}, new)
    torch.save({"weights": torch.zeros(50_000)}, last)

    def half(source, target):
        with open(source, "rb") as file, open(target, "wb") as copy:
            copy.write(file.read(100_000))
            copy.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(patches.shutil, "copyfile", half)
        PathManager.copy(str(new), str(last), overwrite=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not torch.load(last, weights_only=True)["weights"].any()
    assert PathManager.copy(str(new), str(last), overwrite=True)
    assert torch.load(last, weights_only=True)["weights"].all()
