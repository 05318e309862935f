"""What S3PRL 0.4.18 needs and current versions of torch, torchaudio and huggingface_hub lack.

S3PRL has been broken on them since the end of 2025 (https://github.com/s3prl/s3prl/issues/575). Each shim checks
whether it is needed, patches modules in memory, and returns whether it did so; site-packages stays as it is.
"""

import collections
import contextlib
import importlib
import importlib.machinery
import importlib.util
import logging
import os
import sys
import types
from typing import Any, BinaryIO

import numpy as np
import soundfile
import torch
from torch import Tensor

from s3prl_ofa.checkpoint.safe_loading import namespace_in_checkpoints
from s3prl_ofa.io import audio
from s3prl_ofa.io.audio import load_speech  # which a run with a feature cache replaces here
from s3prl_ofa.io.files import printable
from s3prl_ofa.superb.compat.sox_effects import EFFECTS, apply_effects_file, apply_effects_tensor

logger = logging.getLogger(__name__)

# what torchaudio.info returned
AudioInfo = collections.namedtuple("AudioInfo", "sample_rate num_frames num_channels bits_per_sample encoding")
ISSUE = "https://github.com/s3prl/s3prl/issues/575"
# soundfile's subtypes as the encodings and bits per sample of torchaudio.info; all others are "UNKNOWN", 0
ENCODINGS = {"PCM_U8": ("PCM_U", 8), "FLOAT": ("PCM_F", 32), "DOUBLE": ("PCM_F", 64), "MPEG_LAYER_III": ("MP3", 0)}
ENCODINGS |= {f"PCM_{bits}": ("PCM_S", int(bits.lstrip("S"))) for bits in ("S8", "16", "24", "32")}
ENCODINGS |= {"ULAW": ("ULAW", 8), "ALAW": ("ALAW", 8), "VORBIS": ("VORBIS", 0), "OPUS": ("OPUS", 0)}


class ModuleOverlay:
    """A module with other values for some of its names, as seen by one other module."""

    def __init__(self, module: Any, **values: Any) -> None:
        self.__dict__.update(values, overlaid=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.overlaid, name)


class Removed:
    """Placeholder for a name that a library has dropped: it can be imported, but raises an error when it is used."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{self.name} no longer exists in the installed version, but S3PRL needs it here ({ISSUE})")

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # which Python looks up when it copies or inspects
            raise AttributeError(attribute)
        return self()


def stub_module(name: str, **names: Any) -> types.ModuleType:
    """Creates a module with these names in it, in sys.modules and in its parent package."""
    module = types.ModuleType(name, f"Placeholder for {name}, which the installed version lacks ({ISSUE})")
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
    vars(module).update(names)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)
    return module


def removed(module: str, *names: str) -> dict[str, Removed]:
    return {name: Removed(f"{module}.{name}") for name in names}


def add_missing(module: types.ModuleType | type, **values: Any) -> bool:
    """Sets those names that the module or class lacks, and returns whether there were any."""
    missing = {name: value for name, value in values.items() if not hasattr(module, name)}
    for name, value in missing.items():
        setattr(module, name, value)
    return bool(missing)


def forget_modules(package: str) -> None:
    """Removes what a failed import left in sys.modules."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]


def torchaudio_import() -> bool:
    """torchaudio's native extension may not match torch; S3PRL does not need it.

    If it was built for another CUDA version than torch (torchaudio's last wheel is for CUDA 13.0, torch 2.15 for 13.2),
    it raises an error on import, but works if torch's version is hidden from it. If it was built for CUDA and torch was
    not, its libraries cannot be loaded: it is imported without them; features, resampling and filters still work.
    """
    try:
        importlib.import_module("torchaudio")
        return False
    except RuntimeError as error:
        if "CUDA version" not in str(error):
            raise
        forget_modules("torchaudio")
        version, torch.version.cuda = torch.version.cuda, None
        try:
            importlib.import_module("torchaudio")
        finally:
            torch.version.cuda = version
    except OSError:
        forget_modules("torchaudio")
        absent = {"_IS_TORCHAUDIO_EXT_AVAILABLE": False, "_IS_ALIGN_AVAILABLE": False}
        extension = stub_module("torchaudio._extension", **absent, fail_if_no_align=lambda function: function)
        importlib.import_module("torchaudio")._extension = extension
    return True


