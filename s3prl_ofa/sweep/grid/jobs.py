"""Turns a grid into its points, as jobs; checks checkpoints, data, configs, tasks and baselines before anything runs.

Raises UsageError with one sentence that begins with the key of the grid.
"""

import copy
import hashlib
import importlib
import itertools
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from s3prl_ofa.checkpoint import checkpoint_path, is_remote, load
from s3prl_ofa.device import AUTO
from s3prl_ofa.errors import CheckpointError, UsageError
from s3prl_ofa.io.files import digest
from s3prl_ofa.resources import folder
from s3prl_ofa.superb.compat.plain_names import check_config, check_downstream, entries, is_split
from s3prl_ofa.superb.tasks.configs import S3PRL_DOWNSTREAM, mapping_at, resolve_config
from s3prl_ofa.superb.tasks.data_roots import SPLITS
from s3prl_ofa.superb.tasks.experiment_data import EVALUATION_SPLITS
from s3prl_ofa.superb.upstream.expert import check_options
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE, NATIVE, whole
from s3prl_ofa.sweep.grid.schema import KNOWN, Grid, Task, is_trained
from s3prl_ofa.sweep.job import OFA, SEARCH_LAYERS, Job, Point

logger = logging.getLogger(__name__)

WITH_CHECKPOINT = ("_local", "_url", "_custom")  # endings of S3PRL upstreams that take a checkpoint (-k)
EVERY = ("eval_step", "save_step", "log_step")  # of S3PRL's runner
ROOT_OPTION = re.compile(r"(`[^`]*`)|--([a-z][a-z0-9-]*)")


def points_of(grid: Grid) -> list[Point]:
    """All points: the first seed of everything before the second, so that an interrupted sweep already gives a table.

    Raises UsageError for a rate that run_downstream would refuse.
    """
    found = [point for name, task in grid.tasks.items() for point in task_points(grid, name, task)]
    for point in found:
        point.checked_options()
    return sorted(found, key=lambda point: grid.tasks[point.task].seeds.index(point.seed))


def task_points(grid: Grid, name: str, task: Task) -> Iterator[Point]:
    for learning_rate, seed in itertools.product(task.learning_rates, task.seeds):
        common = {"task": name, "learning_rate": learning_rate, "seed": seed}
        systems = [
            (model, item.path, *pair)
            for model, item in grid.checkpoints.items()
            if item.is_for(name)
            for pair in (item.rates or task.rates).pairs()
        ]
        for (model, path, rate, value), frames, dtype in itertools.product(systems, task.output_frames, task.dtype):
            ofa = {"model": model, "upstream": OFA, "checkpoint": path, "rate": rate, "value": value, "dtype": dtype}
            # only native frames are repeated; there are as many upsampled frames as at 20 ms
            repeats = task.repeat if frames == NATIVE else (1,)
            adaptive = {"lambd_max": task.lambd_max} if rate == ADAPTIVE else {}
            starts = task.lambd_starts if rate == ADAPTIVE else (None,)
            for repeat, start in itertools.product(repeats, starts):
                yield Point(**common, **ofa, **adaptive, lambd_start=start, output_frames=frames, asked_repeat=repeat)
        for baseline in grid.baselines:
            yield Point(**common, model=baseline.name, upstream=baseline.upstream, checkpoint=baseline.checkpoint)


