"""The process of a point: ``python -m s3prl_ofa.sweep.run.worker FOLDER`` trains, evaluates on dev and test, writes the row.

``--cache-gb GB`` after it lets frozen upstreams use the sweep's cache of features. Each step leaves its file when it is
done, and only then, so that after a kill at any moment another process does what is left. All three are s3prl_ofa's
run_downstream, one after the other in one process, as S3PRL takes long to import.
"""

import copy
import logging
import multiprocessing
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from s3prl_ofa.cli import guarded
from s3prl_ofa.io.files import DiskFull, atomic_path
from s3prl_ofa.superb.downstream import command
from s3prl_ofa.superb.downstream.checkpoints import states_files
from s3prl_ofa.superb.downstream.metrics import measured_path
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE
from s3prl_ofa.sweep.grid.schema import OURS
from s3prl_ofa.sweep.job import (
    CACHE_GB,
    CONFIG,
    EXPERIMENT,
    FEATURES,
    LOG,
    NO_ROOM,
    POINT,
    RESULT,
    TRAINED,
    described,
    read_json,
    write_json,
)
from s3prl_ofa.sweep.results import FINISHED, Row
from s3prl_ofa.sweep.run.provenance import provenance

COMMAND = "s3prl-ofa run_downstream"
TRAIN = f"{COMMAND} -a -m train"  # how a training begins in the log
PROBE = "--probe"
PROBE_STEPS = 6  # of training
PROBE_SHARE = 0.1  # of the test split
COPIED = (  # from what was measured on the test split to the row
    "frame_period_ms",
    "learnt_lambd",
    "utterances",
    "audio_seconds",
    "macs_per_second",
    "upstream_seconds_per_second",
    "downstream_seconds_per_second",
    "device",
    "scores",
)


