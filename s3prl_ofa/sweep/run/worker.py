"""The process of a point: ``python -m s3prl_ofa.sweep.run.worker FOLDER`` trains, evaluates and writes the point's row.

``--cache-gb GB`` after it lets frozen upstreams use the sweep's feature cache. Each step leaves its file when it is
done, and only then, so that after a kill at any moment another process does what is left. All steps are run_downstream
commands, one after the other in one process, as S3PRL takes long to import.
"""

import logging
import multiprocessing
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence

import yaml

from s3prl_ofa.cli import guarded, run_command
from s3prl_ofa.io.files import DiskFull, atomic_path
from s3prl_ofa.superb.downstream.checkpoints import states_files
from s3prl_ofa.superb.downstream.metrics import measured_path
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE
from s3prl_ofa.sweep.job import (
    CONFIG,
    EXPERIMENT,
    FEATURES,
    FINISHED,
    LOG,
    OFA,
    RESULT,
    TRAINED,
    Job,
    Row,
    read_json,
    write_json,
)
from s3prl_ofa.sweep.run.process import DISK_FULL, provenance

COMMAND = "s3prl-ofa run_downstream"
TRAIN = f"{COMMAND} -a -m train"  # how a training begins in the log
NOT_IN_ROW = {"split", "batches", "frames", "options", "peak_memory_mb"}  # of what was measured on the test split


def main(argv: Sequence[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    folder = pathlib.Path(argv[0])

    def run() -> int:
        job = Job.load(folder)
        try:
            work(folder, job, cache_arguments(folder, job, argv[1:]))
        except DiskFull as error:  # the point has not failed
            print(f"{COMMAND}: error: {error}", file=sys.stderr)
            return DISK_FULL
        return 0

    return guarded(COMMAND, run)


def cache_arguments(folder: pathlib.Path, job: Job, given: Sequence[str]) -> list[str]:
    """The options of run_downstream for the sweep's feature cache; none for a point that cannot use one."""
    if not given or job.upstream != OFA or job.rate == ADAPTIVE:
        return []
    return [*given, "--feature-cache", str(folder.parents[1] / FEATURES)]


def work(folder: pathlib.Path, job: Job, cache: list[str]) -> None:
    """Does what is left of the point and writes its row."""
    start = time.monotonic()
    experiment = folder / EXPERIMENT
    if not (folder / TRAINED).exists():
        with atomic_path(folder / CONFIG) as temporary:
            temporary.write_text(yaml.safe_dump(job.config, sort_keys=False), "utf-8")
        run_downstream([*train_arguments(folder, job), *cache])
        write_json(folder / TRAINED, {"seconds": time.monotonic() - start})
    trained = read_json(folder / TRAINED)["seconds"]
    start = time.monotonic()
    for split in filter(None, (job.dev_split, job.test_split)):
        if not measured_path(experiment, split).exists():
            past = str(chosen_checkpoint(experiment, job))
            run_downstream(["-m", "evaluate", "-e", past, "-t", split, "--device", job.device, *cache])
    write_json(folder / RESULT, row_of(folder, job, trained + time.monotonic() - start))


def run_downstream(arguments: list[str]) -> None:
    print(f"$ {COMMAND} {shlex.join(arguments)}", flush=True)
    run_command("run_downstream", arguments)


def train_arguments(folder: pathlib.Path, job: Job) -> list[str]:
    """``-a`` resumes from S3PRL's last checkpoint, or begins where there is none."""
    arguments = ["-a", "-m", "train", "-u", job.upstream, "-d", job.task, "-c", str(folder / CONFIG)]
    arguments += ["-p", str(folder / EXPERIMENT), "--seed", str(job.seed), "--device", job.device]
    if job.checkpoint is not None:
        arguments += ["-k", job.checkpoint]
    for name, value in job.rate_options.items():
        arguments += ["--" + name.replace("_", "-"), str(value)]
    return arguments


def chosen_checkpoint(experiment: pathlib.Path, job: Job) -> pathlib.Path:
    """The one that S3PRL found best on dev, or the last one where none was better than nothing; always the last one of
    an adaptive rate, as the best on dev would be one at which frames still cost less than they do in the end."""
    last = states_files(experiment)[:1]
    best = [] if job.rate == ADAPTIVE else sorted(experiment.glob("[!.]*best*.ckpt"), key=os.path.getmtime)
    return ([path for path in best if "test" not in path.name] or last or [experiment])[-1]


def row_of(folder: pathlib.Path, job: Job, seconds: float) -> Row:
    """The row of a finished point. seconds: of training and evaluation, each in the process that finished it.
    attempts: how often training began. peak_memory_mb: of the processes of training and evaluation.

    Raises ValueError where there is no score.
    """
    found = {}
    for split in filter(None, ("train", job.dev_split, job.test_split)):
        path = measured_path(folder / EXPERIMENT, split)
        found[split] = read_json(path) if path.exists() else {}  # of training, one step is too few to measure
    test = found[job.test_split]
    if test["scores"].get(job.metric) is None:
        scores = ", ".join(f"{name} {value}" for name, value in test["scores"].items()) or "nothing"
        raise ValueError(f"tasks.{job.task}.metric: no {job.metric} in what S3PRL logged: {scores}")
    log = (folder / LOG).read_text("utf-8", errors="replace")
    return job.row(
        FINISHED,
        score=test["scores"][job.metric],
        dev_score=found[job.dev_split]["scores"].get(job.metric) if job.dev_split else None,
        **{key: value for key, value in test.items() if key not in NOT_IN_ROW},
        frame_count=test["frames"],
        repeat=(test["options"] or {}).get("repeat"),
        # the splits were in one process only if nothing was interrupted
        peak_memory_mb=max(measured.get("peak_memory_mb") or 0.0 for measured in found.values()),
        duration_s=seconds,
        attempts=log.count(f"$ {TRAIN}"),
        **provenance(),
    )


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    for child in multiprocessing.active_children():  # of a data loader, if this process was told to end
        child.terminate()
        child.join()
    os._exit(status)  # everything is on the disk; tearing down torch takes as long as a short evaluation
