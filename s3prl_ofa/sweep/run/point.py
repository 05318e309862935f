"""The process of a point: ``python -m s3prl_ofa.sweep.run.point FOLDER`` trains, evaluates and writes the point's row.

A task that trains nothing is evaluated on dev with one hidden state after the other, and on test with the best of them.
``--cache-gb GB`` after it lets frozen upstreams use the sweep's feature cache. Each step writes its file only when it
is done, so that after a kill at any moment another process can do the remaining steps. The point is locked meanwhile,
because a process may outlive the sweep that started it; the next process waits for it to end. All steps are
run_downstream commands, one after the other in one process, because S3PRL takes long to import.
"""

import datetime
import importlib.metadata
import logging
import multiprocessing
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import yaml

from s3prl_ofa.arguments.run_downstream import option
from s3prl_ofa.checkpoint.experiment import states_files
from s3prl_ofa.cli import build_command_parser, guarded, run_command
from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import DiskFull, atomic_path, digest, read_json, write_json
from s3prl_ofa.io.locks import locked
from s3prl_ofa.jobs.slots import process_environment
from s3prl_ofa.model.config import SAMPLE_RATE
from s3prl_ofa.signals import wait_for
from s3prl_ofa.superb.downstream.metrics import measured_path, utterances_path
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE
from s3prl_ofa.sweep.job import FAILED, FINISHED, OFA, SEARCH_LAYERS, Job, Row
from s3prl_ofa.sweep.results import FEATURES, PointFolder
from s3prl_ofa.version import __version__

COMMAND = "s3prl-ofa run_downstream"
TRAIN = f"{COMMAND} -a -m train"  # the start of a training in the log
CACHE_GB = "--cache-gb"  # of this process and of run_downstream
DISK_FULL = 74  # exit status, as in sysexits.h; the point can be resumed
# with the last three Slurm and submitit announce the end of a job
FROM_OUTSIDE = ("SIGHUP", "SIGINT", "SIGKILL", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU")
BEGUN = "begun"  # in PointFolder.evaluated: if the file is there, only the note of its digest was not made any more
KILLED = "killed"  # how a point ends that has no row yet: it is resumed the next time
NOT_IN_ROW = {"split", "batches", "frames", "options", "peak_memory_mb"}  # of what was measured on the test split
PACKAGES = ("torch", "s3prl")  # whose versions are in a row


class End(NamedTuple):
    """How a point ended. state: finished, failed or killed. error: what may have kept it from writing its row."""

    state: str
    error: str = ""


class PointProcess:
    """A process on this machine that does what is left of the point in ``folder``; its output goes to the point's log.

    gpu: the GPU to use, empty for none; None leaves it to the environment. cache_gb: the limit of the sweep's feature
    cache; None for no cache.
    """

    def __init__(self, folder: PointFolder, gpu: str | None, threads: int, cache_gb: float | None) -> None:
        self.folder, self.started = folder, time.monotonic()
        command = [sys.executable, "-m", "s3prl_ofa.sweep.run.point", str(folder.path)]
        command += [] if cache_gb is None else [CACHE_GB, f"{cache_gb:.17g}"]
        folder.path.mkdir(parents=True, exist_ok=True)
        with folder.log.open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=process_environment(gpu, threads)
            )

    def done(self) -> bool:
        return self.process.poll() is not None

    def end(self) -> End:
        """Waits for the process, which Ctrl-C or a cluster's signal ends too. The row of a failed point is written
        here, because a crashed process cannot write one."""
        status = wait_for(self.process)
        if not self.folder.settings.exists():
            return End(KILLED)  # it waited in a queue, and the sweep's grid no longer has it
        job = self.folder.job()
        if state := job.state(self.folder.row()):
            return End(state)
        error = failure(status, self.folder)
        if error is None:
            return End(KILLED)
        found = {"error": error, "log": self.folder.tail(), "duration_s": time.monotonic() - self.started}
        write_json(self.folder.result, job.row(FAILED, **found, **provenance()))
        return End(FAILED)


def failure(status: int, folder: PointFolder) -> str | None:
    """Why a point failed whose process ended with ``status``; None if the process was ended from outside."""
    if status < 0:  # by a signal; with a shell in between the status is 128 + the signal's number
        status = 128 - status
    if status > 128 and status - 128 in set(signal.Signals):
        name = signal.Signals(status - 128).name
        return None if name in FROM_OUTSIDE else f"it crashed with {name}"  # such as a segmentation fault
    return None if status in (0, DISK_FULL) else f"status {status}: {(folder.tail() or ['it printed nothing'])[-1]}"