def prepare(grid: Grid) -> dict[str, Job]:
    """The points of a grid, ready to be run, by name."""
    try:  # only the machine that runs a point can tell whether it has the device
        torch.device("cpu" if grid.device == AUTO else grid.device)
    except RuntimeError:
        raise UsageError(f"device: auto, cpu, cuda or another of torch's is expected, found {grid.device!r}") from None
    for name in grid.tasks:
        try:
            check_downstream(S3PRL_DOWNSTREAM.get(name, name))
        except UsageError:
            raise UsageError(f"tasks.{name}: neither {', '.join(KNOWN)} nor a task of S3PRL") from None
    check_baselines(grid)
    checkpoint_digests = check_checkpoints(grid)
    configs = {name: base_config(grid, name, task) for name, task in grid.tasks.items()}
    config_digests = {name: config_digest(config, grid.data.values()) for name, config in configs.items()}
    data_digests = {name: data_digest(config) for name, config in configs.items()}
    jobs = {}
    for point in points_of(grid):
        task, known, config = grid.tasks[point.task], KNOWN.get(point.task), copy.deepcopy(configs[point.task])
        if point.learning_rate is not None:
            put(config, "optimizer.lr", point.learning_rate, f"tasks.{point.task}.learning_rates")
        checkpoint = point.checkpoint and absolute(point.checkpoint)
        job = Job(
            **{**vars(point), "checkpoint": checkpoint},
            checkpoint_sha256=checkpoint_digests.get(checkpoint),
            config=config,
            config_sha256=config_digests[point.task],
            metric=task.metric,
            higher_is_better=task.higher_is_better,
            unit=100 if known and known.is_share and task.metric == known.metrics[0] else 1,
            dev_split=task.dev,
            test_split=task.test,
            device=grid.device,
            data_sha256=data_digests[point.task],
        )
        jobs[job.name] = job
    return jobs


def config_digest(config: dict[str, Any], roots: Iterable[str]) -> str:
    """SHA-256 of a task's config without its learning rate. Only the last component of a corpus's path counts, as
    another machine may keep it elsewhere."""
    text = json.dumps({**config, "optimizer": {**(config.get("optimizer") or {}), "lr": None}}, sort_keys=True)
    paths = {os.path.realpath(pathlib.Path(root).expanduser()) for root in roots}
    for path in sorted({*paths, str(folder("downstream_configs"))}, key=len, reverse=True):
        text = text.replace(json.dumps(path)[1:-1], os.path.basename(path))
    return hashlib.sha256(text.encode()).hexdigest()


def data_digest(config: dict[str, Any]) -> str:
    """SHA-256 of the files that a config names: lists, lexicons and vocabularies, but no audio."""
    values = [item for _, value in entries(config) for item in (value if isinstance(value, list) else [value])]
    named = [pathlib.Path(item) for item in values if isinstance(item, str) and os.path.isabs(item)]
    files = [file for path in named for file in (sorted(path.glob("*.csv")) if path.is_dir() else [path])]
    return hashlib.sha256("".join(digest(file) for file in files if file.is_file()).encode()).hexdigest()


def check_baselines(grid: Grid) -> None:
    for baseline in grid.baselines:
        if baseline.upstream.startswith("_") or not hasattr(importlib.import_module("s3prl.hub"), baseline.upstream):
            known = "`s3prl-ofa run_downstream --help` lists them"
            raise UsageError(f"baselines: S3PRL has no upstream {baseline.upstream}; {known}")
        if baseline.upstream.startswith(OFA):
            raise UsageError(f"baselines: {baseline.upstream} is not a baseline; list its checkpoint under checkpoints")
        if baseline.checkpoint is None and baseline.upstream.endswith(WITH_CHECKPOINT):
            want = f"{{upstream: {baseline.upstream}, checkpoint: PATH}}"
            raise UsageError(f"baselines: {baseline.upstream} needs a checkpoint, as {want}")
        if baseline.checkpoint and not exists(baseline.checkpoint):
            raise UsageError(f"baselines: the checkpoint of {baseline.name}, {baseline.checkpoint}, does not exist")


def check_checkpoints(grid: Grid) -> dict[str, str | None]:
    """The SHA-256 of each checkpoint by its absolute path; None for one that is not on this machine."""
    points, named = points_of(grid), {name: item.path for name, item in grid.checkpoints.items()}
    for name, path in named.items():
        if not exists(path):
            raise UsageError(f"checkpoints.{name}: {path} does not exist")
        if is_remote(path):
            continue  # downloaded when the first point runs
        of_model = [point for point in points if point.model == name]
        try:
            config = load(path).config
            for point in of_model:
                check_options(path, config, point.checked_options())
        except (CheckpointError, UsageError) as error:
            raise UsageError(f"checkpoints.{name}: {error}") from None
        for point in of_model:
            check_layers(point, grid.tasks[point.task].search_layers, config.layers)
    paths = [*named.values(), *(item.checkpoint for item in grid.baselines if item.checkpoint)]
    return {path: None if is_remote(path) else digest(pathlib.Path(path)) for path in map(absolute, paths)}


