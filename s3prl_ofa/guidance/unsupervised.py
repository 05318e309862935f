"""Segmentations from speech alone: codes and penalty made once, then utterance by utterance."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s3prl_ofa.errors import UsageError
from s3prl_ofa.guidance.codes import train, write_codes
from s3prl_ofa.guidance.features import features_of
from s3prl_ofa.guidance.segmentation import best_segmentation, distances, segment_costs, solve_penalty
from s3prl_ofa.guidance.work import Entry

CODES = "codes.safetensors"
Sample = list[tuple[Entry, np.ndarray]]  # utterances with their features (frames, dim)


@dataclasses.dataclass(frozen=True)
class FromSpeech:
    """Boundaries of a manifest's entry."""

    source: Any  # of features, see features.py
    codes: np.ndarray  # (codes, dim)
    penalty: float
    longest: int  # frames of a segment

    def __call__(self, entry: Entry) -> Tensor:
        costs = segment_costs(distances(features_of(self.source, entry), self.codes), self.longest)
        return torch.from_numpy(best_segmentation(costs, self.penalty))


def make_codes(path: pathlib.Path, source: Any, sample: Sample, clusters: int, seed: int) -> np.ndarray:
    """Codes (clusters, dim) of the sample, written to ``path`` too. Raises UsageError."""
    codes = train(np.concatenate([features for _, features in sample]), clusters, seed)
    write_codes(path, codes, source.describe())
    return codes


def make_penalty(codes: np.ndarray, sample: Sample, longest: int, period_ms: float) -> float:
    """The penalty with which segments are ``period_ms`` long on average in the sample. Raises UsageError."""
    costs = [segment_costs(distances(features, codes), longest) for _, features in sample]
    try:
        penalty, reached = solve_penalty(costs, [entry.samples for entry, _ in sample], period_ms)
    except ValueError as error:
        raise UsageError(f"--period-ms: {error}") from None
    print(f"penalty {penalty:.6g}: segments of {reached:.1f} ms on average in {len(sample)} utterances")
    return penalty
