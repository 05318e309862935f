"""Checks the waves that come in and normalizes them."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_ofa.errors import shown
from s3prl_ofa.model.config import SAMPLE_RATE

NORM_EPS = 1e-5


def check_waves(waves: Sequence[Tensor | np.ndarray], shortest: int, device: torch.device) -> list[Tensor]:
    """A batch as float32 tensors (samples,) on ``device``.

    Raises ValueError if the batch is not a list or is empty, or naming the utterance that is not a 1-D float tensor or
    array, has fewer than ``shortest`` samples or holds a value that is not finite.
    """
    expected = f"a list of 1-D float tensors or arrays, {SAMPLE_RATE} Hz mono"
    if not isinstance(waves, list | tuple):
        shape = f" of shape {tuple(waves.shape)}" if hasattr(waves, "shape") else ""
        found = f"{type(waves).__name__}{shape}"
        raise ValueError(f"waves must be {expected}, found {found}; put a single wave into a list")
    if not waves:
        raise ValueError(f"waves must be {expected}, found an empty list")
    checked = []
    for index, wave in enumerate(waves):
        if isinstance(wave, np.ndarray) and wave.dtype.kind == "f":
            # Writeable, as torch wants it, so a memory-mapped file is copied.
            wave = torch.from_numpy(np.require(wave, np.float32, ["C", "W"]))
        if not isinstance(wave, Tensor) or not wave.is_floating_point():
            found = f"{wave.dtype} values" if hasattr(wave, "dtype") else type(wave).__name__
            raise ValueError(f"utterance {index} must be a 1-D float tensor or array, found {found}")
        if wave.dim() != 1:
            raise ValueError(f"utterance {index} must be 1-D (samples,), found shape {tuple(wave.shape)}; mix to mono")
        if len(wave) < shortest:
            raise ValueError(
                f"utterance {index} has {len(wave)} samples; at least {shortest} are needed "
                f"({1000 * shortest / SAMPLE_RATE:g} ms at {SAMPLE_RATE} Hz)"
            )
        checked.append(wave.to(device, torch.float32))
    # NaN if a sample is; on a CPU isfinite of all samples takes 20 times as long
    extremes = [value for wave in checked for value in torch.aminmax(wave)]
    if not bool(torch.isfinite(torch.stack(extremes)).all()):
        index = next(index for index, wave in enumerate(checked) if not bool(torch.isfinite(wave).all()))
        raise ValueError(f"utterance {index} holds NaN or infinite samples; finite values are expected")
    return checked


def without_padding(waves: Tensor, lengths: Tensor | None) -> list[Tensor]:
    """The utterances (samples,) of a padded batch (batch, samples); ``lengths`` (batch,) in samples, all by default.

    Raises ValueError for waves that are not such a batch and for lengths outside it.
    """
    if not isinstance(waves, Tensor) or waves.dim() != 2:
        found = f"shape {tuple(waves.shape)}" if isinstance(waves, Tensor) else f"a {type(waves).__name__}"
        raise ValueError(f"waves must be a tensor (batch, samples), found {found}; extract takes a list of waves")
    batch, samples = waves.shape
    if lengths is None:
        return list(waves)
    counts = torch.as_tensor(lengths)
    if counts.shape != (batch,) or counts.is_floating_point() or not bool(((counts >= 0) & (counts <= samples)).all()):
        raise ValueError(f"lengths must be {batch} whole numbers of at most {samples} samples, found {shown(lengths)}")
    return [wave[:count] for wave, count in zip(waves, counts.tolist(), strict=True)]


def normalize_wave(wave: Tensor) -> Tensor:
    """Brings a wave (samples,) to mean 0 and variance 1 over its own samples, computed in float64."""
    return F.layer_norm(wave.double(), wave.shape, eps=NORM_EPS).to(wave.dtype)
