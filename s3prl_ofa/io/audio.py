"""Reading audio files of any format, rate and channel count as 16 kHz mono."""

import contextlib
import os
import pathlib
import re
import shlex
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

from s3prl_ofa.io.audio_headers import is_placeholder, ogg_fault, sample_bytes
from s3prl_ofa.io.files import printable

SAMPLE_RATE = 16_000  # Hz, the models' rate; repeated here so that reading audio does not import torch
MIN_SAMPLES = 400  # at 16 kHz: one frame of wav2vec 2.0's front end
MIN_FILE_RATE, MAX_FILE_RATE = 1_000, 768_000  # Hz; a header with any other rate is damaged
MAX_AMPLITUDE = 2.0**15  # float files hold -1 to 1, some hold 16-bit integers unscaled; anything larger is damage
BLOCK_SECONDS = 30.0  # an hour of 48 kHz stereo is 1.4 GB in float32; read in blocks, it is never all in memory
# File suffixes of libsndfile's formats, including those that are not the format's name. RAW has no header to read.
SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"}
SUFFIXES |= {".8svx", ".aif", ".aifc", ".iff", ".oga", ".opus", ".sf", ".snd", ".sph"}
# Suffixes of audio that libsndfile cannot read. Such files are found too, so that they can be reported.
OTHERS = "3ga 3gp aac aax ac3 amr ape asf avi awb dff dsf eac3 flv m4a m4b m4p m4r m4v mka mkv mov mp1 mp2 mp4 mpc mpeg"
OTHERS += " mpg mpga oma pcm qcp ra raw rm shn spx tak tta weba webm wma wmv wv"
OTHER_SUFFIXES = {f".{name}" for name in OTHERS.split()}
HEADERLESS = {".pcm", ".raw"}  # nothing in them says rate, channels and encoding
ALL_SUFFIXES = SUFFIXES | OTHER_SUFFIXES

# libsndfile's formats whose integer PCM need not be decoded: any bits are valid samples, and open_audio has compared
# the file's size with its header
SIZED = {"WAV", "WAVEX", "RF64", "AIFF", "SVX", "AU", "W64", "CAF", "NIST"}
# In libsndfile's log of opening a file: the frames that the header of AVR, MPC2K and MATLAB files declares (the last
# ones, after those of other variables), and its own verdict on a VOC file.
LOGGED_FRAMES, LOGGED_CUT = re.compile(r"\b(?:Frames|Cols) +: (\d+)"), "Seems to be a truncated file"
# libsndfile's messages for files that exist but are not what their name says, or whose header is impossible
UNCLEAR = {"possibly a pipe": "Format not recognised", "SF_INFO struct incomplete": "its header contradicts itself"}
CONVERT = "`s3prl-ofa prepare audio CORPUS --out DIR` makes such a copy of a corpus"


class AudioError(ValueError):
    """An audio file cannot be used: the message says why, and names the file only where a docstring says so."""


def find_audio(folder: str | os.PathLike) -> list[pathlib.Path]:
    """Every file below ``folder`` with the suffix of an audio format, sorted; hidden files are left out.

    Files in formats that soundfile cannot read and folders that cannot be searched are included: opening them raises
    AudioError, so callers report them. Links to folders are followed, but every folder is searched only once.
    """
    found: list[pathlib.Path] = []
    searched = set()
    # Links are followed last, so that a folder that is also below ``folder`` itself is named without the link.
    starts = [os.fspath(folder)]
    while starts:
        for directory, subfolders, names in os.walk(
            starts.pop(0), onerror=lambda error: found.append(pathlib.Path(error.filename))
        ):
            status = os.stat(directory)
            if (status.st_dev, status.st_ino) in searched:
                subfolders.clear()
                continue
            searched.add((status.st_dev, status.st_ino))
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            below = [os.path.join(directory, name) for name in subfolders]
            starts += [path for path in below if os.path.islink(path)]
            for name in names:
                if not name.startswith(".") and pathlib.PurePath(name).suffix.lower() in ALL_SUFFIXES:
                    found.append(pathlib.Path(directory, name))
    return sorted(found)


