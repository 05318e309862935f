"""``s3prl-ofa sweep GRID.yaml``: runs the points of a grid that are not done yet."""

import argparse
import contextlib
import datetime
import logging
import math
import pathlib
import statistics
import sys
from collections import Counter

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.io.locks import is_locked
from s3prl_ofa.io.output_folder import locked_folder
from s3prl_ofa.output import tell
from s3prl_ofa.progress import Progress
from s3prl_ofa.sweep.grid.jobs import prepare
from s3prl_ofa.sweep.grid.schema import read_grid
from s3prl_ofa.sweep.job import FAILED, FINISHED, Job, Row
from s3prl_ofa.sweep.results import (
    POINTS,
    RESULTS,
    PointFolder,
    collect,
    numbered_lines,
    point_folders,
    write_results,
)
from s3prl_ofa.sweep.run.launcher import Launcher
from s3prl_ofa.sweep.run.point import KILLED

logger = logging.getLogger(__name__)

GRID = "grid.yaml"  # a copy of the grid file that was run last


def run(args: argparse.Namespace) -> int:
    grid = read_grid(args.grid)
    cache_gb = grid.cache_gb if args.cache_gb is None else args.cache_gb
    if cache_gb is not None and not 0 < cache_gb < math.inf:
        raise UsageError(f"--cache-gb: a number above 0 is expected, found {cache_gb:g}")
    out = (args.out or pathlib.Path(grid.out or f"sweeps/{args.grid.stem}")).absolute()
    try:
        jobs = prepare(grid)
        launcher = Launcher(grid.executor, out, cache_gb)
    except UsageError as error:
        raise UsageError(f"{args.grid}: {error}") from None
    if args.dry_run:
        return dry_run(jobs, collect(out), launcher.parallel)
    temporaries = [f".{pathlib.Path(name).stem}.*" for name in (GRID, RESULTS)]
    with locked_folder(out, f"--out {out}", temporaries, must_lock=True):
        check_ours(out, args.grid)
        with atomic_path(out / GRID) as temporary:
            temporary.write_bytes(args.grid.read_bytes())
        left = lay_out(jobs, out, args.retry)
        killed = run_points(launcher, left, len(jobs) - len(left), out)
        return conclude(out, jobs, killed)


def check_ours(out: pathlib.Path, grid: pathlib.Path) -> None:
    """Raises UsageError if a folder without points has files under the names of ours, which would be replaced."""
    if (out / POINTS).exists():
        return
    copy = out / GRID
    if copy.exists() and copy.read_bytes() != grid.read_bytes():
        raise UsageError(f"{copy} is not of an earlier sweep, as there are no points; give another --out")
    if any(row is None for _, row in numbered_lines(out)):
        raise UsageError(f"{out / RESULTS} is no list of rows, nor of an earlier sweep; give another --out")


def dry_run(jobs: dict[str, Job], rows: dict[str, Row], parallel: int) -> int:
    """Prints the points, and an estimate for each task with finished points of as many steps. rows: by point."""
    left: Counter[tuple[str, int]] = Counter()
    for name, job in jobs.items():
        if job.state(rows.get(name)) == FINISHED:
            name += "  (finished)"
        else:
            left[job.task, job.settings["steps"]] += 1
        print(name)
    print(f"\n{len(jobs)} points, {len(jobs) - left.total()} of them finished")
    total = 0.0
    for (task, steps), count in left.items():
        alike = {"state": FINISHED, "task": task, "steps": steps}.items()
        took = [row.get("duration_s") for row in rows.values() if alike <= row.items()]
        took = [seconds for seconds in took if isinstance(seconds, float)]
        mean = statistics.fmean(took) if took else math.nan
        known = f" of about {rounded(mean)}" if took else "; no estimate before one finishes"
        print(f"{task}: {count} point{'s' * (count > 1)}{known}")
        total += count * mean
    if total > 0:
        at_a_time = f", {parallel} at a time" if parallel > 1 else ""
        print(f"about {rounded(total / min(parallel, left.total()))} in all{at_a_time}")
    return 0


def rounded(seconds: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=round(seconds))


def lay_out(jobs: dict[str, Job], out: pathlib.Path, retry: bool) -> dict[str, PointFolder]:
    """Writes the settings of each point that is not finished to its folder. Returns the folders of those to run, by
    name: failed ones only with ``retry``.

    Points of an earlier grid keep their results; those never started are removed, as a queued job may wait for one.
    """
    for folder in point_folders(out):
        if folder.path.name not in jobs and folder.settings.exists():
            folder.settings.unlink()
            with contextlib.suppress(OSError):
                folder.path.rmdir()  # only if nothing else is in it
    rows = write_results(out)
    left, of_other_data = {}, []
    for name, job in jobs.items():
        folder, state = PointFolder(out / POINTS / name), job.state(rows.get(name))
        is_begun = folder.experiment.exists() and folder.settings.exists()
        begun = rows.get(name) or (vars(folder.job()) if is_begun else {})
        if job.has_other_data(begun.get("data_sha256")):
            of_other_data.append(name)
        if state == FINISHED:
            continue
        folder.save(job)
        if state == FAILED and folder.result.exists():
            if not retry:
                continue
            folder.result.unlink()
        left[name] = folder
        if is_locked(folder.lock):
            logger.warning("%s is still running, started by an earlier sweep; waiting for it to end", name)
    if of_other_data:
        logger.warning(
            "%d points, such as %s, were begun with other lists, lexicons or vocabularies than the data has now; to "
            "run them again, delete their folders in %s and their lines in %s",
            *(len(of_other_data), of_other_data[0], out / POINTS, out / RESULTS),
        )
    return left


def run_points(launcher: Launcher, folders: dict[str, PointFolder], done: int, out: pathlib.Path) -> dict[str, str]:
    """Runs the points; returns those without a result, with the reason."""
    killed = {}
    with (
        Progress(total=done + len(folders), initial=done, unit="point") as bar,
        contextlib.closing(launcher.run(folders, started=bar.set_description)) as ends,
    ):
        for name, end in ends:
            bar.update()
            if end.error or end.state == KILLED:
                killed[name] = end.error or KILLED
            write_results(out)
            bar.clear()
            tell(f"{name}: {end.state}", sys.stderr)
    return killed


def conclude(out: pathlib.Path, jobs: dict[str, Job], killed: dict[str, str]) -> int:
    """Prints how the sweep ended; the exit status is 1 if points failed or were killed."""
    rows = collect(out)
    states = {name: job.state(rows.get(name)) for name, job in jobs.items()}
    finished = sum(state == FINISHED for state in states.values())
    failed = [name for name, state in states.items() if state == FAILED and name not in killed]
    print(f"{finished} of {len(jobs)} points are finished; results: {out / RESULTS}")
    for name in failed:
        print(f"\n{name} failed: {rows[name]['error']}")
        print("".join(f"    {line}\n" for line in rows[name]["log"]), end="")
    if failed:
        print("\n--retry runs failed points again.")
    for name, reason in killed.items():
        lines = PointFolder(out / POINTS / name).tail()
        print(f"\n{name}: {reason}; the same command resumes it" + "".join(f"\n    {line}" for line in lines))
    if finished:
        print(f"\ns3prl-ofa report {out} makes the tables and plots.")
    return 1 if failed or killed else 0
