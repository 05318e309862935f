"""Segmentation of speech without labels: duration-penalised dynamic programming over codes.

Kamper & van Niekerk (arXiv 2012.07551): a segment costs the squared distance of its frames to the single code that fits
them best, minus penalty * (length - 1), so that longer segments are cheaper. The segmentation of least cost is found
exactly, among segments of at most ``longest`` frames.
"""

from collections.abc import Sequence

import numpy as np

from s3prl_ofa.arguments.guidance import LONGEST
from s3prl_ofa.model import SAMPLE_RATE

PERIOD_TOLERANCE = 0.005  # relative, of the search for a penalty
MAX_STEPS = 60


def distances(features: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Squared distances (codes, frames) float32 of features (frames, dim) to codes (codes, dim)."""
    squares = (features**2).sum(1) - 2 * codes @ features.T + (codes**2).sum(1)[:, None]
    return np.maximum(squares, 0, out=squares)


def segment_costs(distance: np.ndarray, longest: int = LONGEST) -> np.ndarray:
    """Costs of segments without penalty, (frames, longest) float32: row t holds the segments that end with frame t.

    distance: (codes, frames). Columns are ``longest - length``: along a row, segments start later and later. Costs are
    infinite where a segment would start before the first frame.
    """
    frames = distance.shape[1]
    costs = np.full((frames, longest), np.inf, np.float32)
    sums = distance.copy()
    for length in range(1, min(longest, frames) + 1):
        if length > 1:  # one more frame at the front; sums[:, t] is of the segment that ends with frame t
            sums[:, length - 1 :] += distance[:, : frames - length + 1]
        costs[length - 1 :, longest - length] = sums[:, length - 1 :].min(0)
    return costs


def best_segmentation(costs: np.ndarray, penalty: float) -> np.ndarray:
    """Boundaries (segments,) int64 of the segmentation of least cost; for costs see ``segment_costs``."""
    frames, longest = costs.shape
    penalised = costs - penalty * np.arange(longest - 1, -1, -1)
    # least[longest + t] is the least cost of the first t frames; no segment can start before them
    least = np.full(longest + frames + 1, np.inf)
    least[longest] = 0.0
    starts = np.empty(frames, np.int64)
    for frame in range(frames):
        candidates = least[frame + 1 : frame + 1 + longest] + penalised[frame]
        choice = candidates.argmin()
        least[longest + frame + 1] = candidates[choice]
        starts[frame] = frame + 1 + choice - longest
    boundaries = [frames]
    while starts[boundaries[-1] - 1]:
        boundaries.append(starts[boundaries[-1] - 1])
    return np.array(boundaries[::-1], np.int64)


def mean_period_ms(costs: Sequence[np.ndarray], samples: Sequence[int], penalty: float) -> float:
    """Milliseconds of audio per segment, over utterances with these costs and numbers of samples."""
    segments = sum(len(best_segmentation(cost, penalty)) for cost in costs)
    return 1000 * sum(samples) / SAMPLE_RATE / segments


def solve_penalty(costs: Sequence[np.ndarray], samples: Sequence[int], period_ms: float) -> tuple[float, float]:
    """(penalty, resulting period in ms), by bisection: a higher penalty gives a longer period.

    Raises ValueError if no penalty gives the period.
    """
    low, high = 0.0, 1.0
    shortest = mean_period_ms(costs, samples, low)
    while (period := mean_period_ms(costs, samples, high)) < period_ms:
        low, high = high, 4 * high
        if high > 1e12:
            raise ValueError(f"segments of {period_ms:g} ms are impossible: they are {shortest:.1f} to {period:.1f} ms")
    if shortest > period_ms:
        raise ValueError(f"segments of {period_ms:g} ms are impossible: they are {shortest:.1f} ms or longer")
    for _ in range(MAX_STEPS):
        middle = (low + high) / 2
        period = mean_period_ms(costs, samples, middle)
        if abs(period / period_ms - 1) < PERIOD_TOLERANCE:
            break
        low, high = (middle, high) if period < period_ms else (low, middle)
    return middle, period
