"""How well found boundaries meet wanted ones, as the literature on segmentation scores it. All times in seconds."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

TOLERANCES = (0.02, 0.04)  # seconds; 20 ms is the custom for phones
ROUNDING = 1e-9  # seconds, so that a distance of 0.02 is within 0.02


@dataclasses.dataclass(frozen=True)
class BoundaryScores:
    """Counts over all utterances, and what follows from them; every score is 0 to 1 (R-value: up to 1)."""

    hits: int
    found: int
    wanted: int

    @property
    def precision(self) -> float:
        return self.hits / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        return self.hits / self.wanted if self.wanted else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.hits / (self.found + self.wanted) if self.found + self.wanted else 0.0

    @property
    def r_value(self) -> float:
        """Räsänen, Laine and Altosaar (Interspeech 2009): unlike F1 it does not reward too many boundaries."""
        if not self.wanted:
            return 0.0
        over = self.found / self.wanted - 1
        to_target = math.hypot(1 - self.recall, over)
        to_line = abs(-over + self.recall - 1) / math.sqrt(2)
        return 1 - (to_target + to_line) / 2

    def __add__(self, other: "BoundaryScores") -> "BoundaryScores":
        return BoundaryScores(self.hits + other.hits, self.found + other.found, self.wanted + other.wanted)

    def __str__(self) -> str:
        return f"precision {self.precision:.3f}, recall {self.recall:.3f}, F1 {self.f1:.3f}, R-value {self.r_value:.3f}"


def boundary_scores(
    found: Sequence[Sequence[float]], wanted: Sequence[Sequence[float]], tolerance: float
) -> BoundaryScores:
    """Scores over all utterances together; each of ``found`` and ``wanted`` is one utterance's boundaries in seconds.

    A boundary is met by at most one found boundary, no further away than ``tolerance``, and as many as can be are met.
    Leave out the start and the end of an utterance, which are known beforehand. Raises ValueError when the two have
    another number of utterances.
    """
    if len(found) != len(wanted):
        raise ValueError(f"{len(found)} utterances with found boundaries, {len(wanted)} with wanted ones")
    pairs = [(np.sort(np.asarray(a, float)), np.sort(np.asarray(b, float))) for a, b in zip(found, wanted, strict=True)]
    return BoundaryScores(
        sum(count_hits(a, b, tolerance + ROUNDING) for a, b in pairs),
        sum(len(a) for a, _ in pairs),
        sum(len(b) for _, b in pairs),
    )


def count_hits(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> int:
    """The most pairs within ``tolerance`` that share no boundary; both sorted.

    On a line it is enough to give each wanted boundary, from left to right, the first free one within reach.
    """
    hits = free = 0
    for time in wanted:
        while free < len(found) and found[free] < time - tolerance:
            free += 1
        if free < len(found) and found[free] <= time + tolerance:
            hits += 1
            free += 1
    return hits


def uniform_boundaries(seconds: float, count: int) -> np.ndarray:
    """``count`` boundaries (count,) that cut ``seconds`` into equal parts: the baseline of the same rate."""
    return seconds * np.arange(1, count + 1) / (count + 1)
