"""Segmentations from speech alone: codes and a penalty are determined once, then used for every utterance.

Codes are the k-means centroids of features, in a safetensors file.
"""

import dataclasses
import json
import os
import pathlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from s3prl_ofa.errors import UsageError
from s3prl_ofa.guidance.features import features_of
from s3prl_ofa.guidance.layout import num_frames
from s3prl_ofa.guidance.segmentation import best_segmentation, distances, segment_costs, solve_penalty
from s3prl_ofa.guidance.work import Entry, each
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.output import tell

CODES = "codes.safetensors"
SAMPLE_FRAMES = 100_000  # to train codes and solve the penalty on: 33 minutes, 0.3 GB in 768 dimensions
BATCH_FRAMES = 4096
NAME, SOURCE = "codes", "source"  # of the tensor, and of the metadata that describes the features
Sample = list[tuple[Entry, np.ndarray]]  # utterances with their features (frames, dim)


@dataclasses.dataclass(frozen=True)
class FeaturesOf:
    """``features_of`` for a worker process: features, or the reason why there are none."""

    source: Any

    def __call__(self, entry: Entry) -> np.ndarray | str:
        try:
            return features_of(self.source, entry)
        except UsageError:
            raise
        except (ValueError, RuntimeError) as error:
            return str(error)


def draw(entries: list[Entry], frames: int, seed: int) -> list[Entry]:
    """Random utterances with about ``frames`` frames in total."""
    drawn, count = [], 0
    for entry in random.Random(seed).sample(entries, len(entries)):
        if count >= frames:
            break
        if num_frames(entry.samples):
            drawn.append(entry)
            count += num_frames(entry.samples)
    return drawn


def sample_features(source: Any, entries: list[Entry], seed: int, jobs: int) -> Sample:
    """Features of random utterances. Unusable ones are skipped; raises UsageError if none is left."""
    drawn = draw(entries, SAMPLE_FRAMES, seed)
    results = list(zip(drawn, each(FeaturesOf(source), drawn, jobs, "features of a sample"), strict=True))
    usable = [(entry, features) for entry, features in results if not isinstance(features, str)]
    if not usable:
        example = f"; the first is {results[0][0].path}: {results[0][1]}" if results else ""
        raise UsageError(f"none of the {len(drawn)} drawn utterances can be used{example}")
    return usable


def train_codes(features: Sequence[np.ndarray], clusters: int, seed: int) -> np.ndarray:
    """Codes (clusters, dim) float32 of features (frames, dim). Raises UsageError for fewer frames than clusters."""
    from sklearn.cluster import MiniBatchKMeans

    frames = np.concatenate(features)
    if len(frames) < clusters:
        raise UsageError(f"--clusters {clusters}: there are only {len(frames)} frames to train them on; give fewer")
    means = MiniBatchKMeans(clusters, batch_size=BATCH_FRAMES, n_init=3, random_state=seed)
    return means.fit(frames).cluster_centers_.astype(np.float32)


def write_codes(path: pathlib.Path, codes: np.ndarray, source: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        metadata = {SOURCE: json.dumps(source, sort_keys=True)}
        safetensors.numpy.save_file({NAME: np.ascontiguousarray(codes)}, temporary, metadata)


def read_codes(path: str | os.PathLike, source: dict[str, Any]) -> np.ndarray:
    """Codes (codes, dim) float32. Raises UsageError for a damaged file and for codes of other features."""
    try:
        with safetensors.safe_open(path, "np") as file:
            found = json.loads((file.metadata() or {}).get(SOURCE, "null"))
            codes = file.get_tensor(NAME)
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise UsageError(f"{path}: codes cannot be read ({error}); expected a file that guidance wrote") from None
    if found != source:
        raise UsageError(f"{path}: holds codes of {found}, not of {source}")
    if codes.ndim != 2 or not len(codes) or codes.dtype != np.float32 or not np.isfinite(codes).all():
        raise UsageError(
            f"{path}: holds codes of shape {codes.shape}, {codes.dtype}; expected finite (codes, dim) float32"
        )
    return codes


def make_penalty(codes: np.ndarray, sample: Sample, longest: int, period_ms: float) -> float:
    """The penalty that makes the sample's segments ``period_ms`` long on average. Raises UsageError."""
    costs = [segment_costs(distances(features, codes), longest) for _, features in sample]
    try:
        penalty, reached = solve_penalty(costs, [entry.samples for entry, _ in sample], period_ms)
    except ValueError as error:
        raise UsageError(f"--period-ms: {error}") from None
    tell(f"penalty {penalty:.6g}: segments of {reached:.1f} ms on average in {len(sample)} utterances")
    return penalty


@dataclasses.dataclass(frozen=True)
class FromSpeech:
    """Boundaries of a manifest's entry, from its audio."""

    source: Any  # of features, see features.py
    codes: np.ndarray  # (codes, dim)
    penalty: float
    longest: int  # frames per segment

    def __call__(self, entry: Entry) -> Tensor:
        costs = segment_costs(distances(features_of(self.source, entry), self.codes), self.longest)
        return torch.from_numpy(best_segmentation(costs, self.penalty))
