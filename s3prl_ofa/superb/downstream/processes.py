"""Processes that train one model together, as torchrun and torch.distributed.launch start them.

S3PRL wraps its models in DistributedDataParallel, divides the training data, and evaluates and saves on the leader
alone. But it joins processes only with --local_rank and on CUDA; the leader's evaluation broadcasts buffers that the
other processes do not receive; and the other processes do not count their updates, so that they never stop training.
"""

import argparse
import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler
from tqdm import tqdm

from s3prl_ofa.errors import UsageError
from s3prl_ofa.jobs.launched import process_count
from s3prl_ofa.output import is_quiet

# where launchers store the number of processes: torchrun, srun (of a step), mpirun (Open MPI, MPICH, MVAPICH)
WORLD_SIZES = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # besides WORLD_SIZE, to find one another
TORCHRUN = "torchrun --nproc-per-node {} -m s3prl_ofa run_downstream ..."
TIMEOUT = datetime.timedelta(days=1)  # the others wait while the leader evaluates; torch's default is minutes


def settle(args: argparse.Namespace) -> None:
    """Sets ``local_rank``, ``device`` and ``backend`` for the launcher; ``local_rank`` is None for one process.

    Raises UsageError for several processes that cannot find one another or do not train, and for an invalid number of
    processes.
    """
    launcher, size = next(((name, size) for name in WORLD_SIZES if (size := process_count(name)) > 1), (None, 1))
    if launcher is None:
        if args.local_rank is not None and "WORLD_SIZE" not in os.environ:
            raise UsageError(f"--local_rank is what a launcher gives to several processes: {TORCHRUN.format('N')}")
        args.local_rank = None
        return
    given = {} if args.local_rank is None else {"LOCAL_RANK": str(args.local_rank)}
    environment = {**os.environ, **given}
    missing = [name for name in NEEDED if not environment.get(name)]
    if launcher != "WORLD_SIZE" or missing:
        lacking = ", ".join(missing) or f"WORLD_SIZE={size}"
        raise UsageError(
            f"{launcher}={size} says that {size} processes were started, but without {lacking} each would train alone: "
            f"start one, or {TORCHRUN.format(size)}"
        )
    if args.mode != "train":
        raise UsageError(f"-m {args.mode} runs in one process, found {launcher}={size}: start it without torchrun")
    args.local_rank = int(environment["LOCAL_RANK"])
    if not args.device.startswith("cuda"):
        args.backend = "gloo" if args.backend == "nccl" else args.backend
        return
    if args.local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"local rank {args.local_rank} has no GPU: expected one per process, found {torch.cuda.device_count()}"
        )
    args.device = f"cuda:{args.local_rank}"


@contextlib.contextmanager
def joined(args: argparse.Namespace) -> Iterator[None]:
    """Joins the processes that train together until the block ends; does nothing for a single process."""
    if args.local_rank is None:
        yield
        return
    if args.device.startswith("cuda"):
        torch.cuda.set_device(args.device)
    dist.init_process_group(args.backend, timeout=TIMEOUT)
    yield
    dist.destroy_process_group()  # not after an error, when it could wait forever


def from_leader(value: Any) -> Any:
    """The leader's value, in all processes that have joined."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


def check_resumed(past: dict[str, Any] | None) -> None:
    """Raises UsageError if processes do not resume from the same checkpoint, or are not as many as at the start.

    past: the checkpoint, None for a new training.
    """
    step = past and past.get("Step")
    if from_leader(step) != step:
        raise UsageError(
            f"the processes do not see the same checkpoint (this one sees step {step}): do they all share the folder?"
        )
    before, now = (past or {}).get("WorldSize", 1), dist.get_world_size() if dist.is_initialized() else 1
    if past is not None and before != now:
        began = "one (start it without torchrun)" if before == 1 else f"{before} ({TORCHRUN.format(before)})"
        raise UsageError(f"a training resumes in as many processes as it began with: expected {began}, found {now}")


def data_parallel(model: nn.Module, device_ids: list[int], **options: Any) -> DistributedDataParallel:
    """DistributedDataParallel for S3PRL's runner, on CPUs too, without broadcasting buffers, so that the leader can
    evaluate alone."""
    on_gpu = next(model.parameters()).is_cuda
    parallel = DistributedDataParallel(model, device_ids if on_gpu else None, **options)
    parallel.broadcast_buffers = False  # torch 2.13 renames the argument, and warns about this one
    return parallel


def divided_loader(downstream: str, make_loader: Callable[[], Any]) -> Any:
    """The loader of a task's training batches. Raises UsageError if it gives every process the whole data."""
    loader = make_loader()
    if not isinstance(getattr(loader, "sampler", None), DistributedSampler):
        raise UsageError(f"-d {downstream} does not divide its data among processes: start it without torchrun")
    return loader


class CountingBar(tqdm):
    """S3PRL's progress bar, whose count ends its training loop, so it counts even if TQDM_DISABLE is set.

    With ``--quiet`` it hides what S3PRL prints through it, such as the names of saved checkpoints.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, disable=False)

    @classmethod
    def write(cls, text: str, *args: Any, **kwargs: Any) -> None:
        if not is_quiet():
            super().write(text, *args, **kwargs)


class UpdateCounter:
    """Ends S3PRL's training loop in processes other than the leader, whose updates S3PRL does not count."""

    def progress_bar(self, *args: Any, **kwargs: Any) -> tqdm:
        bar = CountingBar(*args, **kwargs)
        if kwargs.get("desc") == "overall":
            self.overall = bar
        return bar

    def counting(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Makes the optimizer count updates: each ends with ``zero_grad``, even if its gradient was not finite."""
        zero_grad = optimizer.zero_grad

        def end_update(*args: Any, **kwargs: Any) -> None:
            zero_grad(*args, **kwargs)
            self.overall.update(1)

        optimizer.zero_grad = end_update
        return optimizer
