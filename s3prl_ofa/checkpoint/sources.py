"""Finds a checkpoint: a bundled one, a local file or folder, a repository on the Hugging Face Hub, or a URL."""

import hashlib
import http.client
import os
import pathlib
import re
import urllib.parse
import urllib.request

from s3prl_ofa.checkpoint.huggingface import CONFIG, PREPROCESSOR, PROCESSOR, WEIGHTS
from s3prl_ofa.errors import CheckpointError
from s3prl_ofa.io.files import atomic_path, cache_folder
from s3prl_ofa.progress import Progress
from s3prl_ofa.resources import PACKAGE

# The checkpoints that come with this package, by name.
BUNDLED: dict[str | os.PathLike, pathlib.Path] = {"tiny": PACKAGE / "demo" / "tiny.safetensors"}
URL_SCHEMES = ("http://", "https://")
HUB_SCHEME = "hf://"
REPOSITORY = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?", re.A)
FILE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")  # user/model.pt is a file that is missing
# What is downloaded from a repository besides its configuration: the first of these sets that it has. Not all
# safetensors at once, because some repositories hold a thousand adapters.
CONFIGURATION = (CONFIG, PREPROCESSOR, PROCESSOR)
WEIGHT_PATTERNS = (
    (WEIGHTS, f"{WEIGHTS}.index.json", "model-*-of-*.safetensors"),
    ("*.safetensors",),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)


def checkpoint_path(source: str | os.PathLike, refresh: bool = False) -> pathlib.Path:
    """The file or folder of a checkpoint, downloaded if it is remote and not yet cached.

    source: the name of a bundled checkpoint (``./NAME`` is never one); a file or folder, which may begin with ``~``; a
        repository on the Hugging Face Hub, as ``user/name``, ``user/name@revision`` or ``hf://user/name@revision``; or
        a URL. A path, and a string that names an existing file or folder, is never a repository.
    refresh: download a URL again. The Hub's cache is always compared with the Hub, unless that cannot be reached.

    Raises CheckpointError if it cannot be downloaded. A path need not exist.
    """
    if source in BUNDLED:
        return BUNDLED[source]
    if not is_remote(source):
        return pathlib.Path(source).expanduser()
    url = os.fspath(source)
    return downloaded(url, refresh) if url.startswith(URL_SCHEMES) else snapshot(url)


def is_remote(source: str | os.PathLike) -> bool:
    """Whether ``source`` is a URL or a repository on the Hugging Face Hub."""
    if not isinstance(source, str) or source in BUNDLED:
        return False
    if source.startswith((*URL_SCHEMES, HUB_SCHEME)):
        return True
    path = pathlib.Path(source)
    # If the folder exists here, it is a missing file rather than a repository.
    looks_local = path.exists() or path.parent.is_dir() or path.suffix in FILE_SUFFIXES
    return REPOSITORY.fullmatch(source) is not None and not looks_local


def snapshot(source: str) -> pathlib.Path:
    """The folder of a repository in the Hub's cache, with its configuration and weights."""
    from huggingface_hub import errors, snapshot_download

    found = REPOSITORY.fullmatch(source.removeprefix(HUB_SCHEME))
    if found is None:
        raise CheckpointError(f"{source}: expected a repository of the Hugging Face Hub, hf://USER/NAME@REVISION")
    try:
        for patterns in WEIGHT_PATTERNS:
            allowed = [*CONFIGURATION, *patterns]
            folder = pathlib.Path(snapshot_download(found["name"], revision=found["revision"], allow_patterns=allowed))
            if any(path for pattern in patterns for path in folder.glob(pattern)):
                return folder
    except (OSError, ValueError, errors.HTTPError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        here = "" if source.startswith(HUB_SCHEME) else "there is no such file or folder, and "
        raise CheckpointError(f"{source}: {here}the Hugging Face Hub does not provide it ({reason})") from error
    raise CheckpointError(f"{source}: this repository has no weights; expected {WEIGHTS} or pytorch_model.bin")


def downloaded(url: str, refresh: bool) -> pathlib.Path:
    """The file behind a URL, in ``~/.cache/s3prl_ofa/checkpoints``."""
    try:
        name = pathlib.PurePosixPath(urllib.parse.urlsplit(url).path).name or "checkpoint"
        path = cache_folder() / "checkpoints" / hashlib.sha256(url.encode()).hexdigest()[:16] / name
        if refresh or not path.is_file():
            with atomic_path(path) as temporary, Progress(unit="B", unit_scale=True, desc=name) as bar:

                def advance(blocks: int, size: int, total: int) -> None:
                    bar.total = total if total > 0 else None
                    bar.update(blocks * size - bar.n)

                urllib.request.urlretrieve(url, temporary, advance)  # which notices a connection that was cut
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CheckpointError(f"{url} cannot be downloaded ({error})") from error
    return path
