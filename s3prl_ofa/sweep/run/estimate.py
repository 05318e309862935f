"""``s3prl-ofa sweep --dry-run``: the points, and about how long they will take.

Of each task one point is tried, in a folder that is thrown away: a few training steps and a part of the test split.
"""

import dataclasses
import pathlib
import tempfile
import time
from typing import Any

from tqdm import tqdm

from s3prl_ofa.io.locks import locked
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE
from s3prl_ofa.sweep.grid.schema import OURS
from s3prl_ofa.sweep.job import LOCK, LOG, POINT, POINTS, RESULT, read_json, write_json
from s3prl_ofa.sweep.run.consistency import Prepared, check_fits
from s3prl_ofa.sweep.run.launcher import Launcher
from s3prl_ofa.sweep.run.process import CommandFailed, CommandKilled, run_process
from s3prl_ofa.sweep.run.worker import PROBE, PROBE_STEPS


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of a task: to start, of a training step, of an evaluation of a split."""

    start: float
    step: float
    evaluation: float

    def of(self, settings: dict[str, Any]) -> float:
        """Seconds of a whole point: training with its evaluations, then dev and test."""
        runner = settings["config"]["runner"]
        during = runner["total_steps"] // runner["eval_step"] * len(runner.get("eval_dataloaders") or [])
        after = sum(settings[role] is not None for role in ("dev", "test"))
        return self.start + runner["total_steps"] * self.step + (during + after) * self.evaluation


def dry_run(prepared: Prepared, out: pathlib.Path, launcher: Launcher) -> int:
    """Prints the points and the estimate; nothing is written to ``out``.

    Raises UsageError where the points do not fit to what is there.
    """
    done = check_fits(prepared, out) | {name for name in prepared if (out / POINTS / name / RESULT).exists()}
    for name in prepared:
        print(f"{name}{'  (finished)' if name in done else ''}")
    left = {name: settings for name, settings in prepared.items() if name not in done}
    print(f"\n{len(prepared)} points, {len(done)} of them finished")
    by_task: dict[str, dict[str, Any]] = {}
    for name, settings in left.items():
        by_task.setdefault(settings["point"]["task"], {})[name] = settings
    costs = {}
    with tempfile.TemporaryDirectory() as folder:
        for task, points in tqdm(by_task.items(), desc="probe", unit="task", disable=None):
            name = dearest(points)
            try:
                costs[task] = probe(points[name], pathlib.Path(folder, name), launcher)
            except (CommandFailed, CommandKilled) as error:
                print(f"{task}: no estimate, as {name} does not run: {error or 'killed'}")
    seconds = 0.0
    for task, cost in costs.items():
        own = sum(cost.of(settings) for settings in by_task[task].values())
        seconds += own
        print(f"{task}: {len(by_task[task])} points of about {duration(own / len(by_task[task]))}")
    if costs:
        parallel = min(launcher.parallel, len(left))
        at_a_time = f", {parallel} at a time" if parallel > 1 else ""
        print(f"about {duration(seconds / parallel)} in all{at_a_time}, if every rate costs what the slowest does")
    return 0 if len(costs) == len(by_task) else 1


def dearest(points: dict[str, dict[str, Any]]) -> str:
    """The point that should take longest: of our own model, an adaptive one or the shortest frame period."""

    def rank(name: str) -> tuple[bool, float]:
        point = points[name]["point"]
        if point["rate"] == ADAPTIVE:
            return False, -1.0  # it goes back through the encoder too
        return point["upstream"] != OURS, 0.0 if point["rate"] == "pool" else point["value"] or 0.0

    return min(points, key=rank)


def probe(settings: dict[str, Any], folder: pathlib.Path, launcher: Launcher) -> Cost:
    """Raises CommandFailed or CommandKilled where the point does not run."""
    write_json(folder / POINT, settings)
    begin = time.monotonic()
    with locked(folder / LOCK, wait=True) as lock:
        run_process([str(folder), PROBE], folder / LOG, launcher.gpu[0], launcher.threads, lock)
    found = read_json(folder / RESULT)
    start = time.monotonic() - begin - PROBE_STEPS * found["step"] - found["probed"]
    return Cost(max(0.0, start), found["step"], found["evaluation"])


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
