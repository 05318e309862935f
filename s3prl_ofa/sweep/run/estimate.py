"""``s3prl-ofa sweep --dry-run``: the points, and how long those that are left may take, judged by finished ones."""

import statistics
from collections.abc import Iterable

from s3prl_ofa.sweep.job import FINISHED, Job, Row


def dry_run(jobs: dict[str, Job], rows: dict[str, Row], parallel: int) -> int:
    """Prints the points, and an estimate for each task of which points are finished. rows: by point."""
    left: dict[str, list[Job]] = {}  # by task
    for name, job in jobs.items():
        finished = job.state(rows.get(name)) == FINISHED
        print(name + "  (finished)" * finished)
        if not finished:
            left.setdefault(job.task, []).append(job)
    count = sum(map(len, left.values()))
    print(f"\n{len(jobs)} points, {len(jobs) - count} of them finished")
    known = {
        task: [seconds for job in todo if (seconds := estimate(job, rows.values()))] for task, todo in left.items()
    }
    for task, todo in left.items():
        if len(known[task]) == len(todo):
            print(f"{task}: {len(todo)} points of about {duration(statistics.fmean(known[task]))}")
        else:
            print(f"{task}: {len(todo)} points; no estimate before one of them is finished")
    if left and sum(map(len, known.values())) == count:
        at_a_time = f", {parallel} at a time" if parallel > 1 else ""
        print(f"about {duration(sum(map(sum, known.values())) / min(parallel, count))} in all{at_a_time}")
    return 0


def estimate(job: Job, rows: Iterable[Row]) -> float | None:
    """Mean seconds of the finished points that differ from this one in their seed and learning rate alone, or else of
    all of its task with as many steps; None without one."""
    task = {key: job.settings[key] for key in ("task", "steps")}
    same = {
        key: job.settings[key] for key in (*task, "model", "rate", "value", "lambd_start", "frames", "asked_repeat")
    }
    for wanted in (same, task):
        alike = [row for row in rows if row["state"] == FINISHED and row.items() >= wanted.items()]
        if seconds := [row["duration_s"] for row in alike if isinstance(row.get("duration_s"), float)]:
            return statistics.fmean(seconds)
    return None


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
