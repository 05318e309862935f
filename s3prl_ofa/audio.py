"""Reading audio files of any format, rate and channel count as 16 kHz mono."""

import os
import pathlib
import struct
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000  # Hz, what the models hear; stated here too so that reading audio does not need torch
MIN_SAMPLES = 400  # at 16 kHz: one frame of wav2vec 2.0's front end
BLOCK_SECONDS = 30.0  # an hour of 48 kHz stereo is 1.4 GB in float32; read piece by piece it never is in memory
# The endings of libsndfile's formats, and those that its format names do not give away. RAW has no header to read.
SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"}
SUFFIXES |= {".aif", ".oga", ".opus", ".snd", ".sph"}
# Files of chunks, each with a name and a size, by what they begin with: WAV and its other forms, AIFF and 8SVX.
BYTE_ORDERS = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<", b"FORM": ">"}
SAMPLE_CHUNKS = {b"data", b"SSND", b"BODY"}


class AudioError(ValueError):
    """An audio file cannot be used: the message says why, without naming the file."""


def find_audio(folder: str | os.PathLike) -> list[pathlib.Path]:
    """Every file below ``folder`` whose ending names a format that soundfile reads, sorted; hidden ones left out.

    Links to folders are followed, but every folder is searched once, whatever links lead to it.
    """
    found, searched = [], set()
    # Links are followed last, so that a folder that lies below ``folder`` itself keeps its own name.
    starts = [os.fspath(folder)]
    while starts:
        for directory, subfolders, names in os.walk(starts.pop(0)):
            status = os.stat(directory)
            if (status.st_dev, status.st_ino) in searched:
                subfolders.clear()
                continue
            searched.add((status.st_dev, status.st_ino))
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            below = [os.path.join(directory, name) for name in subfolders]
            starts += [path for path in below if os.path.islink(path)]
            for name in names:
                if not name.startswith(".") and pathlib.PurePath(name).suffix.lower() in SUFFIXES:
                    found.append(pathlib.Path(directory, name))
    return sorted(found)


def duration(path: str | os.PathLike) -> float:
    """Seconds of audio, from the header. Raises AudioError when the file cannot be opened as audio or is cut short."""
    with open_audio(path) as file:
        return file.frames / file.samplerate


def check_speech(path: str | os.PathLike) -> int:
    """Samples of a file that the tasks and pretraining can read as it is: 16 kHz mono, at least 400 samples.

    Every command that reads a corpus asks this one function which files are usable. Only the header is read. Raises
    AudioError saying why the file cannot be used.
    """
    with open_audio(path) as file:
        if file.samplerate != SAMPLE_RATE or file.channels != 1:
            raise AudioError(
                f"{file.samplerate} Hz with {file.channels} channel{'s' * (file.channels != 1)}; "
                f"expected {SAMPLE_RATE} Hz mono"
            )
        if file.frames < MIN_SAMPLES:
            raise AudioError(f"{file.frames} samples; at least {MIN_SAMPLES} are needed (25 ms)")
        return file.frames


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
    """The open file. Raises AudioError when it is missing or no audio, or has fewer samples than its header says.

    The last is seen here for WAV and AIFF; of compressed files it shows when they are read.
    """
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        raise AudioError("its path is not UTF-8, rename it") from None
    if not os.path.exists(path):
        raise AudioError("a link to nothing" if os.path.islink(path) else "no such file")
    if not os.path.getsize(path):
        raise AudioError("an empty file")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise AudioError(f"cannot be read as audio ({reason(error)})") from None
    # libsndfile takes what there is for the whole.
    promised, there = sample_bytes(path)
    if promised > there + 1 and not is_placeholder(promised):  # 1: some writers count the byte of padding
        file.close()
        raise AudioError(f"cut short: {there} of the {promised} bytes of samples that its header promises")
    return file


def sample_bytes(path: str | os.PathLike) -> tuple[int, int]:
    """How many bytes of samples the header of a file of chunks promises and how many there are; else 0 and 0."""
    with open(path, "rb") as file:
        order = BYTE_ORDERS.get(file.read(12)[:4])
        long_size = 0  # where 32 bits are too few
        while order and len(head := file.read(8)) == 8:
            name, size = struct.unpack(f"{order}4sI", head)
            start = file.tell()
            if name in SAMPLE_CHUNKS:
                return long_size or size, os.path.getsize(path) - start
            if not any(name):
                break  # no chunk: zeros, which would be searched eight by eight
            if name == b"ds64" and len(sizes := file.read(16)) == 16:
                long_size = struct.unpack("<QQ", sizes)[1]
            file.seek(start + size + size % 2)
    return 0, 0


def is_placeholder(size: int) -> bool:
    """Whether a header's size means "unknown", as programs write that cannot go back in their output: 0, or the largest
    number of 64, 32 or 31 bits, some less by the size of their header or rounded to whole blocks."""
    return size == 0 or any(-0x1_0000 <= size - 2**bits <= 0 for bits in (31, 32, 63, 64))


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
