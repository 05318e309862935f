"""The demo: speaker identification on the bundled audio, through S3PRL, at several rates.

It is an ordinary sweep: a grid, ``s3prl-ofa sweep``, ``s3prl-ofa report``; then a table and a picture.
"""

import argparse
import os
import pathlib
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence

import yaml

from s3prl_ofa.arguments.parser import Parser, add_device_argument
from s3prl_ofa.checkpoint import checkpoint_path
from s3prl_ofa.cli import guarded
from s3prl_ofa.cli import main as s3prl_ofa
from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.audio import find_audio
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.resources import AUDIO
from s3prl_ofa.sweep.job import FINISHED, Row
from s3prl_ofa.sweep.results import FEATURES, collect

LAMBDS = (0.0, 0.5, 1.0)
STEPS = 80
LEARNING_RATE = 0.02  # high, because there are few steps
CACHE_GB = 1.0
WHOLE_UTTERANCES = {"downstream_expert.datarc.max_timestep": None}  # so that their features can be cached
PICTURE = "demo.png"
COLUMNS = {
    "lambd": lambda row: f"{row['value']:g}",
    "frame period (ms)": lambda row: f"{row['frame_period_ms']:.1f}",
    "accuracy": lambda row: f"{row['score']:.3f}",
    "MMAC per second of audio": lambda row: f"{row['macs_per_second'] / 1e6:.1f}",
    "time (ms per second of audio)": lambda row: f"{milliseconds(row):.1f}",
    "memory (MiB)": lambda row: f"{row['peak_memory_mb']:.0f}",
}
NEXT = """
Next, with your checkpoint and your data (docs/how-to/sweeps.md says what else can be varied):
  cp {grid} grid.yaml     # then edit checkpoints, data, tasks and rates
  {command} sweep grid.yaml
  {command} report sweeps/grid
To see and hear what a rate does:
  {command} demo"""


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
        "--out", type=pathlib.Path, default=pathlib.Path("demo"), help="where to create a new folder (default: demo)"
    )
    add_device_argument(parser)
    parser.examples = ("python -m s3prl_ofa.demo --ckpt checkpoint.pt --lambds 0 0.3 0.6",)
    return guarded(parser.prog, lambda: run(parser.parse_args(argv)))


def run(args: argparse.Namespace) -> int:
    out = args.out / time.strftime("%Y-%m-%d-%H%M%S")
    grid = {
        "checkpoints": {"model": str(checkpoint_path(args.ckpt).absolute())},
        "data": {"voxceleb1": str(AUDIO)},
        "tasks": {"sid": {"steps": args.steps, "learning_rates": [LEARNING_RATE], "overrides": WHOLE_UTTERANCES}},
        "rates": {"lambd": list(args.lambds)},
        "cache_gb": CACHE_GB,
        "mini": True,
        "device": args.device,
        "executor": {"parallel": 2, "cpus": 1},
    }
    with tempfile.TemporaryDirectory() as folder:  # the sweep keeps a copy, once it has accepted the grid
        path = pathlib.Path(folder, "grid.yaml")
        path.write_text(yaml.safe_dump(grid, sort_keys=False), "utf-8")
        status = s3prl_ofa(["sweep", str(path), "--out", str(out)])
    if status:
        return status
    shutil.rmtree(out / FEATURES, ignore_errors=True)
    if status := s3prl_ofa(["report", str(out)]):
        return status
    rows = sorted((row for row in collect(out).values() if row["state"] == FINISHED), key=lambda row: row["value"])
    draw(rows, out / PICTURE)
    print(f"\nSpeaker identification, bundled synthetic speech, {args.ckpt}; chance is {chance():.3f}\n")
    print(f"{as_text(rows)}\n\npicture: {out / PICTURE}")
    here = os.path.relpath(pathlib.Path(sys.executable).with_name("s3prl-ofa"))
    command = "s3prl-ofa" if shutil.which("s3prl-ofa") else here
    print(NEXT.format(grid=shlex.quote(str(out / "grid.yaml")), command=command))
    return 0


def milliseconds(row: Row) -> float:
    """Milliseconds of upstream and downstream model per second of audio."""
    return 1000 * (row["upstream_seconds_per_second"] + row["downstream_seconds_per_second"])


def chance() -> float:
    """The accuracy of guessing one of the bundled speakers."""
    return 1 / len({path.parts[-3] for path in find_audio(AUDIO / "test")})


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Draws score, time and memory against frame period."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(f"the picture is drawn with matplotlib ({error}): pip install 's3prl-ofa[sweep]'") from None

    panels = {
        "accuracy": [row["score"] for row in rows],
        "time (ms per second of audio)": [milliseconds(row) for row in rows],
        "peak memory (MiB)": [row["peak_memory_mb"] for row in rows],
    }
    periods = [row["frame_period_ms"] for row in rows]
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.plot(periods, values, marker="o", color="#0072b2")
        axes.set(title=title, xlabel="frame period (ms)", ylim=(0, 1.15 * max(values)))
        axes.spines[["top", "right"]].set_visible(False)
        if title == "accuracy":
            axes.axhline(chance(), color="#999999", linestyle=":")
            axes.annotate("chance", (periods[-1], chance()), ha="right", va="bottom", color="#666666")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def as_text(rows: list[Row]) -> str:
    lines = ["  ".join(COLUMNS)]
    lines += ["  ".join(f"{cell(row):>{len(title)}}" for title, cell in COLUMNS.items()) for row in rows]
    return "\n".join(lines)