def duration(path: str | os.PathLike) -> float:
    """Seconds of audio, from the header. Raises AudioError when the file cannot be opened as audio or is cut short."""
    with open_audio(path) as file:
        return file.frames / file.samplerate


def check_speech(path: str | os.PathLike, verify: bool = False) -> int:
    """Number of samples of a file that tasks and pretraining can read as it is: 16 kHz mono, at least 400 samples.

    Every command that reads a corpus uses this function to decide which files are usable. It reads only the header and
    the end of a FLAC file; with ``verify`` it decodes the whole file, except integer PCM in ``SIZED`` formats. Raises
    AudioError with the reason why the file cannot be used.
    """
    with open_audio(path) as file:
        check_format(file)
        if file.format == "FLAC":  # its header does not show whether the file was cut; a seek takes 0.1 ms
            check_end(file)
        checked = file.format in SIZED and file.subtype.startswith("PCM_")
        for _ in mono_blocks(file) if verify and not checked else ():
            pass
        return file.frames


def check_format(file: soundfile.SoundFile) -> None:
    """Raises AudioError unless the file is 16 kHz mono with at least 400 samples."""
    if file.samplerate != SAMPLE_RATE or file.channels != 1:
        raise AudioError(
            f"{file.samplerate} Hz with {file.channels} channel{'s' * (file.channels != 1)}; "
            f"expected {SAMPLE_RATE} Hz mono; {CONVERT}"
        )
    if file.frames < MIN_SAMPLES:
        raise AudioError(f"{file.frames} samples; at least {MIN_SAMPLES} are needed (25 ms)")


def check_end(file: soundfile.SoundFile) -> None:
    """Raises AudioError unless the last sample can be reached."""
    try:
        file.seek(file.frames - 1)
    except (soundfile.LibsndfileError, RuntimeError):
        raise AudioError(f"cut short: the last of the {file.frames} samples in its header is missing") from None
    file.seek(0)


def read_speech(path: str | os.PathLike) -> np.ndarray:
    """The wave (samples,), float32, of a file that ``check_speech`` accepts. Raises AudioError for any other file."""
    with open_audio(path) as file:
        check_format(file)
        return np.concatenate(list(mono_blocks(file)))


def load_speech(path: str | os.PathLike) -> np.ndarray:
    """``read_speech`` whose AudioError names the file, because in training no caller does."""
    with naming(path):
        return read_speech(path)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Puts the file's name before the reason of an AudioError."""
    try:
        yield
    except AudioError as error:
        raise AudioError(f"{printable(path)}: {error}") from None


