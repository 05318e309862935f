"""Divides the work of ``extract --shards N`` among processes: on this machine, or in jobs of a Slurm cluster.

A shard is a folder ``shards/N`` in the output folder, with its list of work and its process's index, list of bad files
and log; the features themselves are written to the output folder. A shard whose process ended without finishing is run
again and does what is left.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import pathlib
from collections import Counter, deque
from typing import Any

from s3prl_ofa.device import AUTO, resolve_device
from s3prl_ofa.errors import UsageError
from s3prl_ofa.extract.inputs import Utterance, make_shards
from s3prl_ofa.extract.shard import ShardProcess
from s3prl_ofa.extract.store import ERRORS, INDEX, SHARDS, SUBMITIT, WORK, read_index, read_rows
from s3prl_ofa.extract.tally import Tally
from s3prl_ofa.io.files import printable, write_json
from s3prl_ofa.jobs.slots import POLL_SECONDS, run_in_slots, stop_processes, visible_gpus
from s3prl_ofa.jobs.slurm import ProcessJob, SlurmRequest, job_error, slurm_executor
from s3prl_ofa.progress import Progress

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # to run a shard


def shard_slots(args: argparse.Namespace) -> "LocalSlots | SlurmSlots | None":
    """What runs the shards; None if the work is not divided. Raises UsageError for options that do not fit."""
    asked = {field.name: getattr(args, field.name) for field in dataclasses.fields(SlurmRequest)}
    asked = {name: value for name, value in asked.items() if value is not None}
    if asked and args.executor != "slurm":
        raise UsageError(f"--{next(iter(asked)).replace('_', '-')} is for --executor slurm")
    if args.shards is None and args.executor is None:
        return None
    shards = 1 if args.shards is None else args.shards
    if shards < 1:
        raise UsageError(f"--shards must be at least 1, found {shards}")
    return SlurmSlots(shards, args, asked) if args.executor == "slurm" else LocalSlots(shards, args.device)


class LocalSlots:
    """Processes on this machine, at most one per GPU or else per core at a time."""

    poll_seconds = POLL_SECONDS["local"]

    def __init__(self, shards: int, device: str) -> None:
        resolved = resolve_device(device)
        self.shards, self.device = shards, resolved.type
        gpus = visible_gpus() if resolved.type == "cuda" else []
        self.gpus = (gpus if resolved.index is None else gpus[resolved.index :][:1]) or [""]
        cores = os.cpu_count() or 1
        self.parallel = min(shards, len(self.gpus) if gpus else cores)
        self.threads = max(1, cores // self.parallel)

    def start(self, folder: pathlib.Path, slot: int) -> ShardProcess:
        return ShardProcess(folder, self.gpus[slot % len(self.gpus)], self.threads)

    def stop(self, shards: list[ShardProcess]) -> None:
        stop_processes([shard.process for shard in shards])

    def failure(self, shard: ShardProcess) -> str | None:
        return shard.end()


class SlurmSlots:
    """Jobs of a Slurm cluster, all submitted at once."""

    poll_seconds = POLL_SECONDS["slurm"]

    def __init__(self, shards: int, args: argparse.Namespace, asked: dict[str, Any]) -> None:
        import torch

        try:  # only the machine that runs a shard can tell whether it has the device
            self.device = args.device
            torch.device("cpu" if args.device == AUTO else args.device)
        except RuntimeError:
            raise UsageError(f"--device {args.device}: expected {AUTO}, cpu, cuda, cuda:1, ...") from None
        request = SlurmRequest(**{"gpus": 0 if args.device == "cpu" else 1, **asked})
        self.shards = self.parallel = shards
        self.threads = request.cpus
        self.executor = slurm_executor(request, args.out.absolute() / SHARDS / SUBMITIT, "--executor")

    def start(self, folder: pathlib.Path, slot: int) -> Any:
        return self.executor.submit(ProcessJob(ShardProcess), folder, None, self.threads)

    def stop(self, shards: list[Any]) -> None:
        for job in shards:
            job.cancel(check=False)

    def failure(self, shard: Any) -> str | None:
        error = job_error(shard)
        return shard.result() if error is None else error or "killed"


def run_shards(
    slots: LocalSlots | SlurmSlots, utterances: list[tuple[Utterance, float]], work: dict[str, Any], tally: Tally
) -> dict[str, str]:
    """Extracts (utterance, seconds) pairs in shards, and adds their results to the index and the tally.

    work: what a shard's process needs to know besides the utterances and the device. Returns the shards that did not
    finish, with the reason.
    """
    out = tally.store.folder.absolute()
    shards = {}
    for number, shard in enumerate(make_shards(utterances, slots.shards), 1):
        rows = [(str(one.path), one.name, one.size, one.mtime_ns, seconds) for one, seconds in shard]
        shards[number] = out / SHARDS / str(number)
        write_json(shards[number] / WORK, {**work, "device": slots.device, "out": str(out), "utterances": rows})
    waiting, attempts, dead = deque(shards), Counter[int](), {}
    jobs = run_in_slots(
        waiting, slots.parallel, lambda number, slot: slots.start(shards[number], slot), slots.stop, slots.poll_seconds
    )
    with Progress(total=len(shards), unit="shard", desc="shards") as bar, contextlib.closing(jobs) as ended:
        for number, job in ended:
            attempts[number] += 1
            if (reason := slots.failure(job)) is None:
                bar.update()
            elif attempts[number] < ATTEMPTS:
                logger.warning("shard %s ended (%s); running it again", number, reason)
                waiting.append(number)
            else:
                dead[str(number)] = reason
    by_name = {printable(utterance.name): utterance for utterance, _ in utterances}
    for folder in shards.values():
        for row in read_rows(folder / INDEX).values():
            tally.count(row)
        for row in read_rows(folder / ERRORS).values():
            tally.fail(by_name[row["name"]], row["error"])
    read_index(tally.store.folder)
    return dead
