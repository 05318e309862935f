"""How certain scores and their differences are: a bootstrap over seeds and test utterances (Efron & Tibshirani, An
Introduction to the Bootstrap, 1993).

All settings of a task are scored on the same resamples of its utterances, so that differences are paired over
utterances; seeds are resampled too, alike for settings with equally many. In numpy: scipy.stats.bootstrap resamples one
axis alone.
"""

import functools
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from s3prl_ofa.io.files import read_json
from s3prl_ofa.sweep.results import POINTS, PointFolder

RESAMPLES = 2000
TAIL = 2.5  # percent outside of an interval, on each side
# a point's score and what its utterances give; S3PRL sums in float32
agree = functools.partial(math.isclose, rel_tol=1e-3, abs_tol=1e-3)


class Interval(NamedTuple):
    """low, high: the ends of the 95% interval. p: two-sided, for a difference of zero."""

    low: float
    high: float
    p: float


def resampled_scores(folder: pathlib.Path, settings: pd.DataFrame) -> dict[int, np.ndarray]:
    """(RESAMPLES,) scores of every setting whose points all have outcomes of the task's utterances, by its index.

    folder: of the sweep. settings: as ``settings_of`` gives them.
    """
    scores: dict[int, np.ndarray] = {}
    utterances: dict[str, pd.Index] = {}  # by task
    for setting in settings.itertuples():
        found = [outcomes(PointFolder(folder / POINTS / point)) for point in setting.points]
        known = [item for item in found if item is not None]
        names = utterances.setdefault(setting.task, known[0].index) if known else None
        if len(known) < len(found) or not all(item.index.equals(names) for item in known):
            continue
        sums, counts = (np.stack([item[column] for item in known], 1) for column in ("sums", "counts"))
        score = np.mean(sums.sum(0) / counts.sum(0))
        scale = next((scale for scale in (100, 1) if agree(scale * score, setting.score)), None)
        if scale is None:  # these are of another evaluation
            continue
        weights, seeds = draws(len(sums)), draws(len(known)) / len(known)
        scores[setting.Index] = scale * (seeds * (weights @ sums) / (weights @ counts)).sum(1)
    return scores


def outcomes(folder: PointFolder) -> pd.DataFrame | None:
    """For each test utterance the sums (errors or hits) and the counts (of words or answers); None if the point has
    none, or they cannot be used."""
    try:
        found = pd.DataFrame(read_json(folder.utterances)).set_index("utterances")[["sums", "counts"]].astype(float)
        is_unique = found.index.is_unique  # a TypeError for names that are lists
    except (OSError, ValueError, KeyError, TypeError):
        return None
    usable = len(found) and is_unique and np.isfinite(found).all(axis=None) and (found["counts"] > 0).all()
    return found if usable else None


@functools.cache
def draws(size: int) -> np.ndarray:
    """How often each of ``size`` items is drawn, with replacement, in each resample: (RESAMPLES, size)."""
    return np.random.default_rng(size).multinomial(size, np.full(size, 1 / size), RESAMPLES).astype(np.float32)


def interval(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, [TAIL, 100 - TAIL])
    p = 2 * min(np.mean(values <= 0), np.mean(values >= 0))
    return Interval(float(low), float(high), float(min(1.0, max(p, 1 / len(values)))))


def difference(scores: dict[int, np.ndarray], better: Any, other: Any) -> Interval | None:
    """By how much setting ``better`` is better than ``other``; None if their utterances are not known."""
    if better.Index not in scores or other.Index not in scores:
        return None
    sign = 1 if better.higher_is_better else -1
    return interval(sign * (scores[better.Index] - scores[other.Index]))
