"""The part of ``torchaudio.sox_effects``, gone since torchaudio 2.9, that S3PRL's tasks use, without SoX.

Each of them asks for 16 kHz mono first and then applies effects from ``EFFECTS``, whose arguments and results are those
of SoX 14.4.2 (https://sourceforge.net/p/sox/code/ci/master/tree/src/silence.c for ``silence``).
"""

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from s3prl_ofa.io.audio import SAMPLE_RATE, load_audio, naming

TO_SPEECH = [["channels", "1"], ["rate", str(SAMPLE_RATE)]]
RMS_WINDOW = SAMPLE_RATE // 50  # samples over which ``silence`` measures loudness


def apply_effects_file(path: str | os.PathLike, effects: Sequence[Sequence[str]]) -> tuple[Tensor, int]:
    """A file's wave (1, samples), float32, at 16 kHz after these effects, and 16,000.

    Raises AudioError naming the file if it cannot be read, and ValueError for effects that do not begin with
    ``TO_SPEECH`` or are not in ``EFFECTS``.
    """
    if [list(effect) for effect in effects[:2]] != TO_SPEECH:
        raise ValueError(f"effects on a file must begin with {TO_SPEECH}, found {effects}")
    with naming(path):
        wave = load_audio(path)
    return apply_effects_tensor(torch.from_numpy(wave)[None], SAMPLE_RATE, effects[2:])


def apply_effects_tensor(tensor: Tensor, sample_rate: int, effects: Sequence[Sequence[str]]) -> tuple[Tensor, int]:
    """A wave (1, samples) at 16 kHz after these effects, and 16,000. Raises ValueError as ``apply_effects_file``."""
    wave = tensor[0].numpy()
    for name, *arguments in effects:
        if name not in EFFECTS:
            raise ValueError(f"the effect {name} is none of {', '.join(EFFECTS)}")
        wave = EFFECTS[name](wave, *arguments)
    return torch.from_numpy(np.ascontiguousarray(wave, np.float32))[None], sample_rate


def gain(wave: np.ndarray, decibels: str) -> np.ndarray:
    """Amplifies; samples beyond full scale are clipped."""
    return np.clip(wave * 10 ** (float(decibels) / 20), -1, 1)


def norm(wave: np.ndarray) -> np.ndarray:
    """Amplifies to a peak of full scale."""
    peak = np.abs(wave).max(initial=0)
    return wave / peak if peak else wave


def pad(wave: np.ndarray, before: str, after: str) -> np.ndarray:
    """Adds ``before`` and ``after`` seconds of silence at the ends."""
    return np.pad(wave, (samples(before), samples(after)))


def trim(wave: np.ndarray, start: str, length: str) -> np.ndarray:
    """Cuts out ``length`` seconds from ``start`` seconds on."""
    return wave[samples(start) : samples(start) + samples(length)]


def silence(
    wave: np.ndarray, starts: str, start: str, start_level: str, stops: str, stop: str, stop_level: str
) -> np.ndarray:
    """Removes silence at the start, at the end and, because ``stops`` is negative, between words.

    start, stop: seconds of sound that begin speech, and of silence that end it. start_level, stop_level: the RMS, in
    percent of full scale, above which there is sound. Speech ends after ``stop`` seconds of silence; the next sound is
    then searched for with an empty RMS window. starts, stops: must be 1 and -1. Raises ValueError for other periods.
    """
    if (starts, stops) != ("1", "-1"):
        raise ValueError(f"silence is supported with 1 and -1 periods, found {starts} and {stops}")
    energy = np.concatenate([[0.0], np.cumsum(wave.astype(np.float64) ** 2)])
    ends = np.arange(1, len(wave) + 1)
    begins = np.maximum(ends - RMS_WINDOW, 0)
    rms = np.sqrt((energy[ends] - energy[begins]).clip(0) / RMS_WINDOW)
    pieces, place = [wave[:0]], 0
    while place < len(wave):
        first = slice(place, place + RMS_WINDOW)  # whose windows begin empty after a silence
        rms[first] = np.sqrt((energy[ends[first]] - energy[place]).clip(0) / RMS_WINDOW)
        begin = first_run(rms[place:] > percent(start_level), samples(start))
        if begin is None:
            break
        begin += place
        sound = rms[begin:] > percent(stop_level)
        sound[: samples(start)] = True
        end = first_run(~sound, samples(stop))
        if end is None:
            pieces.append(wave[begin:])  # silence too short to be cut
            break
        pieces.append(wave[begin : begin + end])
        place = begin + end + samples(stop)
    return np.concatenate(pieces)


def first_run(found: np.ndarray, length: int) -> int | None:
    """Where the first run of at least ``length`` true values begins; None if there is none."""
    misses = np.concatenate([[-1], np.flatnonzero(~found), [len(found)]])
    long_enough = np.flatnonzero(np.diff(misses) > length)
    return int(misses[long_enough[0]]) + 1 if len(long_enough) else None


def percent(level: str) -> float:
    return float(level.removesuffix("%")) / 100


def samples(seconds: str) -> int:
    return round(float(seconds) * SAMPLE_RATE)


EFFECTS: dict[str, Callable[..., np.ndarray]] = {effect.__name__: effect for effect in (gain, norm, pad, silence, trim)}
