"""Compares a training step of `run_downstream` with a warm feature cache with the downstream model alone.

    python -m benchmarks.downstream CHECKPOINT --librispeech ROOT --prepared DIR --task pr

The command trains twice, the first time to fill the cache. The inputs of the downstream model in the second run are
kept, and the same steps (forward, backward, clipping, optimizer) are then repeated with nothing around them.
"""

import argparse
import functools
import pathlib
import statistics
import tempfile
import time
from typing import Any

import torch

from benchmarks.rows import RESULTS, Row, environment, rounded, write
from s3prl_ofa import cli
from s3prl_ofa.checkpoint.safe_loading import patched_attributes
from s3prl_ofa.superb.downstream.runner import DownstreamRunner

PACKAGES = ("s3prl-ofa", "torch", "s3prl")
ROOTS = ("librispeech", "voxceleb1", "prepared")


def train_and_replay(runner: DownstreamRunner, found: dict[str, list[float]]) -> None:
    """Trains; ``found`` gets the seconds of each step, and of each step of the downstream model alone."""
    model, calls = runner.downstream.model, []

    def keep(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training:
            calls.append((args, kwargs))

    hook = model.register_forward_pre_hook(keep, with_kwargs=True)
    super(DownstreamRunner, runner).train()
    hook.remove()
    found["run_downstream, warm cache"] = list(runner.meter.training)  # which the steps below lengthen
    alone = found["downstream model alone"] = []
    optimizer = runner._get_optimizer([model])
    model.train()
    for (split, features, *others), kwargs in calls:
        features = [feature.detach() for feature in features]
        begin = time.perf_counter()
        model(split, features, *others, **kwargs).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), runner.config["runner"]["gradient_clipping"])
        optimizer.step()
        optimizer.zero_grad()
        alone.append(time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--task", choices=("pr", "sid"), default="pr")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lambd", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "downstream.csv")
    for name in ROOTS:
        parser.add_argument(f"--{name}", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    roots = [part for name in ROOTS if getattr(args, name) for part in (f"--{name}", str(getattr(args, name)))]
    command = ["-m", "train", "-u", "ofa_wav2vec2", "-k", args.checkpoint, "-d", args.task, "--mini", *roots]
    command += ["--lambd", str(args.lambd), "--device", "cpu", "--cache-gb", "100"]
    steps = f"config.runner.total_steps={args.steps},,config.runner.eval_step={10**9},,config.runner.save_step={10**9}"
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for run in ("cold", "warm"):
            train = functools.partialmethod(train_and_replay, found) if run == "warm" else DownstreamRunner.train
            with patched_attributes(DownstreamRunner, train=train):
                cli.main(
                    [
                        "run_downstream",
                        *command,
                        "--feature-cache",
                        f"{folder}/cache",
                        "-p",
                        f"{folder}/{run}",
                        "-o",
                        steps,
                    ]
                )
    shared = {"benchmark": f"downstream {args.task}", "dtype": "float32", **environment(torch.device("cpu"), PACKAGES)}
    rows = [
        Row(
            contender=name,
            audio_s=0.0,
            median_s=rounded(statistics.median(seconds)),
            rounds=len(seconds),
            note=f"lambd {args.lambd:g}, {pathlib.Path(args.checkpoint).name}",
            **shared,
        )
        for name, seconds in found.items()
    ]
    write(rows, args.out)


if __name__ == "__main__":
    main()
