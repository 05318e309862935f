"""The reference's guidance files: two tensors per utterance of a fairseq manifest that describe its segmentation.

``ROOT/alpha/NAME.pt`` (frames,) is 1 / length over each segment, so that it sums to 1 per segment;
``ROOT/boundaries/NAME.pt`` (segments,) is the 1-based index of each segment's last frame. NAME is the path in the
manifest without its last extension. Frames are those of the front end: 400 samples long, 320 samples apart.
"""

import io
import os
import pathlib

import torch
from torch import Tensor

from s3prl_ofa.checkpoint.safe_pickle import StoredTensor
from s3prl_ofa.checkpoint.torch_file import read_torch_file
from s3prl_ofa.errors import CheckpointError
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.model import SAMPLE_RATE, ModelConfig

ALPHA, BOUNDARIES = RESULTS = ("alpha", "boundaries")  # folders below ROOT
TEMPORARY = tuple(f"{name}/**/.*" for name in RESULTS)
MAX_FRAMES = 50 * 3600 * 24  # one day of speech
MAX_BYTES = 16 * MAX_FRAMES  # larger files are not opened
FRAMES = ModelConfig()


class GuidanceError(ValueError):
    """A guidance file or manifest cannot be used: one sentence that names the file and why."""


def num_frames(samples: int) -> int:
    """Number of frames of ``samples`` samples at 16 kHz, the length of alpha; 0 if they are too few for a frame."""
    return max(0, FRAMES.num_frames(samples))


def boundary_seconds(boundaries: Tensor) -> Tensor:
    """Boundaries (segments,) in seconds: halfway between the centers of a segment's last frame and the next frame."""
    return (FRAMES.hop * (boundaries.double() - 0.5) + FRAMES.receptive_field / 2) / SAMPLE_RATE


def guidance_path(root: str | os.PathLike, relative: str | os.PathLike) -> pathlib.Path:
    """The file of a manifest's entry; only the last extension is replaced: ROOT/v1.2/a/b.pt for "v1.2/a/b.flac"."""
    relative = pathlib.PurePosixPath(relative)
    return pathlib.Path(root, relative.parent, f"{relative.stem}.pt")


def read_alpha(root: str | os.PathLike, relative: str | os.PathLike) -> Tensor:
    """alpha (frames,) float32 of a manifest's entry; ``root`` is the folder "alpha". Raises GuidanceError."""
    path = guidance_path(root, relative)
    alpha = read_tensor(path)
    if not alpha.is_floating_point():
        raise GuidanceError(f"{path}: holds {alpha.dtype}, expected alpha as floating-point numbers")
    alpha = alpha.float()
    # NaN fails both comparisons
    if not bool(((alpha >= 0) & (alpha <= 1)).all()):
        raise GuidanceError(f"{path}: holds alpha from {alpha.min():g} to {alpha.max():g}, expected 0 to 1")
    return alpha


def read_boundaries(root: str | os.PathLike, relative: str | os.PathLike) -> Tensor:
    """Boundaries (segments,) int64 of a manifest's entry; ``root`` is the folder "boundaries". Raises GuidanceError."""
    path = guidance_path(root, relative)
    boundaries = read_tensor(path)
    if boundaries.dtype == torch.bool or boundaries.is_floating_point() or boundaries.is_complex():
        raise GuidanceError(f"{path}: holds {boundaries.dtype}, expected boundaries as integers")
    boundaries = boundaries.long()
    if boundaries[0] < 1 or not bool((boundaries[1:] > boundaries[:-1]).all()):
        raise GuidanceError(f"{path}: expected increasing boundaries from 1 on")
    return boundaries


def read_tensor(path: pathlib.Path) -> Tensor:
    """The one-dimensional tensor in a file; nothing in the file is run. Raises GuidanceError."""
    try:
        if not path.is_file():
            raise GuidanceError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        if path.stat().st_size > MAX_BYTES:
            raise GuidanceError(f"{path}: {path.stat().st_size} bytes, expected at most {MAX_BYTES}")
        stored = read_torch_file(path)
    except OSError as error:
        raise GuidanceError(f"{path}: cannot be read ({error.strerror or error})") from None
    except CheckpointError as error:
        raise GuidanceError(f"{path}: {error}; nothing in it was run") from None
    if not isinstance(stored, StoredTensor):
        raise GuidanceError(f"{path}: holds a {type(stored).__name__}, expected a plain tensor")
    tensor = stored.tensor().clone()  # so that the file does not stay open
    # A view of a single number can have any length.
    if tensor.dim() != 1 or not 1 <= len(tensor) <= MAX_FRAMES:
        raise GuidanceError(f"{path}: holds shape {tuple(tensor.shape)}, expected (1 to {MAX_FRAMES},)")
    return tensor