def torchaudio_names() -> bool:
    """torchaudio 2.9 dropped what S3PRL calls on import (``set_audio_backend``; there is only one backend now), calls
    for lengths (``info``), or uses in some tasks (``sox_effects``, which earlier versions have but need libsox for)."""
    import torchaudio

    needs_effects = not sox_works(torchaudio)
    if needs_effects:
        effects = {function.__name__: function for function in (apply_effects_file, apply_effects_tensor)}
        stub_module("torchaudio.sox_effects", effect_names=lambda: list(EFFECTS), **effects)
    return add_missing(torchaudio, set_audio_backend=lambda backend: None, info=audio_info) or needs_effects


def sox_works(torchaudio: types.ModuleType) -> bool:
    """Whether torchaudio has ``sox_effects`` and finds libsox, or ours are in their place."""
    with contextlib.suppress(AttributeError, OSError, ImportError, RuntimeError):
        torchaudio.sox_effects.effect_names()
        return True
    return False


def torchaudio_load() -> bool:
    """Since 2.9 ``torchaudio.load`` needs TorchCodec and FFmpeg; soundfile reads all formats that the tasks use."""
    import torchaudio

    if torchaudio.load is load_audio or not hasattr(torchaudio, "load_with_torchcodec") or torchcodec_works():
        return False
    torchaudio.load = load_audio
    return True


def huggingface_hub_names() -> bool:
    """huggingface_hub 1.0 dropped ``HfFolder`` and ``Repository``, which S3PRL imports and uses only for uploads."""
    import huggingface_hub

    return add_missing(huggingface_hub, **removed("huggingface_hub", "HfFolder", "Repository"))


def pkg_resources_module() -> bool:
    """Newer setuptools have no ``pkg_resources``; ``dcase_util``, which ``s3prl.problem`` uses, imports it."""
    if importlib.util.find_spec("pkg_resources") is not None or importlib.util.find_spec("dcase_util") is None:
        return False
    names = ("require", "get_distribution", "parse_requirements", "resource_filename")
    stub_module("pkg_resources", **removed("pkg_resources", *names))
    return True


SHIMS = (
    torchaudio_import,
    torchaudio_names,
    torchaudio_load,
    huggingface_hub_names,
    namespace_in_checkpoints,
    pkg_resources_module,
)


def apply_shims() -> list[str]:
    """Applies the shims that are needed and not applied yet, and returns their names."""
    applied = [shim.__name__ for shim in SHIMS if shim()]
    if applied:
        logger.debug("S3PRL on this stack needs %s (%s)", ", ".join(applied), ISSUE)
    return applied


def torchcodec_works() -> bool:
    """Whether TorchCodec is installed and finds FFmpeg."""
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        importlib.import_module("torchcodec.decoders")
        return True
    return False


def load_audio(
    uri: str | os.PathLike | BinaryIO,
    frame_offset: int = 0,
    num_frames: int = -1,
    normalize: bool = True,
    channels_first: bool = True,
    **ignored: Any,
) -> tuple[Tensor, int]:
    """``torchaudio.load`` by soundfile: a wave (channels, samples), or (samples, channels), and its sampling rate.

    float32 in [-1, 1]; with ``normalize=False``, 16-bit files stay int16 and 24- and 32-bit ones become int32, as in
    torchaudio 2.8. ``frame_offset`` and ``num_frames`` (-1: to the end) are samples per channel. Raises AudioError
    naming the file if it is damaged, missing or truncated. Any rate, number of channels and length is accepted, because
    S3PRL's tasks resample by themselves. ignored: format, buffer_size, backend.
    """
    try:
        with soundfile.SoundFile(uri) if hasattr(uri, "read") else audio.open_audio(uri) as file:
            integer = {"PCM_16": "int16", "PCM_24": "int32", "PCM_32": "int32"}.get(file.subtype)
            start = file.seek(min(frame_offset, file.frames))
            rest = file.frames - start
            expected = rest if num_frames < 0 else min(num_frames, rest)
            wave = file.read(num_frames, dtype="float32" if normalize or integer is None else integer, always_2d=True)
            sample_rate = file.samplerate
        if len(wave) < expected:
            raise audio.AudioError(f"damaged: {len(wave)} of {expected} samples can be read")
    except (audio.AudioError, soundfile.LibsndfileError) as error:
        raise audio.AudioError(f"{uri if hasattr(uri, 'read') else printable(uri)}: {audio.reason(error)}") from None
    tensor = torch.from_numpy(wave)
    return (tensor.t().contiguous() if channels_first else tensor), sample_rate