def main(argv: Sequence[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    folder = PointFolder(pathlib.Path(argv[0]))

    def run() -> int:
        with locked(folder.lock, wait=True):
            if not folder.settings.exists():
                return 0  # it waited in a queue, and the sweep's grid no longer has it
            job = folder.job()
            try:
                if job.state(folder.row()) is None:
                    work(folder, job, cache_arguments(folder, job, argv[1:]))
            except DiskFull as error:  # the point has not failed
                print(f"{COMMAND}: error: {error}", file=sys.stderr)
                return DISK_FULL
            return 0

    return guarded(COMMAND, run)


def cache_arguments(folder: PointFolder, job: Job, given: Sequence[str]) -> list[str]:
    """The options of run_downstream for the sweep's feature cache; none for a baseline."""
    if not given or job.upstream != OFA:
        return []
    return [*given, "--feature-cache", str(folder.path.parents[1] / FEATURES)]


def work(folder: PointFolder, job: Job, cache: list[str]) -> None:
    """Does what is left of the point and writes its row."""
    start = time.monotonic()
    with atomic_path(folder.config) as temporary:
        temporary.write_text(yaml.safe_dump(job.config, sort_keys=False), "utf-8")
    if not job.is_trained:
        layer, experiment = search(folder, job, cache)
        return conclude(folder, job, experiment, time.monotonic() - start, layer=layer)
    experiment = folder.experiment
    if not folder.trained.exists():
        run_downstream(job, ["-a", "-m", "train", *new_experiment(folder, job, experiment), *cache])
        write_json(folder.trained, {"seconds": time.monotonic() - start})
    trained = read_json(folder.trained)["seconds"]
    start = time.monotonic()
    for split in filter(None, (job.dev_split, job.test_split)):
        past = ["-e", str(chosen_checkpoint(experiment, job)), *checkpoint_arguments(job), "--device", job.device]
        evaluate(folder, job, experiment, split, [*past, *cache])
    conclude(folder, job, experiment, trained + time.monotonic() - start)


def search(folder: PointFolder, job: Job, cache: list[str]) -> tuple[int, pathlib.Path]:
    """SUPERB's protocol for a task that trains nothing: finds the hidden state that is best on dev and evaluates it on
    test. Returns its index and the folder of its evaluations."""

    def experiment(layer: int) -> pathlib.Path:
        return folder.experiment / f"layer_{layer}"

    def score(layer: int, split: str) -> float:
        arguments = [*new_experiment(folder, job, experiment(layer)), *cache, "-l", str(layer)]
        return score_in(evaluate(folder, job, experiment(layer), split, arguments), job)

    layers = job.config["runner"].get(SEARCH_LAYERS) or range(count_hidden_states(job))
    on_dev = {layer: score(layer, job.dev_split) for layer in layers}
    best = (max if job.higher_is_better else min)(on_dev, key=on_dev.__getitem__)
    score(best, job.test_split)
    return best, experiment(best)


def evaluate(folder: PointFolder, job: Job, experiment: pathlib.Path, split: str, arguments: list[str]) -> Row:
    """What is measured on a split, unless the point has measured it already: what someone else has measured there, for
    example at another rate, does not count."""
    path = measured_path(experiment, split)
    name, done = str(path.relative_to(folder.path)), read_json(folder.evaluated) if folder.evaluated.exists() else {}
    if not path.exists() or done.get(name) not in (BEGUN, digest(path)):
        path.unlink(missing_ok=True)
        write_json(folder.evaluated, {**done, name: BEGUN})
        run_downstream(job, ["-m", "evaluate", *arguments, "-t", split])
    write_json(folder.evaluated, {**done, name: digest(path)})
    return read_json(path)


def count_hidden_states(job: Job) -> int:
    """Of the point's upstream, the input of the encoder included."""
    from s3prl import hub

    from s3prl_ofa.superb.downstream.experiment import s3prl_set_up

    options = {"layers": job.value} if job.rate == "layers" else {}
    with s3prl_set_up(), torch.no_grad():
        upstream = getattr(hub, job.upstream)(ckpt=job.checkpoint, **options).eval()
        return len(upstream([torch.zeros(SAMPLE_RATE)])["hidden_states"])


def conclude(folder: PointFolder, job: Job, experiment: pathlib.Path, seconds: float, **found: Any) -> None:
    """Writes the row of a point whose evaluations are in ``experiment``."""
    keep_utterances(folder, job, experiment)
    write_json(folder.result, row_of(folder, job, experiment, seconds) | found)


def keep_utterances(folder: PointFolder, job: Job, experiment: pathlib.Path) -> None:
    """Keeps the outcome of each test utterance, if the task records it, for comparisons between points."""
    path = utterances_path(experiment, job.test_split)
    scores = read_json(path) if path.exists() else {}
    if job.metric in scores:
        write_json(folder.utterances, {"utterances": scores["utterances"], **scores[job.metric]}, indent=None)


def run_downstream(job: Job, arguments: list[str]) -> None:
    """Raises UsageError if the checkpoint is not the one that the point was made for."""
    if job.checkpoint_sha256 is not None and digest(pathlib.Path(job.checkpoint)) != job.checkpoint_sha256:
        raise UsageError(f"{job.checkpoint} has changed since the sweep was started; start it again")
    print(f"$ {COMMAND} {shlex.join(arguments)}", flush=True)
    run_command("run_downstream", build_command_parser("run_downstream").parse_args(arguments))


def new_experiment(folder: PointFolder, job: Job, experiment: pathlib.Path) -> list[str]:
    """The arguments of a new experiment of the point. With ``-a`` a training resumes from S3PRL's last checkpoint."""
    arguments = ["-u", job.upstream, "-d", job.task, "-c", str(folder.config)]
    arguments += ["-p", str(experiment), "--seed", str(job.seed), "--device", job.device, *checkpoint_arguments(job)]
    for name, value in job.rate_options.items():
        arguments += [option(name), str(value)]
    return arguments


def checkpoint_arguments(job: Job) -> list[str]:
    """Also for an evaluation: since the training the checkpoint may have moved."""
    return [] if job.checkpoint is None else ["-k", job.checkpoint]


def chosen_checkpoint(experiment: pathlib.Path, job: Job) -> pathlib.Path:
    """The best on dev, as found by S3PRL, or the last one if there is no best. For an adaptive rate always the last:
    the best on dev would be from a time at which frames still cost less than in the end."""
    last = states_files(experiment)[:1]
    best = [] if job.rate == ADAPTIVE else sorted(experiment.glob("[!.]*best*.ckpt"), key=os.path.getmtime)
    return ([path for path in best if "test" not in path.name] or last or [experiment])[-1]


def row_of(folder: PointFolder, job: Job, experiment: pathlib.Path, seconds: float) -> Row:
    """The row of a finished point, evaluated in ``experiment``.

    seconds: of training and evaluation, each in the process that finished it. attempts: how often training was
    started. peak_memory_mb: of the processes of training and evaluation.

    Raises ValueError where there is no score.
    """
    found = {}
    for split in filter(None, ("train", job.dev_split, job.test_split)):
        path = measured_path(experiment, split)
        found[split] = read_json(path) if path.exists() else {}  # of training, one step is too few to measure
    test = found[job.test_split]
    log = folder.log.read_text("utf-8", errors="replace")
    return job.row(
        FINISHED,
        score=score_in(test, job),
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


def score_in(measured: dict[str, Any], job: Job) -> float:
    scores: dict[str, float | None] = measured["scores"]
    if (score := scores.get(job.metric)) is None:
        logged = ", ".join(f"{name} {value}" for name, value in scores.items()) or "nothing"
        raise ValueError(f"tasks.{job.task}.metric: no {job.metric} in what S3PRL logged: {logged}")
    return score


def provenance() -> dict[str, Any]:
    """When and with what a row was made: finished (time in UTC), versions, commit."""
    return {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"s3prl_ofa": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}},
        "commit": git_commit(),
    }


def git_commit() -> str | None:
    """Of the project, where it is run from a checkout; with -dirty where files differ from it."""
    root = pathlib.Path(__file__).resolve().parents[3]
    command = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}", "describe"]
    command += ["--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # there is no git
        return None


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    for child in multiprocessing.active_children():  # of a data loader, if this process was told to end
        child.terminate()
        child.join()
    os._exit(status)  # everything is on the disk; tearing down torch takes as long as a short evaluation
