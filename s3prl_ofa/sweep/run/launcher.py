"""Runs points, several at a time: as processes on this machine, or as jobs of a Slurm cluster through submitit."""

import functools
import os
import pathlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from s3prl_ofa.errors import UsageError
from s3prl_ofa.signals import put_off
from s3prl_ofa.sweep.grid.schema import Executor
from s3prl_ofa.sweep.job import FAILED
from s3prl_ofa.sweep.results import PointFolder
from s3prl_ofa.sweep.run.point import KILLED, End, PointProcess

SUBMITIT = "submitit"  # the folder for what it writes
POLL_SECONDS = {"local": 0.2, "slurm": 10.0}
SLURM_PARALLEL = 64  # points at a time, unless the grid says
SLURM_CPUS = 4


class Launcher:
    """The slots in which points run; on this machine each slot has a GPU, or none.

    Raises UsageError where the settings cannot be met here. Nothing is written before the first point is started.
    """

    def __init__(self, settings: Executor, folder: pathlib.Path, cache_gb: float | None = None) -> None:
        self.kind, self.cache_gb = settings.kind, cache_gb
        on_slurm = settings.kind == "slurm"
        gpus = [] if on_slurm else local_gpus(settings)
        self.parallel = settings.parallel or (SLURM_PARALLEL if on_slurm else max(1, len(gpus)))
        # with more slots than GPUs, several share one
        self.gpu = [None if on_slurm else gpus[slot % len(gpus)] if gpus else "" for slot in range(self.parallel)]
        self.threads = settings.cpus or (SLURM_CPUS if on_slurm else max(1, (os.cpu_count() or 1) // self.parallel))
        # a process and a job start with the same arguments and have the same end
        self.start: Callable[..., Any] = PointProcess
        self.end: Callable[[Any], End] = PointProcess.end
        if on_slurm:
            executor = slurm_executor(settings, folder / SUBMITIT, self.threads)
            self.start, self.end = functools.partial(executor.submit, PointRun()), end_of_job

    def run(self, folders: dict[str, PointFolder], started: Callable[[str], None]) -> Iterator[tuple[str, End]]:
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
                            point = self.start(folders[name], self.gpu[slot], self.threads, self.cache_gb)
                            running[slot] = (name, point)
                for slot, (name, point) in list(running.items()):
                    if point.done():
                        del running[slot]
                        yield name, self.end(point)
                time.sleep(POLL_SECONDS[self.kind])
        finally:
            if self.kind == "local":
                stop([point for _, point in running.values()])


def stop(points: list[PointProcess]) -> None:
    """Ends points on this machine and waits for them."""
    with put_off():  # all are told to end before a second signal can interrupt
        for point in points:
            point.process.terminate()
    for point in points:
        point.process.wait()


def local_gpus(settings: Executor) -> list[str]:
    """The GPUs to use, as CUDA_VISIBLE_DEVICES names them: as many as the grid says, or all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = [str(index) for index in range(torch.cuda.device_count())] if visible is None else visible.split(",")
    found = [name for name in found if name.strip()] if torch.cuda.is_available() else []
    if settings.gpus is None:
        return found
    if settings.gpus > len(found):
        raise UsageError(f"executor.gpus is {settings.gpus}, but {len(found)} were found; give at most that many")
    return found[: settings.gpus]


class PointRun:
    """What a job runs, with the arguments of PointProcess. submitit calls ``checkpoint`` when Slurm takes the machine
    away, to put the job into the queue again."""

    def __call__(self, *arguments: Any) -> End:
        return PointProcess(*arguments).end()

    def checkpoint(self, *arguments: Any) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def slurm_executor(settings: Executor, folder: pathlib.Path, threads: int) -> Any:
    """A submitit executor. folder: for what it writes. Raises UsageError where there is no Slurm."""
    try:
        import submitit
    except ImportError as error:
        raise UsageError(f"jobs are submitted through submitit ({error}): pip install 's3prl-ofa[sweep]'") from None
    if submitit.SlurmExecutor.affinity() < 0:
        raise UsageError("executor.kind: slurm cannot be used here, as srun was not found; use local for this machine")
    executor = submitit.AutoExecutor(folder, cluster="slurm")
    executor.update_parameters(
        name="s3prl-ofa",
        timeout_min=max(1, round(60 * settings.hours)),
        cpus_per_task=threads,
        gpus_per_node=1 if settings.gpus is None else settings.gpus,
        mem_gb=settings.memory_gb,
        slurm_partition=settings.partition,
        slurm_account=settings.account,
        slurm_qos=settings.qos,
        slurm_setup=list(settings.setup) or None,
    )
    return executor


def end_of_job(job: Any) -> End:
    """How the point of a submitit job ended, or what kept the job from reporting it."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    error = job.exception()
    if error is None:
        return job.result()
    if isinstance(error, UncompletedJobError) and not isinstance(error, FailedJobError):
        return End(KILLED)  # too abruptly to report anything
    # the last line of the traceback in submitit's error, before its rule and the paths of logs
    lines = str(error).partition("You can check full logs")[0].splitlines()
    return End(FAILED, next((line.strip() for line in reversed(lines) if line.strip("- ")), type(error).__name__))
