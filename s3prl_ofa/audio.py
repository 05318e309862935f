"""Reading audio files of any format, rate and channel count as 16 kHz mono."""

import os
import pathlib
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000  # Hz, what the models hear; stated here too so that reading audio does not need torch
BLOCK_SECONDS = 30.0  # an hour of 48 kHz stereo is 1.4 GB in float32; read piece by piece it never is in memory
# The endings of libsndfile's formats, and those that its format names do not give away. RAW has no header to read.
SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"}
SUFFIXES |= {".aif", ".oga", ".opus", ".snd", ".sph"}


class AudioError(ValueError):
    """An audio file cannot be used: the message says why, without naming the file."""


def find_audio(folder: str | os.PathLike) -> list[pathlib.Path]:
    """Every file below ``folder`` whose ending names a format that soundfile reads, sorted; hidden ones left out."""
    found = []
    for directory, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and pathlib.PurePath(name).suffix.lower() in SUFFIXES:
                found.append(pathlib.Path(directory, name))
    return sorted(found)


def duration(path: str | os.PathLike) -> float:
    """Seconds of audio, from the header. Raises AudioError when the file cannot be opened as audio."""
    with open_audio(path) as file:
        return file.frames / file.samplerate


def load_audio(path: str | os.PathLike) -> np.ndarray:
    """Samples (samples,), float32, 16 kHz: channels averaged, any other rate resampled by soxr in high quality.

    Raises AudioError when the file is missing, damaged, shorter than its header says, or empty, or holds values that
    are not finite.
    """
    with open_audio(path) as file:
        stream = None
        if file.samplerate != SAMPLE_RATE:
            stream = soxr.ResampleStream(file.samplerate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        pieces, found = [], 0
        for block in mono_blocks(file):
            found += len(block)
            pieces.append(block if stream is None else stream.resample_chunk(block))
        if stream is not None:
            pieces.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
        if found < file.frames:
            raise AudioError(f"damaged: {found} of the {file.frames} samples that its header promises can be read")
    wave = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    if not len(wave):
        raise AudioError("holds no samples")
    if not np.isfinite(wave).all():
        raise AudioError("holds NaN or infinite samples")
    return wave


def open_audio(path: str | os.PathLike) -> soundfile.SoundFile:
    """The open file. Raises AudioError when it is missing or no audio."""
    if not os.path.exists(path):
        raise AudioError("no such file")
    if not os.path.getsize(path):
        raise AudioError("an empty file")
    try:
        return soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise AudioError(f"cannot be read as audio ({reason(error)})") from None


def mono_blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """The file piece by piece, at its own rate, its channels averaged. Raises AudioError when it is damaged."""
    try:
        while len(block := file.read(int(BLOCK_SECONDS * file.samplerate), dtype="float32", always_2d=True)):
            yield block.mean(1)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(f"damaged ({reason(error)})") from None


def reason(error: Exception) -> str:
    """libsndfile's own words, without the file's name that soundfile puts before them."""
    return getattr(error, "error_string", str(error)).strip().rstrip(".")
