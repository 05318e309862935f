"""Runs one point of a sweep in a process of its own (work.py), and brings its row into the results.

The point's folder is locked, and the lock is inherited by that process: if it outlives the one that started it, it
keeps the lock, and who comes next waits for its end and does what is left.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import IO, Any

from s3prl_ofa.io.locks import locked
from s3prl_ofa.signals import termination, wait_for
from s3prl_ofa.sweep.job import (
    CACHE_GB,
    FAILURE,
    LOCK,
    LOG,
    NO_ROOM,
    POINT,
    RESULT,
    described,
    read_json,
    tail,
    write_json,
)
from s3prl_ofa.sweep.results import FAILED, FINISHED, Results
from s3prl_ofa.sweep.run.provenance import provenance

FROM_OUTSIDE = ("SIGHUP", "SIGINT", "SIGKILL", "SIGTERM")
FROM_OUTSIDE += ("SIGUSR1", "SIGUSR2", "SIGXCPU")  # with these Slurm and submitit announce the end of a job
KILLED = "killed"  # an exit state without a row: the point goes on the next time


class CommandFailed(Exception):
    """The process of a point ended with an error of its own."""


class CommandKilled(Exception):
    """The process of a point was ended from outside, or by a full disk."""


class PointRun:
    """What an executor runs for a point. submitit calls ``checkpoint`` when Slurm takes the machine away."""

    def __call__(self, folder: str, gpu: str | None, threads: int, cache_gb: float | None = None) -> str:
        """Does what is left of the point in ``folder`` and returns its exit state: finished, failed or killed.

        gpu: the one to use, empty for none; None leaves it to the environment. cache_gb: how much the sweep's cache of
        features may take; None for no cache.
        """
        # The sweep ends its points on this machine with SIGTERM, which submitit would ignore.
        with termination(replace=os.environ.get("SUBMITIT_EXECUTOR") == "local"):
            return run_point(pathlib.Path(folder), gpu, threads, cache_gb)

    def checkpoint(self, *arguments: Any) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def run_point(folder: pathlib.Path, gpu: str | None, threads: int, cache_gb: float | None) -> str:
    with locked(folder / LOCK, wait=True) as lock:
        if not (folder / POINT).exists():
            return KILLED  # it was waiting in a queue, and the grid that wanted it has gone
        if not (folder / RESULT).exists():
            try:
                cache = [] if cache_gb is None else [CACHE_GB, f"{cache_gb:.17g}"]
                start = time.monotonic()
                run_process([str(folder), *cache], folder / LOG, gpu, threads, lock)
            except CommandKilled:
                return KILLED
            except CommandFailed as error:
                row = described(read_json(folder / POINT))
                row |= {"state": FAILED, "error": str(error), "log": tail(folder / LOG)}
                row |= {"duration_s": time.monotonic() - start, **provenance()}
                write_json(folder / FAILURE, row)
                Results(folder.parents[1]).record(row)
                return FAILED
        recover(folder)
    return FINISHED


def recover(folder: pathlib.Path) -> None:
    """Brings the row of a finished point into the results, where a kill may have kept it from."""
    Results(folder.parents[1]).record(read_json(folder / RESULT))
    (folder / FAILURE).unlink(missing_ok=True)


def run_process(arguments: list[str], log: pathlib.Path, gpu: str | None, threads: int, lock: IO[str]) -> None:
    """Runs work.py with its output added to ``log``. Raises CommandFailed or CommandKilled."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    command = [sys.executable, "-m", "s3prl_ofa.sweep.run.worker", *arguments]
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, pass_fds=[lock.fileno()]
        )
        status = wait_for(process)  # ends it at Ctrl-C, or when a cluster ends this job
    if status < 0:  # by a signal; a shell between would make 128 + the signal of it
        status = 128 - status
    if status > 128 and status - 128 in set(signal.Signals):
        name = signal.Signals(status - 128).name
        if name in FROM_OUTSIDE:
            raise CommandKilled
        raise CommandFailed(f"it crashed with {name}")  # by its own fault, such as a segmentation fault
    if status == NO_ROOM:
        raise CommandKilled
    if status:
        last = (tail(log) or ["it said nothing"])[-1]
        raise CommandFailed(f"status {status}: {last}")