def load_audio(path: str | os.PathLike) -> np.ndarray:
    """The wave (samples,), float32, 16 kHz: channels averaged, other rates resampled by soxr in high quality.

    Raises AudioError when the file is missing, empty, damaged or shorter than its header says.
    """
    with open_audio(path) as file:
        stream = None
        if file.samplerate != SAMPLE_RATE:
            stream = soxr.ResampleStream(file.samplerate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        blocks = mono_blocks(file)
        pieces = list(blocks) if stream is None else [stream.resample_chunk(block) for block in blocks]
        if stream is not None:
            pieces.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    wave = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    if not len(wave):
        raise AudioError("holds no samples")
    return wave


def open_audio(path: str | os.PathLike) -> soundfile.SoundFile:
    """The open file. Raises AudioError when it is missing, is not audio, or has fewer samples than its header says.

    Missing samples are detected here for WAV and its variants, AIFF, 8SVX, AU, W64, CAF, NIST, AVR, MAT4, MAT5, MPC2K
    and VOC, and for Ogg, also in its middle, unless the file was cut between two pages. For FLAC, SDS, and MP3 with a
    frame count in its header, they are detected when the samples are read (for FLAC in ``check_speech`` too). They
    cannot be detected in other MP3 files, IRCAM, PAF and PVF, which store no length.
    """
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        raise AudioError("its path is not UTF-8; rename it") from None
    if not os.path.exists(path):
        raise AudioError("a broken link" if os.path.islink(path) else "no such file")
    if os.path.isdir(path):
        raise AudioError(unsearchable(path))
    if not os.path.isfile(path):
        raise AudioError("a pipe, socket or device; expected a file")  # opening one could wait forever
    try:
        if not os.path.getsize(path):
            raise AudioError("an empty file")
        declared, present = sample_bytes(path)
        if declared > present and not is_placeholder(declared):
            raise AudioError(f"cut short: {present} of the {declared} bytes of samples that its header declares")
        if fault := ogg_fault(path):
            raise AudioError(f"damaged: {fault}")
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise AudioError(f"cannot be read as audio ({reason(error)}){conversion(path)}") from None
    if not MIN_FILE_RATE <= (rate := file.samplerate) <= MAX_FILE_RATE:
        file.close()
        raise AudioError(f"damaged: its header says {rate} Hz; expected {MIN_FILE_RATE} to {MAX_FILE_RATE} Hz")
    if lacks_frames(file):
        file.close()
        raise AudioError(f"cut short: it holds {file.frames} samples, fewer than its header declares")
    return file


def lacks_frames(file: soundfile.SoundFile) -> bool:
    """Whether libsndfile has corrected the length that a header declares, in the formats whose log shows it."""
    log = file.extra_info
    if file.format == "VOC":
        return LOGGED_CUT in log
    declared = LOGGED_FRAMES.findall(log) if file.format in ("AVR", "MAT4", "MAT5", "MPC2K") else []
    return bool(declared) and int(declared[-1]) > file.frames


def unsearchable(folder: str | os.PathLike) -> str:
    """The message for a path that is a folder; ``find_audio`` returns folders that it cannot search."""
    try:
        os.scandir(os.fspath(folder)).close()
    except OSError as error:
        return f"a folder that cannot be searched ({error.strerror})"
    return "a folder; expected a file"


def conversion(path: str | os.PathLike) -> str:
    """How to convert a file in a format that libsndfile cannot read; empty for other formats."""
    old = pathlib.Path(path)
    if old.suffix.lower() not in OTHER_SUFFIXES:
        return ""
    source, target = (shlex.quote(printable(name)) for name in (old.name, old.with_suffix(".wav").name))
    form = "-f s16le -ar RATE -ac CHANNELS " if old.suffix.lower() in HEADERLESS else ""
    return f"; convert it: ffmpeg {form}-i {source} -ac 1 -ar {SAMPLE_RATE} {target}"


def mono_blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """Yields the file in blocks (samples,), at the file's rate, with its channels averaged.

    Raises AudioError when it is damaged, ends earlier than its header says, or holds values that are not finite or
    far too large.
    """
    found = 0
    try:
        while len(block := file.read(int(BLOCK_SECONDS * file.samplerate), dtype="float32", always_2d=True)):
            found += len(block)
            peak = np.abs(block).max()
            if not np.isfinite(peak):
                raise AudioError("holds NaN or infinite samples")
            if peak > MAX_AMPLITUDE:
                raise AudioError(f"holds samples as large as {peak:.3g}; expected -1 to 1")
            yield block.mean(1) if file.channels > 1 else block[:, 0]
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(f"damaged ({reason(error)})") from None
    if found < file.frames:
        raise AudioError(f"damaged: {found} of the {file.frames} samples that its header declares can be read")


def reason(error: Exception) -> str:
    """The error message of libsndfile or the system, without the file's name."""
    words = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    words = words.strip().rstrip(".")
    return next((plain for text, plain in UNCLEAR.items() if text in words), words)
