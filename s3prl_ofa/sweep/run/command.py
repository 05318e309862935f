"""``s3prl-ofa sweep GRID.yaml``: runs what of a grid is not done yet."""

import argparse
import contextlib
import dataclasses
import logging
import math
import pathlib
import sys

from tqdm import tqdm

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.io.locks import InUse, is_locked, locked
from s3prl_ofa.sweep.grid.parsing import read_grid
from s3prl_ofa.sweep.grid.schema import Grid
from s3prl_ofa.sweep.grid.validation import prepare
from s3prl_ofa.sweep.job import FAILURE, LOCK, LOG, POINTS, RESULT, read_json, tail
from s3prl_ofa.sweep.results import FAILED, FILE, FINISHED, Results
from s3prl_ofa.sweep.run.consistency import Prepared, lay_out
from s3prl_ofa.sweep.run.launcher import Launcher
from s3prl_ofa.sweep.run.process import KILLED, recover

logger = logging.getLogger(__name__)

SWEEP_LOCK = ".sweep.lock"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grid", type=pathlib.Path, metavar="GRID.yaml", help="what to vary; see the README")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="DIR",
        help="results; else out of the grid, else sweeps/NAME of its file",
    )
    parser.add_argument(
        "--cache-gb",
        type=float,
        metavar="GB",
        help="keep features of frozen upstreams in DIR/features, up to so many 10^9 bytes; else cache_gb of the grid",
    )
    parser.add_argument("--retry", action="store_true", help="run again what has failed")
    parser.add_argument(
        "--dry-run", action="store_true", help="list the points, and estimate the time from a few steps of each task"
    )


def run(args: argparse.Namespace) -> int:
    grid = read_grid(args.grid)
    if args.cache_gb is not None:
        if not 0 < args.cache_gb < math.inf:
            raise UsageError(f"--cache-gb: a number above 0 is expected, found {args.cache_gb:g}")
        grid = dataclasses.replace(grid, cache_gb=args.cache_gb)
    out = args.out or pathlib.Path(grid.out or f"sweeps/{args.grid.stem}")
    try:
        prepared = prepare(grid)
        launcher = Launcher(grid.executor, out.absolute(), grid.cache_gb)
    except UsageError as error:
        raise UsageError(f"{args.grid}: {error}") from None
    if args.dry_run:
        from s3prl_ofa.sweep.run.estimate import dry_run

        return dry_run(prepared, out, launcher)
    return sweep(grid, prepared, out.absolute(), launcher, args.retry)


def sweep(grid: Grid, prepared: Prepared, out: pathlib.Path, launcher: Launcher, retry: bool) -> int:
    """Runs the points that are not done; the exit status is 1 when some have failed or were killed."""
    check_writable(out)
    try:
        with locked(out / SWEEP_LOCK, wait=False):
            recorded = lay_out(grid, prepared, out)
            folders = {name: out / POINTS / name for name in prepared}
            done, failed = sort_out({name: folder for name, folder in folders.items() if name not in recorded}, retry)
            done |= recorded
            left = {name: folder for name, folder in folders.items() if name not in done | failed}
            killed = run_points(launcher, left, len(done))
            return conclude(out, folders, killed)
    except InUse:
        raise UsageError(f"{out} is in use by another sweep; wait for its end, or give another --out") from None


def check_writable(out: pathlib.Path) -> None:
    """Makes the folder. Raises UsageError where it cannot be written."""
    try:
        with atomic_path(out / ".probe"):
            pass
        (out / ".probe").unlink()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written ({error.strerror}); expected a folder to write to") from None


def sort_out(folders: dict[str, pathlib.Path], retry: bool) -> tuple[set[str], set[str]]:
    """The points that are finished, whose rows are brought into the results where they are missing, and those that have
    failed and are not to be tried again."""
    done, failed = set(), set()
    for name, folder in folders.items():
        if (folder / RESULT).exists():
            recover(folder)
            done.add(name)
        elif (folder / FAILURE).exists():
            if retry:
                (folder / FAILURE).unlink()
            else:
                failed.add(name)
                Results(folder.parents[1]).record(read_json(folder / FAILURE))
        elif is_locked(folder / LOCK):
            logger.warning("%s is still running, from an earlier sweep; its end is waited for", name)
    return done, failed


def run_points(launcher: Launcher, left: dict[str, pathlib.Path], done: int) -> dict[str, str]:
    """Runs the points and returns those that gave no result, with a word about each."""
    killed = {}
    with (
        tqdm(total=done + len(left), initial=done, unit="point", disable=None) as bar,
        contextlib.closing(launcher.run(left, started=bar.set_description)) as ends,
    ):
        for ended in ends:
            bar.update()
            if ended.state == KILLED:
                killed[ended.name] = "killed"
            elif ended.error:
                killed[ended.name] = ended.error
            bar.write(f"{ended.name}: {ended.state}", file=sys.stderr)
    return killed


def conclude(out: pathlib.Path, folders: dict[str, pathlib.Path], killed: dict[str, str]) -> int:
    """Says how it ended."""
    rows = {row["point"]: row for row in Results(out).rows() if row["point"] in folders}
    finished = [name for name, row in rows.items() if row["state"] == FINISHED]
    failed = {name: row for name, row in rows.items() if row["state"] == FAILED}
    print(f"{len(finished)} of {len(folders)} points are finished; results: {out / FILE}")
    for name, row in failed.items():
        print(f"\n{name} failed: {row['error']}")
        print("".join(f"    {line}\n" for line in row["log"]), end="")
    if failed:
        print("\n--retry runs what has failed again.")
    for name, word in killed.items():
        lines = tail(out / POINTS / name / LOG)
        print(f"\n{name}: {word}; the same command goes on with it" + "".join(f"\n    {line}" for line in lines))
    if finished:
        print(f"\ns3prl-ofa report {out} makes the table and the plots.")
    return 1 if failed or killed else 0
