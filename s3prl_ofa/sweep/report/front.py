"""What is best for a cost: the Pareto front of score against cost, and the setting to choose within a budget."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from s3prl_ofa.sweep.report.bootstrap import Interval, difference
from s3prl_ofa.sweep.report.settings import base_of


class Cost(NamedTuple):
    """unit: of the column ``name`` of the settings. digits: that are shown."""

    unit: str
    digits: int

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f} {self.unit}"


COSTS = {"gmacs": Cost("GMACs / s", 3), "total_ms": Cost("ms / s", 1)}  # by the settings' column


@dataclasses.dataclass(frozen=True)
class Choice:
    """The best setting of a task within a limit. rival: the best of the others within it, or what the choice is
    measured against. faster: how many times less wall time than at 20 ms, NaN where that is not known. gain: by how
    much it is better than the rival; interval: of that, None where the utterances are not known."""

    task: str
    limit: str
    setting: Any
    faster: float
    rival: Any = None
    interval: Interval | None = None

    @property
    def gain(self) -> float:
        sign = 1 if self.setting.higher_is_better else -1
        return math.nan if self.rival is None else sign * (self.setting.score - self.rival.score)


def front(settings: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The settings of one task that are better than all that cost no more, the cheapest first."""
    measured = settings[settings[cost].notna()]
    ordered = measured.assign(merit=merit(measured)).sort_values(
        [cost, "merit"], ascending=[True, False], kind="stable"
    )
    best = ordered["merit"].cummax().shift(fill_value=-math.inf)
    return ordered[ordered["merit"] > best]


def merit(settings: pd.DataFrame) -> pd.Series:
    """The score, the higher the better."""
    return settings["score"].where(settings["higher_is_better"].astype(bool), -settings["score"])


def on_the_front(settings: pd.DataFrame, scores: dict[int, np.ndarray], cost: str) -> list[Choice]:
    """A choice for each setting on the front of each task: within what it costs it is the best."""
    found = []
    for _, of_task in settings.groupby("task", sort=False):
        for value in front(of_task, cost)[cost]:
            found.append(best_of(of_task[of_task[cost] <= value], of_task, scores, COSTS[cost].text(value)))
    return found


def within_budget(settings: pd.DataFrame, scores: dict[int, np.ndarray], budget: dict[str, float]) -> list[Choice]:
    """The best setting of each task that meets every limit; a task in which none does has no choice. budget: the limit
    of each cost, by the settings' column."""
    limit = " and ".join(COSTS[cost].text(value) for cost, value in budget.items())
    found = []
    for _, of_task in settings.groupby("task", sort=False) if budget else ():
        affordable = of_task[np.logical_and.reduce([of_task[cost] <= value for cost, value in budget.items()])]
        if len(affordable):
            found.append(best_of(affordable, of_task, scores, limit))
    return found


def best_of(candidates: pd.DataFrame, of_task: pd.DataFrame, scores: dict[int, np.ndarray], limit: str) -> Choice:
    order = candidates.assign(merit=merit(candidates)).sort_values("merit", ascending=False, kind="stable")
    first, *others = order.itertuples()
    rival = others[0] if others else None
    return choice(first, rival, of_task, scores, limit)


def within_tolerance(settings: pd.DataFrame, scores: dict[int, np.ndarray], tolerance: float) -> list[Choice]:
    """The cheapest setting of each task, in GMACs, whose score is within the tolerance of that at 20 ms, compared with
    it."""
    found = []
    for _, of_task in settings.groupby("task", sort=False):
        base = base_of(of_task)
        if base is None:
            continue
        sign = 1 if base.higher_is_better else -1
        limit = sign * base.score - tolerance * abs(base.score)
        close = of_task[(merit(of_task) >= limit) & of_task["gmacs"].notna()].sort_values("gmacs", kind="stable")
        if len(close):
            text = f"within {100 * tolerance:g}% of {base.score:.2f} at 20 ms"
            found.append(choice(next(close.itertuples()), base, of_task, scores, text))
    return found


def choice(setting: Any, rival: Any, of_task: pd.DataFrame, scores: dict[int, np.ndarray], limit: str) -> Choice:
    base = base_of(of_task, setting.model)
    faster = math.nan if base is None else base.total_ms / setting.total_ms
    if rival is not None and rival.Index == setting.Index:
        rival = None
    sure = None if rival is None else difference(scores, setting, rival)
    return Choice(setting.task, limit, setting, faster, rival, sure)
