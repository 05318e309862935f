"""Jobs of a Slurm cluster, submitted through submitit."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from s3prl_ofa.errors import UsageError

DEFAULT_CPUS = 4


@dataclasses.dataclass(frozen=True)
class SlurmRequest:
    """The resources of each job. setup: commands to run first."""

    cpus: int = DEFAULT_CPUS
    gpus: int = 1
    hours: float = 24.0
    memory_gb: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    setup: tuple[str, ...] = ()


def slurm_executor(request: SlurmRequest, folder: pathlib.Path, option: str) -> Any:
    """A submitit executor. folder: for its files. option: the option by which the user chose Slurm, for messages.

    Raises UsageError where there is no Slurm.
    """
    try:
        import submitit
    except ImportError as error:
        raise UsageError(f"jobs are submitted through submitit ({error}): pip install 's3prl-ofa[sweep]'") from None
    if submitit.SlurmExecutor.affinity() < 0:
        raise UsageError(f"{option} slurm cannot be used here, as srun was not found; use local for this machine")
    executor = submitit.AutoExecutor(folder, cluster="slurm")
    executor.update_parameters(
        name="s3prl-ofa",
        timeout_min=max(1, round(60 * request.hours)),
        cpus_per_task=request.cpus,
        gpus_per_node=request.gpus,
        mem_gb=request.memory_gb,
        slurm_partition=request.partition,
        slurm_account=request.account,
        slurm_qos=request.qos,
        slurm_setup=list(request.setup) or None,
    )
    return executor


@dataclasses.dataclass(frozen=True)
class ProcessJob:
    """What a job runs: a process, started by ``start(*arguments)``, whose ``end()`` waits for it and gives the job's
    result. submitit calls ``checkpoint`` when Slurm preempts the job, to put it into the queue again."""

    start: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.start(*arguments).end()

    def checkpoint(self, *arguments: Any) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def job_error(job: Any) -> str | None:
    """Why a submitit job has no result; empty if it ended too abruptly to report anything, None if it has one."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    error = job.exception()
    if error is None:
        return None
    if isinstance(error, UncompletedJobError) and not isinstance(error, FailedJobError):
        return ""
    # the last line of the traceback in submitit's error, before its separator and the paths of logs
    lines = str(error).partition("You can check full logs")[0].splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip("- ")), type(error).__name__)
