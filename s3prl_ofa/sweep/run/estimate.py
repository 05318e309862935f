"""``s3prl-ofa sweep --dry-run``: the points, and how long those that are left may take, judged by finished ones."""

import datetime
import math
import statistics
from collections import Counter

from s3prl_ofa.sweep.job import FINISHED, Job, Row


def dry_run(jobs: dict[str, Job], rows: dict[str, Row], parallel: int) -> int:
    """Prints the points, and an estimate for each task with finished points of as many steps. rows: by point."""
    left: Counter[tuple[str, int]] = Counter()
    for name, job in jobs.items():
        finished = job.state(rows.get(name)) == FINISHED
        left[job.task, job.settings["steps"]] += not finished
        print(name + "  (finished)" * finished)
    print(f"\n{len(jobs)} points, {len(jobs) - left.total()} of them finished")
    total = 0.0
    for (task, steps), count in (+left).items():
        alike = [row for row in rows.values() if (row.get("task"), row.get("steps")) == (task, steps)]
        took = [row["duration_s"] for row in alike if row["state"] == FINISHED and isinstance(row["duration_s"], float)]
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
