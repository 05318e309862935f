"""Measures what the feature cache saves: a sweep of three learning rates with and without it.

    python -m benchmarks.feature_cache CHECKPOINT --librispeech ROOT --voxceleb1 ROOT --prepared DIR

Each is one `s3prl-ofa sweep` of three points, one at a time, and becomes a row of the csv, with its wall and CPU
seconds and, as its note, the three scores on the test split. Hidden states from the cache were computed in other
batches and differ by rounding, so the scores agree as far as training is stable: not to all digits if the learning rate
is too high.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import torch
import yaml

from benchmarks.rows import RESULTS, Row, environment, rounded, write

PACKAGES = ("s3prl-ofa", "torch", "s3prl")
WHOLE_UTTERANCES = {"downstream_expert.datarc.max_timestep": None, "downstream_expert.datarc.train_batch_size": 8}


def cpu_seconds() -> float:
    """CPU seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def sweep(grid: dict, folder: pathlib.Path) -> tuple[float, float, list[float]]:
    """Wall seconds, CPU seconds and the scores of one sweep."""
    path, out = folder / "grid.yaml", folder / "sweep"
    path.write_text(yaml.safe_dump(grid))
    begin, cpu = time.perf_counter(), cpu_seconds()
    command = [sys.executable, "-m", "s3prl_ofa", "sweep", str(path), "--out", str(out)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(grid["executor"]["cpus"])})
    took = time.perf_counter() - begin, cpu_seconds() - cpu
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return *took, [row["score"] for row in sorted(rows, key=lambda row: row["learning_rate"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--task", choices=("pr", "sid"), default="pr")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--learning-rates", type=float, nargs=3, default=[3e-3, 1e-2, 3e-2])
    parser.add_argument("--lambd", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache-gb", type=float, default=40.0)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "feature_cache.csv")
    for name in ("librispeech", "voxceleb1", "prepared"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    args = parser.parse_args()
    grid = {
        "checkpoints": {"model": str(args.checkpoint)},
        "data": {name: str(getattr(args, name)) for name in ("librispeech", "voxceleb1", "prepared")},
        "mini": True,
        "device": args.device,
        "tasks": {args.task: {"steps": args.steps, "overrides": WHOLE_UTTERANCES if args.task == "sid" else {}}},
        "rates": {"lambd": args.lambd},
        "learning_rates": args.learning_rates,
        "executor": {"cpus": args.threads},
    }
    torch.set_num_threads(args.threads)
    shared = environment(torch.device(args.device), PACKAGES)
    for name, cache in (("without cache", {}), ("with cache", {"cache_gb": args.cache_gb})):
        with tempfile.TemporaryDirectory() as folder:
            seconds, cpu, scores = sweep({**grid, **cache}, pathlib.Path(folder))
        row = Row(
            benchmark=f"{args.task}, 3 learning rates, {args.steps} updates",
            contender=name,
            audio_s=0.0,
            median_s=rounded(seconds),  # of one run
            rounds=1,
            dtype="float32",
            cpu_s=rounded(cpu),
            note=" ".join(f"{score:.6f}" for score in scores),
            **shared,
        )
        write([row], args.out)


if __name__ == "__main__":
    main()
