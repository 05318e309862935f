"""Runs jobs in slots, several at a time: processes on this machine, each with a GPU or none, or jobs of a cluster."""

import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, TypeVar

from s3prl_ofa.signals import delayed_signals

POLL_SECONDS = {"local": 0.2, "slurm": 10.0}


class Job(Protocol):
    """A process, or a job of submitit."""

    def done(self) -> bool: ...


ItemT = TypeVar("ItemT")
JobT = TypeVar("JobT", bound=Job)


def run_in_slots(
    waiting: deque[ItemT],
    slots: int,
    start: Callable[[ItemT, int], JobT],
    stop: Callable[[list[JobT]], Any],
    poll_seconds: float,
) -> Generator[tuple[ItemT, JobT], None, None]:
    """Starts a job per item, ``start(item, slot)``, and yields each item with its job when the job has ended.

    The caller may append to ``waiting`` meanwhile. When it stops, ``stop`` gets the jobs that are still running.
    """
    running: dict[int, tuple[ItemT, JobT]] = {}
    try:
        while waiting or running:
            for slot in range(slots):
                if waiting and slot not in running:
                    item = waiting.popleft()
                    with delayed_signals():
                        running[slot] = (item, start(item, slot))
            for slot, (item, job) in list(running.items()):
                if job.done():
                    del running[slot]
                    yield item, job
            time.sleep(poll_seconds)
    finally:
        stop([job for _, job in running.values()])


def stop_processes(processes: Sequence[subprocess.Popen]) -> None:
    """Ends processes on this machine and waits for them."""
    with delayed_signals():  # all are told to end before a second signal can interrupt
        for process in processes:
            process.terminate()
    for process in processes:
        process.wait()


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = [str(index) for index in range(torch.cuda.device_count())] if visible is None else visible.split(",")
    return [name for name in found if name.strip()] if torch.cuda.is_available() else []


def process_environment(gpu: str | None, threads: int) -> dict[str, str]:
    """Environment of a process in a slot. gpu: the one to use, empty for none; None leaves the environment's choice."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    return environment if gpu is None else {**environment, "CUDA_VISIBLE_DEVICES": gpu}