def check_layers(point: Point, asked: Sequence[int], layers: int) -> None:
    last, found = point.checked_options().layers or layers, max(asked, default=0)
    if found > last:
        where = f"tasks.{point.task}.search_layers"
        raise UsageError(f"{where} must be at most {last}, the last hidden state of {point.label}, found {found}")


def exists(path: str) -> bool:
    return is_remote(path) or checkpoint_path(path).exists()


def absolute(path: str) -> str:
    return path if is_remote(path) else os.path.realpath(checkpoint_path(path))


def base_config(grid: Grid, name: str, task: Task) -> dict[str, Any]:
    """S3PRL's config for a task with data, steps and overrides filled in; the learning rate is left to each point."""
    where = f"tasks.{name}"
    try:
        config = resolve_config(name, task.config, task.mini, dict(grid.data))
    except UsageError as error:
        # the options of run_downstream are keys of data here
        message = ROOT_OPTION.sub(lambda found: found[1] or f"data.{found[2].replace('-', '_')}", str(error))
        raise UsageError(f"{where}: {message}") from None
    for key, value in task.overrides.items():
        if key == "optimizer.lr" and task.learning_rates != (None,):
            raise UsageError(f"{where}.overrides: optimizer.lr is varied by learning_rates already")
        if key == "runner.total_steps":
            raise UsageError(f"{where}.overrides: use {where}.steps for runner.total_steps")
        put(config, key, value, f"{where}.overrides")
    if is_trained(name):
        settle_steps(where, mapping_at(config, "runner"), task.steps)
    else:
        config["runner"] = {SEARCH_LAYERS: list(task.search_layers)} if task.search_layers else {}
    check_scores(name, task, mapping_at(config, "downstream_expert"))
    check_config(config, f"{where}: ")
    for key in ("dev", "test"):
        if not is_split(getattr(task, key) or key):
            raise UsageError(f"{where}.{key}: the name of a split is expected, found {getattr(task, key)!r}")
    return config


def settle_steps(where: str, runner: dict[str, Any], steps: int | None) -> None:
    if runner and steps is not None:
        runner["total_steps"] = steps
    if "total_steps" not in runner:
        raise UsageError(f"{where}.config: runner.total_steps is expected in it")
    for key in ("total_steps", *EVERY):
        number = whole(runner.setdefault(key, runner["total_steps"]))
        if number is None or number < 1:
            raise UsageError(f"{where}: runner.{key} must be a whole number of at least 1, found {runner[key]!r}")
        # What is saved and evaluated last must be the last step.
        runner[key] = number if key == "total_steps" else divisor(runner["total_steps"], number)


def check_scores(name: str, task: Task, expert: dict[str, Any]) -> None:
    """Checks the splits and the metric of a known task, which S3PRL would miss only after training."""
    if name not in KNOWN:
        return
    splits = EVALUATION_SPLITS.get(name, SPLITS)
    if name == "asr":
        splits = [key for key, value in mapping_at(expert, "datarc").items() if isinstance(value, list)]
    metrics = expert.get("metric") or KNOWN[name].metrics
    for key, choices in {"dev": splits, "test": splits, "metric": [*metrics, "loss"]}.items():
        found = getattr(task, key)
        if found is not None and found not in choices:
            raise UsageError(f"tasks.{name}.{key}: one of {', '.join(choices)} is expected, found {found}")


def divisor(steps: int, wanted: int) -> int:
    """The largest divisor of ``steps`` up to ``wanted``, or the next one above if that would be less than a quarter."""
    divisors = [every for every in range(1, steps + 1) if steps % every == 0]
    largest = max(every for every in divisors if every <= wanted)
    return largest if 4 * largest >= min(wanted, steps) else min(every for every in divisors if every > wanted)


def put(config: dict[str, Any], key: str, value: Any, where: str) -> None:
    *parents, last = key.split(".")
    changed = mapping_at(config, *parents)
    if not changed:
        raise UsageError(f"{where}: the config has no {'.'.join(parents)}, which {key} would be part of")
    if last not in changed:
        logger.warning("%s: the config has no %s yet; adding it", where, key)
    changed[last] = value