# The functions below patch the module that they are called with, as soon as it has been imported.


def pandas_iteritems(pandas: types.ModuleType) -> None:
    """pandas 2 dropped ``iteritems``, with which S3PRL's newer corpora read tables."""
    for kind in (pandas.Series, pandas.DataFrame):
        add_missing(kind, iteritems=kind.items)


def cpu_beside_cuda(runner: types.ModuleType) -> None:
    """Where there is a GPU, S3PRL's runner selects ``--device`` as a CUDA device, which fails for ``--device cpu``."""
    if torch.cuda.is_available():
        runner.torch = ModuleOverlay(runner.torch, cuda=ModuleOverlay(torch.cuda, device=cuda_device))


def cuda_device(device: str | int | torch.device) -> contextlib.AbstractContextManager:
    """``torch.cuda.device``; for the CPU it selects nothing."""
    is_cpu = not isinstance(device, int) and torch.device(device).type == "cpu"
    return contextlib.nullcontext() if is_cpu else torch.cuda.device(device)


def speech_loader(dataset: types.ModuleType) -> None:
    """Makes S3PRL's datasets of some tasks load audio with ``load_checked``; others keep ``torchaudio.load``.

    They take whatever ``torchaudio.load`` returns for 16 kHz mono: channels would be concatenated, other rates played
    at the wrong speed, and errors would not name the file.
    """
    dataset.torchaudio = ModuleOverlay(dataset.torchaudio, load=load_checked)


def recording_reader(dataset: types.ModuleType) -> None:
    """Makes S3PRL's diarization read recordings with ``read_piece``; its own reader accepts any rate, at which the
    labels would not fit."""
    dataset.KaldiData._load_wav = read_piece


def read_piece(_: Any, path: str, start: int = 0, end: int | None = None) -> tuple[np.ndarray, int]:
    """Samples ``start`` to ``end`` of a recording (samples,), float32, and 16,000. Raises AudioError naming the file
    unless it is 16 kHz mono.

    The last piece of a recording is padded with silence if it is too short for a frame of the upstream.
    """
    with audio.naming(path), audio.open_audio(path) as file:
        audio.check_format(file)
        file.seek(start)
        wave = file.read(-1 if end is None else end - start, dtype="float32")
        return np.pad(wave, (0, max(0, audio.MIN_SAMPLES - len(wave)))), audio.SAMPLE_RATE


def load_checked(path: str | os.PathLike) -> tuple[Tensor, int]:
    """A wave (1, samples), float32, and 16,000. Raises AudioError naming the file unless it is 16 kHz mono, has 400
    samples or more and can be read to its end."""
    return torch.from_numpy(load_speech(path))[None], audio.SAMPLE_RATE


def audio_info(uri: str | os.PathLike | BinaryIO, *args: Any, **kwargs: Any) -> AudioInfo:
    """``torchaudio.info`` by soundfile; further arguments (format, backend) are ignored."""
    info = soundfile.info(uri if hasattr(uri, "read") else os.fspath(uri))
    encoding, bits = ENCODINGS.get(info.subtype, ("UNKNOWN", 0))
    if info.format == "FLAC":
        encoding = "FLAC"
    return AudioInfo(info.samplerate, info.frames, info.channels, bits, encoding)