def write(folder: str | os.PathLike, relative: str | os.PathLike, boundaries: Tensor, frames: int) -> bool:
    """Writes both files of an entry below ``folder``, each completely or not at all; False if they are there already.

    boundaries: (segments,), see ``alpha_of``. The same content gives the same bytes. Raises GuidanceError, OSError.
    """
    boundaries = boundaries.long().clone()
    contents = saved(boundaries), saved(alpha_of(boundaries, frames))
    target, other = (guidance_path(pathlib.Path(folder, name), relative) for name in (BOUNDARIES, ALPHA))
    if is_written(folder, relative) and contents == (target.read_bytes(), other.read_bytes()):
        return False
    with atomic_path(target) as new_boundaries, atomic_path(other) as new_alpha:
        new_boundaries.write_bytes(contents[0])
        new_alpha.write_bytes(contents[1])
        target.unlink(missing_ok=True)  # after a kill between the two, the pair must not look complete
    return True


def remove(folder: str | os.PathLike, relative: str | os.PathLike) -> None:
    """Removes both files of an entry, where they exist."""
    for name in (BOUNDARIES, ALPHA):
        guidance_path(pathlib.Path(folder, name), relative).unlink(missing_ok=True)


def saved(tensor: Tensor) -> bytes:
    """The bytes of ``torch.save``; when it saves to a file, they contain the file's name, which is random at first."""
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return buffer.getvalue()


def is_written(folder: str | os.PathLike, relative: str | os.PathLike) -> bool:
    """Whether both files of an entry exist."""
    return all(guidance_path(pathlib.Path(folder, name), relative).is_file() for name in (ALPHA, BOUNDARIES))


def alpha_of(boundaries: Tensor, frames: int) -> Tensor:
    """alpha (frames,) float32: 1 / length over each segment, and zero after the last boundary.

    boundaries: (segments,) increasing integers from 1 to ``frames``. Raises GuidanceError for others.
    """
    lengths = torch.diff(boundaries, prepend=boundaries.new_zeros(1))
    if not len(boundaries) or int(lengths.min()) < 1 or int(boundaries[-1]) > frames:
        found = f"{len(boundaries)} from {int(boundaries[0])} to {int(boundaries[-1])}" if len(boundaries) else "none"
        raise GuidanceError(f"boundaries must increase and lie in 1 to {frames} (frames), found {found}")
    alpha = torch.zeros(frames)
    alpha[: int(boundaries[-1])] = torch.repeat_interleave(1.0 / lengths, lengths)
    return alpha


def read_manifest(path: str | os.PathLike) -> tuple[pathlib.Path, list[tuple[str, int]]]:
    """A fairseq wav2vec manifest: the root folder, and (path below it, number of samples) of every utterance.

    Raises GuidanceError naming the file and the invalid line.
    """
    path = pathlib.Path(path)
    try:
        lines = path.read_text("utf-8").split("\n")
    except OSError as error:
        raise GuidanceError(f"{path}: cannot be read ({error.strerror or error}); expected a manifest") from None
    except UnicodeDecodeError:
        raise GuidanceError(f"{path}: not UTF-8 text; expected a manifest") from None
    if not lines[-1]:
        lines.pop()
    if not lines or not lines[0].strip() or "\t" in lines[0]:
        raise GuidanceError(f"{path}, line 1: expected the folder of the audio, found {(lines or [''])[0][:80]!r}")
    return pathlib.Path(lines[0].strip()), [
        manifest_entry(line, f"{path}, line {number}") for number, line in enumerate(lines[1:], 2)
    ]


def manifest_entry(line: str, where: str) -> tuple[str, int]:
    """(path, samples) of a line. Raises GuidanceError."""
    relative, _, samples = line.strip().partition("\t")
    if not samples.isdecimal() or not samples.isascii() or int(samples) < 1:
        raise GuidanceError(f"{where}: expected a path, a tab and a number of samples, found {line[:80]!r}")
    # The guidance files would be written outside their folder.
    if relative.startswith("/") or ".." in pathlib.PurePosixPath(relative).parts or not pathlib.PurePath(relative).name:
        raise GuidanceError(f"{where}: expected a path below the manifest's folder, found {relative!r}")
    return relative, int(samples)
