"""Reads the small corpus: waves, phone labels of 20 ms frames, and log-mel spectra of the same frames.

The folder is laid out as `audio/<speaker>/<chapter>/<utterance>.opus`, `utterances.tsv` and `phones.ctm.gz`.
"""

import concurrent.futures
import csv
import dataclasses
import functools
import os
import pathlib

import librosa
import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from s3prl_ofa.guidance.alignments import Interval, read_ctm

SAMPLE_RATE = 16_000  # Hz
HOP, WINDOW = 320, 400  # samples: hop and receptive field of wav2vec 2.0's front end
MELS = 80
UNKNOWN = -100  # the label of frames without alignment, which cross-entropy ignores
SPIKE = 0.6  # the part of a phone's alpha that is at its end
LONGEST = 8  # frames; longer segments, mostly silences, have several compressed frames
ROUNDING = 1e-6  # of times in seconds and frames
PHONES = (  # silence and ARPAbet without stress
    *("SIL", "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY"),
    *("JH", "K", "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH"),
)


@dataclasses.dataclass(frozen=True)
class Utterance:
    """An utterance of the corpus, without its wave.

    text_split, speaker_split: "train", "dev" or "test", by text and by speaker. phones: with times in seconds; empty if
    there is no alignment.
    """

    name: str
    speaker: str
    text_split: str
    speaker_split: str
    path: pathlib.Path
    samples: int
    phones: tuple[Interval, ...]

    def wave(self, samples: int = -1) -> np.ndarray:
        """(samples,) int16, 16 kHz; all of it, or the first ``samples``."""
        wave, rate = soundfile.read(self.path, samples, dtype="int16")
        if rate != SAMPLE_RATE:
            raise ValueError(f"{self.path} has {rate} Hz; expected {SAMPLE_RATE}")
        return wave

    def labels(self, frames: int, speed: float = 1.0) -> np.ndarray:
        """The phone at the middle of each 20 ms frame, (frames,) int64; UNKNOWN if there is none.

        speed: of the speech relative to the recording.
        """
        if not self.phones:
            return np.full(frames, UNKNOWN)
        starts, ends, phones = zip(*self.phones, strict=True)
        middles = (np.arange(frames) * HOP + WINDOW / 2) / SAMPLE_RATE * speed
        found = np.searchsorted(starts, middles + ROUNDING, "right") - 1
        inside = (found >= 0) & (middles + ROUNDING < np.array(ends)[found])
        return np.where(inside, np.array([PHONES.index(phone) for phone in phones])[found], UNKNOWN)

    def alpha(self, frames: int, speed: float = 1.0) -> np.ndarray:
        """What alpha should be, (frames,) float32: its running sum grows by one per phone. NaN without an alignment.

        A share SPIKE of that one is at the phone's end: there the sum crosses an integer even if it is out of phase,
        which the predictor, seeing only 100 ms, cannot avoid. The rest is spread evenly over the phone, so that the
        compressed frame is also a mean of it. A segment of more than LONGEST frames, usually a silence, counts as
        several.
        """
        if not self.phones:
            return np.full(frames, np.nan, np.float32)
        times = np.array([[start, end] for start, end, _ in self.phones])
        points = np.unique(np.round([0.0, *times.ravel()], 3)) * SAMPLE_RATE / HOP / speed  # in frames
        counts = np.ceil(np.diff(points) / LONGEST - ROUNDING)
        even = np.interp(np.arange(frames + 1), points, np.cumsum([0.0, *(counts - SPIKE)]))
        alpha = np.diff(even)
        # Frame t covers [t, t + 1], so an end between the middles of two frames is shared between them.
        whole, part = np.divmod(points[1:] - 0.5, 1.0)
        for frame, share in ((whole, 1 - part), (whole + 1, part)):
            inside = (frame >= 0) & (frame < frames)
            np.add.at(alpha, frame[inside].astype(int), SPIKE * share[inside])
        return alpha.clip(0.0, 1.0).astype(np.float32)


def read_corpus(folder: pathlib.Path) -> list[Utterance]:
    """All utterances of the corpus."""
    with open(folder / "utterances.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    phones = read_ctm(folder / "phones.ctm.gz", {row["utterance"] for row in rows})
    return [
        Utterance(
            row["utterance"],
            row["speaker"],
            row["text_split"],
            row["speaker_split"],
            folder / "audio" / row["speaker"] / row["chapter"] / f"{row['utterance']}.opus",
            int(row["samples"]),
            tuple(phones.get(row["utterance"], ())),
        )
        for row in rows
    ]


def read_waves(utterances: list[Utterance], speeds: tuple[float, ...]) -> list[list[np.ndarray]]:
    """The wave (samples,) int16 of each utterance at each speed. Decoding five hours takes one core a minute."""

    def versions(utterance: Utterance) -> list[np.ndarray]:
        wave = utterance.wave()
        return [soxr.resample(wave, speed, 1.0, "MQ") for speed in speeds]

    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(versions, utterances))


def num_frames(samples: int) -> int:
    """Number of 20 ms frames of this many samples."""
    return (samples - WINDOW) // HOP + 1


@functools.cache
def mel_filters() -> Tensor:
    """The filter bank (frequencies, mels)."""
    return torch.from_numpy(librosa.filters.mel(sr=SAMPLE_RATE, n_fft=512, n_mels=MELS)).t().contiguous()


def log_mel(waves: Tensor) -> Tensor:
    """From (batch, samples) to the log-mel spectrum (batch, frames, mels) of the samples that each frame covers.

    The level of a wave is removed first, because the front end's GroupNorm removes it too.
    """
    waves = waves / (waves.std(1, keepdim=True) + 1e-4)
    windows = waves.unfold(1, WINDOW, HOP) * torch.hann_window(WINDOW, device=waves.device)
    power = torch.fft.rfft(windows, 512).abs().square()
    return torch.log(power @ mel_filters().to(waves.device) + 1e-2)
