"""Reads the small corpus: waves, phone labels of 20 ms frames, and log-mel spectra of the same frames.

The folder is laid out as `audio/<speaker>/<chapter>/<utterance>.opus`, `utterances.tsv` and `phones.ctm.gz`.
"""

import csv
import dataclasses
import functools
import pathlib

import librosa
import numpy as np
import soundfile
import torch
import tqdm
from torch import Tensor

from s3prl_ofa.guidance.alignments import Interval, read_ctm

SAMPLE_RATE = 16_000  # Hz
HOP, WINDOW = 320, 400  # samples: hop and receptive field of wav2vec 2.0's front end
MELS = 80
UNKNOWN = -100  # the label of frames without alignment, which cross-entropy ignores
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

    def labels(self, frames: int) -> np.ndarray:
        """The phone at the middle of each 20 ms frame, (frames,) int64; UNKNOWN if there is none."""
        labels = np.full(frames, UNKNOWN, np.int64)
        for start, end, phone in self.phones:
            first, last = (np.ceil((second * SAMPLE_RATE - WINDOW / 2) / HOP) for second in (start, end))
            labels[max(int(first), 0) : max(int(last), 0)] = PHONES.index(phone)
        return labels


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


def read_waves(utterances: list[Utterance]) -> list[np.ndarray]:
    """The wave (samples,) int16 of each utterance. Five hours take 600 MB and a minute to decode."""
    return [utterance.wave() for utterance in tqdm.tqdm(utterances, desc="decoding", disable=None)]


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
    windows = waves.unfold(1, WINDOW, HOP) * torch.hann_window(WINDOW)
    power = torch.fft.rfft(windows, 512).abs().square()
    return torch.log(power @ mel_filters() + 1e-2)
