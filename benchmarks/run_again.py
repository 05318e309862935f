"""How long the sweep of the evidence takes, and how far its scores change, from running it on another processor.

The rows are in results/evidence_again.jsonl. Its fixed2 to fixed4 were the bundled checkpoint without its compressor,
which was not trained for pooling: only their time counts.
"""

import datetime
import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

from benchmarks.report import table
from benchmarks.rows import RESULTS

AGAIN = RESULTS / "evidence_again.jsonl"
SETTING = ["task", "model", "rate", "value", "lambd_start"]

Rows = list[dict[str, Any]]


def run_again(evidence: Rows) -> str:
    """Both in words and a table. evidence: the rows of the first run."""
    rows: Rows = [json.loads(line) for line in AGAIN.read_text("utf-8").splitlines()]
    devices = " and ".join(dict.fromkeys(row["device"] for row in rows))
    lines = [
        [task.Index, str(task.points), f"{task.point:.1f}", f"{task.setting:.1f}"]
        for task in differences(evidence, rows).itertuples()
    ]
    head = ["task", "runs compared", "of one run", "of the mean of a setting"]
    which = f"{len(rows)} of the {len(evidence)} runs" if len(rows) < len(evidence) else f"the {len(rows)} runs"
    return (
        f"On two cores of another processor, {devices}, {which} took "
        f"{wall_clock_hours(rows):.1f} hours, features included; the runs above took {wall_clock_hours(evidence):.1f} "
        "hours, beside other work and in part with an earlier version. The largest differences between the scores of "
        f"both, in percentage points:\n\n{table(head, lines)}"
    )


def wall_clock_hours(rows: Iterable[dict[str, Any]]) -> float:
    """The time in which at least one run was going on; pauses between launches do not count."""
    ends = [(datetime.datetime.fromisoformat(row["finished"]).timestamp(), row["duration_s"]) for row in rows]
    total = until = 0.0
    for start, end in sorted((end - seconds, end) for end, seconds in ends):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total / 3600


def differences(rows: Rows, others: Rows) -> pd.DataFrame:
    """For each task how many points two sweeps share, and the most by which one of them and the mean of a setting
    differ."""
    both = pd.DataFrame(rows).merge(pd.DataFrame(others), on="point", suffixes=("", "_other"))
    both["difference"] = (both["score_other"] - both["score"]) * both["unit"]
    by_task = both["difference"].abs().groupby(both["task"], sort=False)
    settings = both.groupby(SETTING, dropna=False)["difference"].mean().abs()
    return pd.DataFrame({"points": by_task.size(), "point": by_task.max(), "setting": settings.groupby("task").max()})
