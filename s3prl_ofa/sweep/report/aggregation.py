"""Computes the contents of a report from the rows in a sweep's folder."""

import dataclasses
import pathlib

import numpy as np
import pandas as pd

from s3prl_ofa.errors import UsageError
from s3prl_ofa.sweep.job import FAILED, FINISHED, Row
from s3prl_ofa.sweep.report.bootstrap import interval, resampled_scores
from s3prl_ofa.sweep.report.front import COSTS, Choice, on_the_front, within_budget, within_tolerance
from s3prl_ofa.sweep.report.rows import read_rows
from s3prl_ofa.sweep.report.settings import LongestPeriod, longest_periods, settings_of
from s3prl_ofa.sweep.results import POINTS, RESULTS, point_folders


@dataclasses.dataclass(frozen=True)
class Summary:
    """The contents of a report. settings: see ``settings_of``; low and high are the ends of the score's interval, NaN
    where it is not known. fronts: the Pareto front of each cost. choices: within the budget and the tolerance. missing:
    names of the grid's points without a row. faults: of the rows, a sentence each."""

    folder: pathlib.Path
    rows: list[Row]
    finished: list[Row]
    failed: list[Row]
    settings: pd.DataFrame
    longest_periods: list[LongestPeriod]
    fronts: dict[str, list[Choice]]
    choices: list[Choice]
    missing: list[str]
    tolerance: float
    faults: list[str]


def summarize(folder: pathlib.Path, tolerance: float, budget: dict[str, float] | None = None) -> Summary:
    """budget: limits of costs, by the settings' column. Raises UsageError where the folder holds no sweep, or one
    without a finished point."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder; give the one that s3prl-ofa sweep wrote to")
    rows, faults = read_rows(folder)
    finished, failed = ([row for row in rows if row["state"] == state] for state in (FINISHED, FAILED))
    wanted = [point.path.name for point in point_folders(folder) if point.settings.exists()]
    missing = [name for name in wanted if name not in {row["point"] for row in rows}]
    if not finished and not faults:
        points = len(missing) + len(rows)
        nothing = f"no row in {RESULTS}" if (folder / RESULTS).exists() else f"neither {POINTS} nor {RESULTS}"
        found = f"{points} points, none of them finished" if points else nothing
        raise UsageError(f"{folder}: a sweep with finished points is expected, found {found}")
    settings = settings_of(finished)
    scores = resampled_scores(folder, settings)
    ends = [interval(scores[index]) if index in scores else (np.nan, np.nan) for index in settings.index]
    settings = settings.assign(low=[end[0] for end in ends], high=[end[1] for end in ends])
    return Summary(
        folder,
        rows,
        finished,
        failed,
        settings,
        longest_periods(settings, tolerance),
        {cost: on_the_front(settings, scores, cost) for cost in COSTS},
        [*within_budget(settings, scores, budget or {}), *within_tolerance(settings, scores, tolerance)],
        missing,
        tolerance,
        faults,
    )
