"""The codes that segments are compared with: k-means of some features, in a safetensors file."""

import dataclasses
import json
import os
import pathlib
import random
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from s3prl_ofa.errors import UsageError
from s3prl_ofa.guidance.features import features_of
from s3prl_ofa.guidance.layout import num_frames
from s3prl_ofa.guidance.work import Entry, each
from s3prl_ofa.io.files import atomic_path

CLUSTERS = 100
SAMPLE_FRAMES = 100_000  # that codes are made of and the penalty is solved on; 33 minutes, in 768 dimensions 0.3 GB
BATCH_FRAMES = 4096
NAME, SOURCE = "codes", "source"  # the tensor, and the metadata that says of which features


@dataclasses.dataclass(frozen=True)
class FeaturesOf:
    """``features_of`` for another process: features, or why there are none."""

    source: Any

    def __call__(self, entry: Entry) -> np.ndarray | str:
        try:
            return features_of(self.source, entry)
        except UsageError:
            raise
        except (ValueError, RuntimeError) as error:
            return str(error)


def draw(entries: list[Entry], frames: int, seed: int) -> list[Entry]:
    """A random part of the utterances that has some ``frames`` frames."""
    drawn, count = [], 0
    for entry in random.Random(seed).sample(entries, len(entries)):
        if count >= frames:
            break
        if num_frames(entry.samples):
            drawn.append(entry)
            count += num_frames(entry.samples)
    return drawn


def sample_features(source: Any, entries: list[Entry], seed: int, jobs: int) -> list[tuple[Entry, np.ndarray]]:
    """Features of a random part. Utterances that cannot be used are passed over; UsageError when none is left."""
    drawn = draw(entries, SAMPLE_FRAMES, seed)
    results = list(zip(drawn, each(FeaturesOf(source), drawn, jobs, "features of a sample"), strict=True))
    usable = [(entry, features) for entry, features in results if not isinstance(features, str)]
    if not usable:
        example = f", the first {results[0][0].path}: {results[0][1]}" if results else ""
        raise UsageError(f"none of {len(drawn)} utterances drawn can be used{example}")
    return usable


def train(features: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Codes (clusters, dim) float32 of features (frames, dim). Raises UsageError for fewer frames than clusters."""
    from sklearn.cluster import MiniBatchKMeans

    if len(features) < clusters:
        raise UsageError(f"--clusters {clusters}: there are only {len(features)} frames to make them of")
    means = MiniBatchKMeans(clusters, batch_size=BATCH_FRAMES, n_init=3, random_state=seed)
    return means.fit(features).cluster_centers_.astype(np.float32)


def write_codes(path: pathlib.Path, codes: np.ndarray, source: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        metadata = {SOURCE: json.dumps(source, sort_keys=True)}
        safetensors.numpy.save_file({NAME: np.ascontiguousarray(codes)}, temporary, metadata)


def read_codes(path: str | os.PathLike, source: dict[str, Any]) -> np.ndarray:
    """Codes (codes, dim) float32 of these features. Raises UsageError for a file that is damaged or of others."""
    try:
        with safetensors.safe_open(path, "np") as file:
            made_of = json.loads((file.metadata() or {}).get(SOURCE, "null"))
            codes = file.get_tensor(NAME)
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise UsageError(f"{path}: no codes can be read ({error}); expected a file that guidance wrote") from None
    if made_of != source:
        raise UsageError(f"{path}: codes of {made_of}, asked was {source}")
    if codes.ndim != 2 or not len(codes) or codes.dtype != np.float32 or not np.isfinite(codes).all():
        raise UsageError(f"{path}: codes of shape {codes.shape}, {codes.dtype}; expected finite (codes, dim) float32")
    return codes