def main(argv: Sequence[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    folder = pathlib.Path(argv[0])
    settings = read_json(folder / POINT)
    if PROBE in argv:
        return guarded(COMMAND, lambda: probe(folder, settings))
    cache = cache_arguments(folder, settings, argv[1:])
    return guarded(COMMAND, lambda: while_there_is_room(lambda: work(folder, settings, cache)))


def while_there_is_room(run: Callable[[], int]) -> int:
    """The exit status of ``run``, or NO_ROOM: on a full disk the point has not failed."""
    try:
        return run()
    except DiskFull as error:
        print(f"{COMMAND}: error: {error}", file=sys.stderr)
        return NO_ROOM


def cache_arguments(folder: pathlib.Path, settings: dict[str, Any], given: Sequence[str]) -> list[str]:
    """What run_downstream is told about the sweep's cache of features: nothing where a point cannot use one."""
    point = settings["point"]
    if CACHE_GB not in given or point["upstream"] != OURS or point["rate"] == ADAPTIVE:
        return []
    return [*given, "--feature-cache", str(folder.parents[1] / FEATURES)]


def work(folder: pathlib.Path, settings: dict[str, Any], cache: list[str]) -> int:
    """Does what is left of the point and writes its row to result.json."""
    start = time.monotonic()
    experiment = folder / EXPERIMENT
    if not (folder / TRAINED).exists():
        write_config(folder, settings)
        call([*train_arguments(folder, settings), *cache])
        write_json(folder / TRAINED, {"seconds": time.monotonic() - start})
    trained = read_json(folder / TRAINED)["seconds"]
    start = time.monotonic()
    for split in filter(None, (settings["dev"], settings["test"])):
        if not measured_path(experiment, split).exists():
            call([*evaluate_arguments(chosen_checkpoint(experiment, settings["point"]), split, settings), *cache])
    write_json(folder / RESULT, row_of(folder, settings, trained + time.monotonic() - start))
    return 0


def call(arguments: list[str]) -> None:
    print(f"$ {COMMAND} {shlex.join(arguments)}", flush=True)
    command.run(arguments)


def train_arguments(folder: pathlib.Path, settings: dict[str, Any]) -> list[str]:
    """``-a`` makes it go on from S3PRL's last checkpoint, or begin where there is none."""
    point = settings["point"]
    arguments = ["-a", "-m", "train", "-u", point["upstream"], "-d", point["task"], "-c", str(folder / CONFIG)]
    arguments += ["-p", str(folder / EXPERIMENT), "--seed", str(point["seed"]), "--device", settings["device"]]
    if point["checkpoint"] is not None:
        arguments += ["-k", point["checkpoint"]]
    if point["upstream"] == OURS:
        value = f"{point['value']:.17g}"
        if point["rate"] == ADAPTIVE:
            arguments += ["--lambd", ADAPTIVE, "--rate-weight", value]
            if point.get("lambd_start") is not None:
                arguments += ["--lambd-start", f"{point['lambd_start']:.17g}"]
            if settings.get("lambd_max") is not None:
                arguments += ["--lambd-max", f"{settings['lambd_max']:.17g}"]
        else:
            arguments += ["--" + point["rate"].replace("_", "-"), value]
        arguments += ["--frames", point["frames"]]
        arguments += ["--repeat", str(point["repeat"])] if point["repeat"] != 1 else []
    return arguments


def evaluate_arguments(past: pathlib.Path, split: str, settings: dict[str, Any]) -> list[str]:
    return ["-m", "evaluate", "-e", str(past), "-t", split, "--device", settings["device"]]


def chosen_checkpoint(experiment: pathlib.Path, point: dict[str, Any]) -> pathlib.Path:
    """The one that S3PRL found best on dev, the last one where none was better than nothing, and the last one of an
    adaptive rate: the best on dev would be one at which frames cost less than they do in the end."""
    if point["rate"] == ADAPTIVE:
        return states_files(experiment)[0]
    best = sorted(experiment.glob("[!.]*best*.ckpt"), key=lambda path: path.stat().st_mtime)
    chosen = [path for path in best if "test" not in path.name] or states_files(experiment)[:1]
    return chosen[-1] if chosen else experiment


def row_of(folder: pathlib.Path, settings: dict[str, Any], seconds: float) -> Row:
    """The row of a finished point. seconds: of training and evaluation, of each what the process that finished it took.
    attempts: how often training began. peak_memory_mb: of the processes of training and evaluation.

    Raises ValueError where there is no score.
    """
    experiment = folder / EXPERIMENT
    test = read_json(measured_path(experiment, settings["test"]))
    dev = read_json(measured_path(experiment, settings["dev"])) if settings["dev"] else {"scores": {}}
    train = measured_path(experiment, "train")
    train = read_json(train) if train.exists() else {}  # one step is too few to measure
    metric = settings["metric"]
    if test["scores"].get(metric) is None:
        found = ", ".join(f"{name} {value}" for name, value in test["scores"].items()) or "nothing"
        raise ValueError(f"tasks.{settings['point']['task']}.metric: no {metric} in what S3PRL logged: {found}")
    log = (folder / LOG).read_text("utf-8", errors="replace")
    return {
        **described(settings),
        "state": FINISHED,
        "score": test["scores"][metric],
        "dev_score": dev["scores"].get(metric),
        **{key: test[key] for key in COPIED},
        "frame_count": test["frames"],
        "repeat": (test["options"] or {}).get("repeat"),
        # the three were in one process only if nothing was interrupted
        "peak_memory_mb": max(found.get("peak_memory_mb") or 0.0 for found in (train, dev, test)),
        "duration_s": seconds,
        "attempts": log.count(f"$ {TRAIN}"),
        **provenance(),
    }


def write_config(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    with atomic_path(folder / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(settings["config"], sort_keys=False), "utf-8")


def probe(folder: pathlib.Path, settings: dict[str, Any]) -> int:
    """For an estimate of the time: a few training steps and a part of the test split, and what they took."""
    settings = copy.deepcopy(settings)
    runner = settings["config"]["runner"]
    share = runner.get("evaluate_ratio") or 1
    runner |= {"total_steps": PROBE_STEPS, "eval_step": PROBE_STEPS + 1, "save_step": PROBE_STEPS}
    runner["evaluate_ratio"] = PROBE_SHARE
    write_config(folder, settings)
    call(train_arguments(folder, settings))
    start = time.monotonic()
    split = settings["test"]
    call(evaluate_arguments(folder / EXPERIMENT, split, settings))
    seconds = time.monotonic() - start
    batch = read_json(measured_path(folder / EXPERIMENT, "train"))["seconds_a_batch"]
    done = read_json(measured_path(folder / EXPERIMENT, split))["batches"]
    # S3PRL runs one batch more than the share
    whole_split = max(done, (done - 1) / PROBE_SHARE)
    whole_split = min(whole_split, whole_split * share + 1)
    step = batch * (runner.get("gradient_accumulate_steps") or 1)
    write_json(folder / RESULT, {"step": step, "probed": seconds, "evaluation": seconds / done * whole_split})
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    for worker in multiprocessing.active_children():  # of a data loader, if this process was told to end
        worker.terminate()
        worker.join()
    os._exit(status)  # everything is on the disk; tearing down torch takes as long as a short evaluation
