"""The best settings for their cost: the Pareto front of score against cost, and the choice within a budget."""

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd

from s3prl_ofa.sweep.report.bootstrap import Interval, difference
from s3prl_ofa.sweep.report.settings import base_of, lowest_merit, percent

COSTS = {"gmacs": "{:.3f} GMACs / s", "total_ms": "{:.1f} ms / s"}  # how each is shown, by the settings' column


@dataclasses.dataclass(frozen=True)
class Choice:
    """The best setting of a task within a limit. rival: the best of the others within it, or the one to compare with.
    faster: how many times less wall time it takes than at 20 ms, NaN if unknown. gain: by how much it is better than
    the rival. interval: of the gain, None if the utterances are not known."""

    limit: str
    setting: Any
    faster: float
    rival: Any = None
    interval: Interval | None = None

    @property
    def gain(self) -> float:
        return math.nan if self.rival is None else self.setting.merit - self.rival.merit


def front(settings: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The settings of one task that are better than all that cost no more; the cheapest come first."""
    measured = settings[settings[cost].notna()]
    ordered = measured.sort_values([cost, "merit"], ascending=[True, False], kind="stable")
    best = ordered["merit"].cummax().shift(fill_value=-math.inf)
    return ordered[ordered["merit"] > best]


def on_the_front(settings: pd.DataFrame, scores: dict[int, np.ndarray], cost: str) -> list[Choice]:
    """A choice for each setting on the front of each task: it is the best within its own cost. Of settings whose costs
    are shown as the same number, the best one."""
    found = []
    for _, of_task in settings.groupby("task", sort=False):
        limits = {COSTS[cost].format(value): value for value in front(of_task, cost)[cost]}
        found += [best_of(of_task[of_task[cost] <= value], of_task, scores, text) for text, value in limits.items()]
    return found


def within_budget(settings: pd.DataFrame, scores: dict[int, np.ndarray], budget: dict[str, float]) -> list[Choice]:
    """The best setting of each task that meets every limit; a task in which none does has no choice. budget: the limit
    of each cost, by the settings' column."""
    limit = " and ".join(COSTS[cost].format(value) for cost, value in budget.items())
    found = []
    for _, of_task in settings.groupby("task", sort=False) if budget else ():
        affordable = of_task[np.logical_and.reduce([of_task[cost] <= value for cost, value in budget.items()])]
        if len(affordable):
            found.append(best_of(affordable, of_task, scores, limit))
    return found


def best_of(candidates: pd.DataFrame, of_task: pd.DataFrame, scores: dict[int, np.ndarray], limit: str) -> Choice:
    first, *others = candidates.sort_values("merit", ascending=False, kind="stable").itertuples()
    return choice(first, others[0] if others else None, of_task, scores, limit)


def within_tolerance(settings: pd.DataFrame, scores: dict[int, np.ndarray], tolerance: float) -> list[Choice]:
    """The cheapest setting of each task, in GMACs, whose score is within the tolerance of that at 20 ms, with which it
    is compared."""
    found = []
    for _, of_task in settings.groupby("task", sort=False):
        base = base_of(of_task)
        if base is None:
            continue
        close = of_task[(of_task["merit"] >= lowest_merit(base, tolerance)) & of_task["gmacs"].notna()]
        cheapest = next(close.sort_values("gmacs", kind="stable").itertuples(), None)
        if cheapest is not None:
            limit = f"within {percent(tolerance)} of {base.score:.2f} at 20 ms"
            found.append(choice(cheapest, base, of_task, scores, limit))
    return found


def choice(setting: Any, rival: Any, of_task: pd.DataFrame, scores: dict[int, np.ndarray], limit: str) -> Choice:
    base = base_of(of_task, setting.model)
    faster = math.nan if base is None else base.total_ms / setting.total_ms
    if rival is None or rival.Index == setting.Index:
        return Choice(limit, setting, faster)
    return Choice(limit, setting, faster, rival, difference(scores, setting, rival))
