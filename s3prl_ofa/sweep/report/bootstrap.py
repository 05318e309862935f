"""How sure scores and their differences are: a bootstrap over seeds and test utterances (Efron & Tibshirani, An
Introduction to the Bootstrap, 1993).

All settings of a task are scored on the same resamples of its utterances, so that differences are paired over
utterances; seeds are resampled too, alike for settings with equally many. In numpy: scipy.stats.bootstrap resamples one
axis alone.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from s3prl_ofa.io.files import read_json
from s3prl_ofa.sweep.results import POINTS, PointFolder

RESAMPLES = 2000
TAIL = 2.5  # percent outside of an interval, on each side
TOLERANCE = 1e-3  # relative, of a point's score to what its utterances give; S3PRL sums in float32


class Outcomes(NamedTuple):
    """Of the test utterances of one point: names, errors or hits, and the words or answers they are among."""

    names: tuple[str, ...]
    sums: np.ndarray
    counts: np.ndarray

    @property
    def ratio(self) -> float:
        return float(self.sums.sum() / self.counts.sum())


class Interval(NamedTuple):
    """low, high: of 95%. p: two-sided, of a difference that is zero."""

    low: float
    high: float
    p: float


def resampled_scores(folder: pathlib.Path, settings: pd.DataFrame) -> dict[int, np.ndarray]:
    """(RESAMPLES,) scores of every setting whose points all have outcomes of the task's utterances, by its index.

    folder: of the sweep. settings: as ``settings_of`` gives them.
    """
    scores: dict[int, np.ndarray] = {}
    utterances: dict[str, tuple[str, ...]] = {}  # by task
    weights: dict[str, np.ndarray] = {}
    for setting in settings.itertuples():
        found = [outcomes(PointFolder(folder / POINTS / point)) for point in setting.points]
        known = [item for item in found if item is not None]
        names = utterances.setdefault(setting.task, known[0].names) if known else ()
        if len(known) < len(found) or any(item.names != names for item in known):
            continue
        scale = next((scale for scale in (100, 1) if agrees(scale, known, setting.score)), None)
        if scale is None:  # these are of another evaluation
            continue
        if setting.task not in weights:
            weights[setting.task] = draws(len(names))
        sums, counts = (weights[setting.task] @ np.stack(part, 1) for part in list(zip(*known, strict=True))[1:])
        seeds = draws(len(known)) / len(known)
        scores[setting.Index] = scale * (seeds * sums / counts).sum(1)
    return scores


def outcomes(folder: PointFolder) -> Outcomes | None:
    """None where the point has none, or they cannot be used."""
    try:
        found = read_json(folder.utterances)
        names = tuple(found["utterances"])
        sums, counts = (np.array(found[key], dtype=float) for key in ("sums", "counts"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    usable = len(set(names)) == len(names) > 0 and sums.shape == counts.shape == (len(names),)
    if not usable or not np.isfinite(sums).all() or not (counts > 0).all():
        return None
    return Outcomes(names, sums, counts)


def agrees(scale: float, found: list[Outcomes], score: float) -> bool:
    return abs(scale * np.mean([item.ratio for item in found]) - score) <= TOLERANCE * max(abs(score), 1.0)


def draws(size: int) -> np.ndarray:
    """How often each of ``size`` things is drawn, with replacement, in each resample: (RESAMPLES, size)."""
    return np.random.default_rng(size).multinomial(size, np.full(size, 1 / size), RESAMPLES).astype(np.float32)


def interval(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, [TAIL, 100 - TAIL])
    p = 2 * min(np.mean(values <= 0), np.mean(values >= 0))
    return Interval(float(low), float(high), float(min(1.0, max(p, 1 / len(values)))))


def difference(scores: dict[int, np.ndarray], better: Any, other: Any) -> Interval | None:
    """By how much setting ``better`` is better than ``other``; None where their utterances are not known."""
    if better.Index not in scores or other.Index not in scores:
        return None
    sign = 1 if better.higher_is_better else -1
    return interval(sign * (scores[better.Index] - scores[other.Index]))
