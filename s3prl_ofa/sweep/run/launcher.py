"""Runs points, several at a time: as processes on this machine, or as jobs of a Slurm cluster."""

import contextlib
import functools
import os
import pathlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from s3prl_ofa.errors import UsageError
from s3prl_ofa.jobs.slots import POLL_SECONDS, run_in_slots, stop_processes, visible_gpus
from s3prl_ofa.jobs.slurm import DEFAULT_CPUS, ProcessJob, SlurmRequest, job_error, slurm_executor
from s3prl_ofa.sweep.grid.schema import Executor
from s3prl_ofa.sweep.job import FAILED
from s3prl_ofa.sweep.results import PointFolder
from s3prl_ofa.sweep.run.point import KILLED, End, PointProcess

SUBMITIT = "submitit"  # the folder for what it writes
SLURM_PARALLEL = 64  # points at a time, unless the grid says


class Launcher:
    """The slots in which points run; on this machine each slot has a GPU or none.

    Raises UsageError where the settings cannot be met here. Nothing is written before the first point is started.
    """

    def __init__(self, settings: Executor, folder: pathlib.Path, cache_gb: float | None = None) -> None:
        self.kind, self.cache_gb = settings.kind, cache_gb
        on_slurm = settings.kind == "slurm"
        gpus = [] if on_slurm else local_gpus(settings)
        self.parallel = settings.parallel or (SLURM_PARALLEL if on_slurm else max(1, len(gpus)))
        # with more slots than GPUs, several share one
        self.gpu = [None if on_slurm else gpus[slot % len(gpus)] if gpus else "" for slot in range(self.parallel)]
        self.threads = settings.cpus or (DEFAULT_CPUS if on_slurm else max(1, (os.cpu_count() or 1) // self.parallel))
        # a process and a job are started with the same arguments and end alike
        self.start: Callable[..., Any] = PointProcess
        self.end: Callable[[Any], End] = PointProcess.end
        if on_slurm:
            request = SlurmRequest(
                cpus=self.threads,
                gpus=1 if settings.gpus is None else settings.gpus,
                **settings.model_dump(include={"hours", "memory_gb", "partition", "account", "qos", "setup"}),
            )
            executor = slurm_executor(request, folder / SUBMITIT, "executor.kind:")
            self.start, self.end = functools.partial(executor.submit, ProcessJob(PointProcess)), end_of_job

    def run(self, folders: dict[str, PointFolder], started: Callable[[str], None]) -> Iterator[tuple[str, End]]:
        """Runs the points of these folders, by name, and yields each when it has ended.

        When the caller stops, points on this machine are stopped too; those on a cluster run on, and the next sweep
        collects their results.
        """

        def start(name: str, slot: int) -> Any:
            started(name)
            return self.start(folders[name], self.gpu[slot], self.threads, self.cache_gb)

        def stop(points: list[Any]) -> None:
            if self.kind == "local":
                stop_processes([point.process for point in points])

        running = run_in_slots(deque(folders), self.parallel, start, stop, POLL_SECONDS[self.kind])
        with contextlib.closing(running) as ended:
            for name, point in ended:
                yield name, self.end(point)


def local_gpus(settings: Executor) -> list[str]:
    """The GPUs to use, as CUDA_VISIBLE_DEVICES names them: as many as the grid says, or all."""
    found = visible_gpus()
    if settings.gpus is None:
        return found
    if settings.gpus > len(found):
        raise UsageError(f"executor.gpus is {settings.gpus}, but {len(found)} were found; give at most that many")
    return found[: settings.gpus]


def end_of_job(job: Any) -> End:
    """How the point of a submitit job ended, or what kept the job from reporting it."""
    error = job_error(job)
    if error is None:
        return job.result()
    return End(FAILED, error) if error else End(KILLED)
