"""The demo: speaker identification on the bundled audio, through S3PRL, at several rates.

For each rate one ``s3prl-ofa run_downstream`` trains and another one evaluates on the test split, as a user would type
them. The commands and their output are kept in the output folder.
"""

import argparse
import csv
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import tqdm

from s3prl_ofa.arguments import Parser, add_device_argument
from s3prl_ofa.cli import guarded
from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.audio import find_audio, load_audio
from s3prl_ofa.io.files import atomic_path

FOLDER = pathlib.Path(__file__).parent
AUDIO = FOLDER / "audio"
LAMBDS = (0.0, 0.5, 1.0)
STEPS = 80
LEARNING_RATE = 0.02  # high, because there are few steps
COLUMNS = {
    "lambd": "lambd",
    "frame_period_ms": "frame period (ms)",
    "accuracy": "accuracy",
    "chance": "chance",
    "mmacs_per_second": "upstream MMAC per second of audio",
    "seconds": "wall time (s)",
}


class FailedRun(RuntimeError):
    """A command of the demo ended with an error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo and prints its table; returns the exit status, as the command line does."""
    parser = Parser(prog="python -m s3prl_ofa.demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--ckpt", default="tiny", help="a checkpoint of any known format, or tiny, the bundled one (the default)"
    )
    parser.add_argument(
        "--lambds", type=float, nargs="+", default=LAMBDS, metavar="L", help="the rates (default: 0 0.5 1)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps per rate (default: {STEPS})")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("demo"), help="where a new folder is created (default: demo)"
    )
    add_device_argument(parser)
    args = parser.parse_args(argv)
    return guarded(parser.prog, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    rows = describe(args.ckpt, args.lambds, args.device)
    chance = 1 / len({path.parts[-3] for path in find_audio(AUDIO / "test")})
    out = args.out / time.strftime("%Y-%m-%d-%H%M%S")
    with tqdm.tqdm(total=2 * len(rows), unit="run", disable=None) as bar:
        for row in rows:
            row |= {"chance": chance, **identify_speakers(args, row["lambd"], out, bar)}
    table = as_text(rows)
    with atomic_path(out / "results.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"\nSpeaker identification, bundled synthetic speech, {args.ckpt}\n\n{table}\n\nlogs and results: {out}")
    return 0


def describe(ckpt: str, lambds: Sequence[float], device: str) -> list[dict[str, Any]]:
    """One row per rate with the upstream's cost on the test utterances. Raises UsageError for an impossible rate."""
    from s3prl_ofa.checkpoint import load
    from s3prl_ofa.info import measure
    from s3prl_ofa.model.rate import check_lambd

    try:
        check_lambd(lambds, len(lambds))
    except ValueError as error:
        raise UsageError(str(error)) from None
    model = load(ckpt, device)
    if model.compressor is None and any(lambds):
        raise UsageError(f"{ckpt} has no compressor: only lambd 0 is possible")
    waves = [load_audio(path) for path in find_audio(AUDIO / "test")]
    table = measure(model, waves, lambds)["table"]
    return [{"lambd": row["lambd"], "mmacs_per_second": row["macs_per_second"] / 1e6} for row in table]


def identify_speakers(args: argparse.Namespace, lambd: float, out: pathlib.Path, bar: tqdm.tqdm) -> dict[str, float]:
    """Trains and evaluates at one rate. Returns the test accuracy, the measured frame period and the seconds taken."""
    experiment = out / f"lambd-{lambd:g}"
    # Checkpoints are saved every so many steps, of which one has to be the last step.
    every = max(1, args.steps // 3)
    steps = every * max(1, args.steps // every)
    override = ",,".join(
        f"config.{key}={value}"
        for key, value in {
            "runner.total_steps": steps,
            "runner.eval_step": every,
            "runner.save_step": every,
            "runner.log_step": every,
            "optimizer.lr": LEARNING_RATE,
        }.items()
    )
    start = time.monotonic()
    bar.set_description(f"lambd {lambd:g}: training")
    device = ["--device", args.device]
    train = ["-m", "train", "-u", "ofa_wav2vec2", "-k", args.ckpt, "--lambd", f"{lambd:g}", "-d", "sid", "--mini"]
    train += ["--voxceleb1", str(AUDIO), "-p", str(experiment), "-o", override, *device]
    run_downstream(train, out / f"{experiment.name}.train.log")
    bar.update()
    bar.set_description(f"lambd {lambd:g}: evaluation")
    log = out / f"{experiment.name}.evaluate.log"
    best = experiment / "dev-best.ckpt"  # missing if nothing was ever correct on dev
    printed = run_downstream(["-m", "evaluate", "-e", str(best if best.exists() else experiment), *device], log)
    bar.update()
    found = {
        "accuracy": re.search(r"^test acc: (\S+)", printed, re.M),
        "frame_period_ms": re.search(r"measured frame period: (\S+) ms", printed),
    }
    if None in found.values():
        raise FailedRun(f"no result in {log}")
    return {"seconds": time.monotonic() - start, **{key: float(match[1]) for key, match in found.items()}}


def run_downstream(arguments: list[str], log: pathlib.Path) -> str:
    """Runs the command and returns its output, also kept in ``log``. Raises FailedRun with its last line."""
    command = [sys.executable, "-m", "s3prl_ofa", "run_downstream", *arguments]
    log.parent.mkdir(parents=True, exist_ok=True)
    # One thread: for a model as small as the bundled one, more would mostly wait for each other.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with log.open("w", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    printed = log.read_text("utf-8", errors="replace").replace("\r", "\n")
    if status:
        last = [line for line in printed.splitlines() if line.strip()][-1]
        raise FailedRun(f"run_downstream ended with status {status}: {last} (full log: {log})")
    return printed


def as_text(rows: list[dict[str, Any]]) -> str:
    digits = {"lambd": "g", "accuracy": ".3f", "chance": ".3f"}
    lines = ["  ".join(COLUMNS.values())]
    for row in rows:
        cells = (f"{row[key]:{len(title)}{digits.get(key, '.1f')}}" for key, title in COLUMNS.items())
        lines.append("  ".join(cells))
    return "\n".join(lines)
