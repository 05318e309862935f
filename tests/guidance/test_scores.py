"""Boundary scores: worked examples, and optimal matching."""

import itertools

import numpy as np
import pytest

from s3prl_ofa.guidance.scores import boundary_scores, count_hits, uniform_boundaries


def test_worked_example():
    """Precision, recall, F1 and R-value (Räsänen 2009) of an example computed by hand."""
    scores = boundary_scores([[0.11, 0.30, 0.52, 0.9]], [[0.1, 0.31, 0.7]], 0.02)
    assert (scores.hits, scores.found, scores.reference) == (2, 4, 3)
    assert scores.precision == 0.5 and scores.recall == pytest.approx(2 / 3) and scores.f1 == pytest.approx(4 / 7)
    # over-segmentation 1/3: distances sqrt((1/3)^2 + (1/3)^2) and (1/3 + 1/3) / sqrt(2)
    assert scores.r_value == pytest.approx(1 - (np.sqrt(2) / 3 + np.sqrt(2) / 3) / 2)


def test_perfect_none_and_empty():
    """Perfect boundaries score 1; no found boundaries, no reference and neither do not divide by zero."""
    perfect = boundary_scores([[0.5, 0.1]], [[0.1, 0.5]], 0.0)
    assert (perfect.precision, perfect.recall, perfect.f1, perfect.r_value) == (1, 1, 1, 1)
    for found, reference in (([[]], [[0.1]]), ([[0.1]], [[]]), ([[]], [[]]), ([], [])):
        scores = boundary_scores(found, reference, 0.02)
        assert (scores.precision, scores.recall, scores.f1) == (0, 0, 0)


def test_tolerance_is_inclusive():
    """A distance of 20 ms is within 20 ms, despite floating-point rounding."""
    assert boundary_scores([[0.12, 1.02]], [[0.1, 1.0]], 0.02).hits == 2
    assert boundary_scores([[0.121]], [[0.1]], 0.02).hits == 0


def test_one_to_one():
    """Three boundaries around a reference boundary are one hit, and utterances are matched separately."""
    assert boundary_scores([[0.09, 0.1, 0.11]], [[0.1]], 0.02).hits == 1
    assert boundary_scores([[0.1], [0.5]], [[0.5], [0.1]], 0.02).hits == 0
    with pytest.raises(ValueError, match="2 utterances"):
        boundary_scores([[0.1], [0.5]], [[0.5]], 0.02)


def max_pairs(found, reference, tolerance) -> int:
    """The maximum over all assignments."""
    slots = list(found) + [None] * len(reference)
    return max(
        sum(slot is not None and abs(slot - time) <= tolerance for slot, time in zip(order, reference, strict=True))
        for order in itertools.permutations(slots, len(reference))
    )


def test_matching_is_the_best():
    """No other assignment of found to reference boundaries has more hits."""
    random = np.random.default_rng(0)
    for _ in range(60):
        found, reference = (np.sort(random.uniform(0, 0.3, random.integers(1, 5))) for _ in range(2))
        assert count_hits(found, reference, 0.04) == max_pairs(found, reference, 0.04)


def test_sum_and_uniform():
    """Scores of parts add up to those of the whole; uniform boundaries cut into equal parts."""
    parts = [boundary_scores([[0.1]], [[0.1, 0.2]], 0.02), boundary_scores([[0.4, 0.5]], [[0.5]], 0.02)]
    assert parts[0] + parts[1] == boundary_scores([[0.1], [0.4, 0.5]], [[0.1, 0.2], [0.5]], 0.02)
    assert uniform_boundaries(2.0, 3).tolist() == [0.5, 1.0, 1.5] and len(uniform_boundaries(2.0, 0)) == 0
