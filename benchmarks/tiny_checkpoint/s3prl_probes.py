"""S3PRL's own probes of a trained checkpoint, of the same network untrained and of MFCCs, with equal budgets.

    python benchmarks/tiny_checkpoint/s3prl_probes.py OUT --trained CKPT --untrained CKPT --librispeech ROOT \\
        --voxceleb1 ROOT --prepared DIR

Speaker identification and phone recognition with the mini configs of this repository, at lambd 0, one run after the
other, each scored on the test split. A row goes to OUT/s3prl_probes.csv as soon as it is there; what the
file has is not run again, and a run that was cut off goes on.
"""

import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys
import time

import s3prl_ofa

COLUMNS = ("features", "task", "score", "value", "split", "training_minutes", "threads", "device", "version")
TASKS = {"sid": "acc", "pr": "per"}


def command(*arguments: str | pathlib.Path) -> list[str]:
    return [sys.executable, "-m", "s3prl_ofa", "run_downstream", *map(str, arguments)]


def upstream(args: argparse.Namespace, features: str) -> list[str | pathlib.Path]:
    if features == "mfcc":
        return ["-u", "mfcc"]
    checkpoint = {"trained": args.trained, "untrained": args.untrained}[features]
    return ["-u", "ofa_wav2vec2", "-k", checkpoint, "--lambd", "0"]


def run(args: argparse.Namespace, features: str, task: str) -> dict[str, object]:
    """Trains and scores one pair; returns its row."""
    folder = args.out / f"{task}_{features}"
    corpus = ["--voxceleb1", args.voxceleb1] if task == "sid" else ["--librispeech", args.librispeech]
    training = ["-a", "-m", "train", *upstream(args, features), "-d", task, "-p", folder, "--mini", *corpus]
    training += ["--prepared", args.prepared, *(["-o", args.override] if args.override else [])]
    begin = time.perf_counter()
    with open(args.out / f"{task}_{features}.log", "a") as log:
        subprocess.run(command(*training), check=True, stdout=log, stderr=log)
        minutes = (time.perf_counter() - begin) / 60
        subprocess.run(command("-m", "evaluate", "-e", folder / "dev-best.ckpt"), check=True, stdout=log, stderr=log)
    measured = json.loads((folder / "measured_test.json").read_text())
    return {
        "features": features,
        "task": task,
        "score": TASKS[task],
        "value": round(measured["scores"][TASKS[task]], 4),
        "split": "test",
        "training_minutes": round(minutes, 1),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "device": measured["device"],
        "version": s3prl_ofa.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument(
        "--features", nargs="+", choices=("trained", "untrained", "mfcc"), default=["mfcc", "untrained", "trained"]
    )
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS))
    for name in ("trained", "untrained", "librispeech", "voxceleb1", "prepared"):
        parser.add_argument(f"--{name}", type=pathlib.Path)
    parser.add_argument("--override", help="S3PRL's -o, for all runs alike")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "s3prl_probes.csv"
    done = set()
    if table.exists():
        with table.open(newline="") as file:
            done = {(row["features"], row["task"]) for row in csv.DictReader(file)}
    for task in args.tasks:
        for features in args.features:
            if (features, task) in done:
                continue
            row = run(args, features, task)
            with table.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if not file.tell():
                    writer.writeheader()
                writer.writerow(row)
            print(f"{features} {task}: {row['score']} {row['value']}", flush=True)


if __name__ == "__main__":
    main()
