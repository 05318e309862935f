"""Runs points through submitit, several at a time: on this machine or on a Slurm cluster, by the same code."""

import contextlib
import functools
import math
import os
import pathlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.locks import is_locked
from s3prl_ofa.signals import put_off
from s3prl_ofa.sweep.grid.schema import Executor
from s3prl_ofa.sweep.job import FAILED, LOCK
from s3prl_ofa.sweep.run.process import KILLED, PointRun

SUBMITIT = "submitit"  # the folder for what it writes
CONTROLLER_LOG = "controllers.log"
POLL_SECONDS = {"local": 0.2, "debug": 0.0, "slurm": 10.0}
SIGNAL_AGAIN_SECONDS = 10.0
SLURM_PARALLEL = 64  # points at a time, unless the grid says
SLURM_CPUS = 4
ENDLESS_MINUTES = 60 * 24 * 365 * 10  # submitit wants a time limit, and a local machine needs none


class Ended(NamedTuple):
    """How a point ended: finished, failed or killed; error: why its process could not tell."""

    name: str
    state: str
    error: str = ""


class Launcher:
    """A submitit executor and the slots in which it runs points; each slot has a GPU, or none.

    Raises UsageError where the settings cannot be met here. Nothing is written before the first point is submitted.
    """

    def __init__(self, settings: Executor, folder: pathlib.Path, cache_gb: float | None = None) -> None:
        self.settings, self.cache_gb = settings, cache_gb
        check_submitit(settings)
        gpus = local_gpus(settings)
        on_slurm = settings.kind == "slurm"
        self.parallel = settings.parallel or (SLURM_PARALLEL if on_slurm else max(1, len(gpus)))
        if settings.kind == "debug":
            self.parallel = 1
        # of more slots than GPUs, several share one
        self.gpu = [None if on_slurm else gpus[slot % len(gpus)] if gpus else "" for slot in range(self.parallel)]
        self.threads = settings.cpus or (SLURM_CPUS if on_slurm else max(1, (os.cpu_count() or 1) // self.parallel))
        self.folder = folder / SUBMITIT

    @functools.cached_property
    def executor(self) -> Any:
        import submitit

        settings = self.settings
        parameters: dict[str, Any] = {"timeout_min": ENDLESS_MINUTES}
        if settings.kind == "slurm":
            parameters = {
                "timeout_min": max(1, round(60 * settings.hours)),
                "name": "s3prl-ofa",
                "cpus_per_task": self.threads,
                "gpus_per_node": 1 if settings.gpus is None else settings.gpus,
                "mem_gb": settings.memory_gb,
                "slurm_partition": settings.partition,
                "slurm_account": settings.account,
                "slurm_qos": settings.qos,
                "slurm_setup": list(settings.setup) or None,
            }
        executor = submitit.AutoExecutor(self.folder, cluster=settings.kind)
        executor.update_parameters(**parameters)
        return executor

    def submit(self, folder: pathlib.Path, slot: int) -> Any:
        """A submitit job that runs the point in ``folder``."""
        executor = self.executor  # which makes the folder
        # What submitit starts here prints a traceback when it is interrupted, which says nothing about the point.
        with stderr_to(self.folder / CONTROLLER_LOG) if self.settings.kind == "local" else contextlib.nullcontext():
            return executor.submit(PointRun(), str(folder), self.gpu[slot], self.threads, self.cache_gb)

    def run(self, folders: dict[str, pathlib.Path], started: Callable[[str], None]) -> Iterator[Ended]:
        """Runs the points of these folders, by name, and yields each when it has ended.

        When the caller stops, points on this machine are stopped too; those on a cluster run on, and the next sweep
        collects their results.
        """
        waiting = deque(folders)
        running: dict[int, tuple[str, Any]] = {}
        try:
            while waiting or running:
                for slot in range(self.parallel):
                    if waiting and slot not in running:
                        name = waiting.popleft()
                        started(name)
                        with put_off():
                            running[slot] = (name, self.submit(folders[name], slot))
                for slot, (name, job) in list(running.items()):
                    if job.done():
                        del running[slot]
                        yield ended(name, job)
                time.sleep(POLL_SECONDS[self.settings.kind])
        finally:
            if self.settings.kind == "local":
                stop({folders[name] / LOCK: job for name, job in running.values()})


def stop(jobs: dict[pathlib.Path, Any]) -> None:
    """Ends jobs on this machine and waits for them. jobs: by the lock of the point that each runs.

    Sends SIGTERM, because a process that a shell started in the background ignores submitit's SIGINT. A lock that is
    still held after its job's end is held by a process of that job, which is ending too.
    """
    sent = -math.inf
    while busy := {lock: job for lock, job in jobs.items() if not job.done() or is_locked(lock)}:
        if sent + SIGNAL_AGAIN_SECONDS < time.monotonic():  # a job that just started may have no handler yet
            sent = time.monotonic()
            with put_off():  # a second signal does not wait for the jobs, but all are told to end
                for job in busy.values():
                    if not job.done():
                        os.kill(int(job.job_id), signal.SIGTERM)
        time.sleep(POLL_SECONDS["local"])


def check_submitit(settings: Executor) -> None:
    try:
        import submitit
    except ImportError as error:
        raise UsageError(f"sweeps run through submitit ({error}): pip install 's3prl-ofa[sweep]'") from None
    if settings.kind == "slurm" and submitit.SlurmExecutor.affinity() < 0:
        raise UsageError("executor.kind: slurm cannot be used here, as there is no srun; local runs on this machine")


@contextlib.contextmanager
def stderr_to(path: pathlib.Path) -> Iterator[None]:
    """Processes that are started in the block inherit this file as their stderr."""
    kept = os.dup(2)
    with path.open("a") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def ended(name: str, job: Any) -> Ended:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    error = job.exception()
    if isinstance(error, UncompletedJobError) and not isinstance(error, FailedJobError):
        return Ended(name, KILLED)  # with no time to say anything
    if error is not None:
        # the last line of the traceback in submitit's error, before its rule and the paths of logs
        lines = str(error).partition("You can check full logs")[0].splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip("- ")), type(error).__name__)
        return Ended(name, FAILED, last)
    return Ended(name, job.result())


def local_gpus(settings: Executor) -> list[str]:
    """The GPUs to deal out, as CUDA_VISIBLE_DEVICES names them; all there are, unless the grid says how many."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = [str(index) for index in range(torch.cuda.device_count())] if visible is None else visible.split(",")
    found = [name for name in found if name.strip()] if torch.cuda.is_available() else []
    if settings.kind == "slurm" or settings.gpus is None:
        return found
    if settings.gpus > len(found):
        raise UsageError(f"executor.gpus is {settings.gpus}, and {len(found)} are here; choose as many or fewer")
    return found[: settings.gpus]
