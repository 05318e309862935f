"""Scores boundaries against reference boundaries, as in the segmentation literature. All times are in seconds."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

TOLERANCES = (0.02, 0.04)  # seconds; 20 ms is customary for phones
ROUNDING = 1e-9  # seconds, so that a distance of 0.02 is within a tolerance of 0.02


@dataclasses.dataclass(frozen=True)
class BoundaryScores:
    """Counts over all utterances, and the scores computed from them, which are 0 to 1 (R-value: at most 1)."""

    hits: int
    found: int
    reference: int

    @property
    def precision(self) -> float:
        return self.hits / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        return self.hits / self.reference if self.reference else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.hits / (self.found + self.reference) if self.found + self.reference else 0.0

    @property
    def r_value(self) -> float:
        """Räsänen, Laine and Altosaar (Interspeech 2009): unlike F1, it does not reward oversegmentation."""
        if not self.reference:
            return 0.0
        over = self.found / self.reference - 1
        to_target = math.hypot(1 - self.recall, over)
        to_line = abs(-over + self.recall - 1) / math.sqrt(2)
        return 1 - (to_target + to_line) / 2

    def __add__(self, other: "BoundaryScores") -> "BoundaryScores":
        return BoundaryScores(self.hits + other.hits, self.found + other.found, self.reference + other.reference)

    def __str__(self) -> str:
        return f"precision {self.precision:.3f}, recall {self.recall:.3f}, F1 {self.f1:.3f}, R-value {self.r_value:.3f}"


def boundary_scores(
    found: Sequence[npt.ArrayLike], reference: Sequence[npt.ArrayLike], tolerance: float
) -> BoundaryScores:
    """Scores over all utterances. found, reference: each utterance's boundaries in seconds, without its start and end.

    Every boundary is matched to at most one other, no further away than ``tolerance``, with as many matches as
    possible. Raises ValueError if the numbers of utterances differ.
    """
    if len(found) != len(reference):
        raise ValueError(f"found has {len(found)} utterances and reference {len(reference)}; expected equally many")
    pairs = [
        (np.sort(np.asarray(a, float)), np.sort(np.asarray(b, float))) for a, b in zip(found, reference, strict=True)
    ]
    return BoundaryScores(
        sum(count_hits(a, b, tolerance + ROUNDING) for a, b in pairs),
        sum(len(a) for a, _ in pairs),
        sum(len(b) for _, b in pairs),
    )


def count_hits(found: np.ndarray, reference: np.ndarray, tolerance: float) -> int:
    """The maximum number of disjoint pairs within ``tolerance``; both arrays are sorted.

    On a line, matching each reference boundary from left to right to the first free one within reach is optimal.
    """
    hits = free = 0
    for time in reference:
        while free < len(found) and found[free] < time - tolerance:
            free += 1
        if free < len(found) and found[free] <= time + tolerance:
            hits += 1
            free += 1
    return hits


def uniform_boundaries(seconds: float, count: int) -> np.ndarray:
    """Boundaries (count,) that cut ``seconds`` into equal parts: the baseline of the same rate."""
    return seconds * np.arange(1, count + 1) / (count + 1)
