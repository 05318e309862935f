"""Measures how much 8-bit hidden states cost phoneme recognition.

    python -m benchmarks.int8 CHECKPOINT --librispeech ROOT --prepared DIR --folder EXPERIMENTS

pr is trained with its small settings on float32 hidden states, and again on int8 ones. The first model is evaluated on
both, so that only the hidden states differ, the second on int8. Each evaluation becomes a row of the csv, with the PER
of the test split as its note. If it is stopped, the same command resumes the trainings in its folder.
"""

import argparse
import json
import pathlib

import torch

from benchmarks.rows import RESULTS, Row, environment, write
from s3prl_ofa import cli
from s3prl_ofa.superb.downstream.metrics import measured_path

PACKAGES = ("s3prl-ofa", "torch", "s3prl")
FLOAT32, INT8 = "float32", "int8"
EVALUATED = {FLOAT32: (FLOAT32, INT8), INT8: (INT8,)}  # by what the task was trained on
TRAINED = "trained in {}"


def run(*options: object) -> None:
    """A run_downstream command. Raises SystemExit with its status if it fails."""
    if status := cli.main(["run_downstream", *map(str, options)]):
        raise SystemExit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lambd", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache-gb", type=float, default=20.0)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "int8.csv")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="for experiments; 20 GB with the cache")
    for name in ("librispeech", "prepared"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    upstream = ["-u", "ofa_wav2vec2", "-k", args.checkpoint, "--lambd", args.lambd, "--device", "cpu"]
    data = ["-d", "pr", "--mini", "--librispeech", args.librispeech, "--prepared", args.prepared, "--seed", args.seed]
    steps = ",,".join(f"config.runner.{name}={args.steps}" for name in ("total_steps", "eval_step", "save_step"))
    shared = environment(torch.device("cpu"), PACKAGES)
    cache = ["--cache-gb", args.cache_gb, "--feature-cache", args.folder / "cache"]
    for trained, evaluated in EVALUATED.items():
        experiment = args.folder / trained
        run("-a", "-m", "train", *upstream, *data, "--dtype", trained, "-p", experiment, *cache, "-o", steps)
        for dtype in evaluated:
            run("-m", "evaluate", "-e", experiment, "--lambd", args.lambd, "--dtype", dtype, "--device", "cpu", *cache)
            measured = json.loads(measured_path(experiment, "test").read_text())
            row = Row(
                benchmark=f"pr, {args.steps} updates, lambd {args.lambd:g}",
                contender=TRAINED.format(trained),
                audio_s=round(measured["audio_seconds"], 2),
                median_s=0.0,  # time is measured by benchmarks.extract
                rounds=1,
                dtype=dtype,
                frames=measured["frames"],
                note=f"{measured['scores']['per']:.6f}",
                **shared,
            )
            write([row], args.out)


if __name__ == "__main__":
    main()
