"""Runs one point in a process of its own (worker.py) and records how it ended.

The point's folder is locked, and the process inherits the lock: if it outlives the one that started it, it keeps the
lock, and whoever comes next waits for its end and does what is left.
"""

import datetime
import importlib.metadata
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import IO, Any

from s3prl_ofa.io.locks import locked
from s3prl_ofa.signals import termination, wait_for
from s3prl_ofa.sweep.job import FAILED, FINISHED, LOCK, LOG, POINT, RESULT, Job, tail, write_json
from s3prl_ofa.sweep.results import read_result
from s3prl_ofa.version import __version__

CACHE_GB = "--cache-gb"  # of worker.py and of run_downstream
DISK_FULL = 74  # exit status of worker.py, as in sysexits.h; the point can be resumed
FROM_OUTSIDE = ("SIGHUP", "SIGINT", "SIGKILL", "SIGTERM")
FROM_OUTSIDE += ("SIGUSR1", "SIGUSR2", "SIGXCPU")  # with these Slurm and submitit announce the end of a job
PACKAGES = ("torch", "s3prl")  # whose versions are in a row
KILLED = "killed"  # how a point ends that has no row yet: it is resumed the next time


class PointRun:
    """What an executor runs for a point. submitit calls ``checkpoint`` when Slurm takes the machine away."""

    def __call__(self, folder: str, gpu: str | None, threads: int, cache_gb: float | None = None) -> str:
        """Does what is left of the point in ``folder`` and returns how it ended: finished, failed or killed.

        gpu: the one to use, empty for none; None leaves it to the environment. cache_gb: the limit of the sweep's
        feature cache; None for no cache.
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
            return KILLED  # it was waiting in a queue, and the sweep's grid no longer has it
        job = Job.load(folder)
        if state := job.state(read_result(folder)):
            return state
        start = time.monotonic()
        state, error = run_process(folder, gpu, threads, cache_gb, lock)
        if state == FAILED:
            found = {"error": error, "log": tail(folder / LOG), "duration_s": time.monotonic() - start, **provenance()}
            write_json(folder / RESULT, job.row(FAILED, **found))
        return state


def run_process(
    folder: pathlib.Path, gpu: str | None, threads: int, cache_gb: float | None, lock: IO[str]
) -> tuple[str, str]:
    """Runs worker.py with its output added to the point's log. Returns how it ended and, where it failed, why."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    command = [sys.executable, "-m", "s3prl_ofa.sweep.run.worker", str(folder)]
    command += [] if cache_gb is None else [CACHE_GB, f"{cache_gb:.17g}"]
    with (folder / LOG).open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, pass_fds=[lock.fileno()]
        )
        status = wait_for(process)  # ends it at Ctrl-C, or when a cluster ends this job
    if status < 0:  # by a signal; with a shell in between the status is 128 + the signal's number
        status = 128 - status
    if status > 128 and status - 128 in set(signal.Signals):
        name = signal.Signals(status - 128).name
        # by its own fault, such as a segmentation fault, or from outside
        return (KILLED, "") if name in FROM_OUTSIDE else (FAILED, f"it crashed with {name}")
    if status in (0, DISK_FULL):
        return KILLED if status else FINISHED, ""
    return FAILED, f"status {status}: {(tail(folder / LOG) or ['it printed nothing'])[-1]}"


def provenance() -> dict[str, Any]:
    """When, and with what, a row came to be: finished (the time, UTC), versions, commit."""
    return {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"s3prl_ofa": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}},
        "commit": git_commit(),
    }


def git_commit() -> str | None:
    """Of the project, where it is run from a checkout; with -dirty where files differ from it."""
    root = pathlib.Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
