"""The lengths of many audio files, and the reasons why some cannot be used."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable

from tqdm import tqdm

from s3prl_ofa.io.audio import AudioError, check_speech


@dataclasses.dataclass(frozen=True)
class Scan:
    """samples: the length of every usable file. bad: for every other file, why it cannot be used."""

    samples: dict[pathlib.Path, int]
    bad: dict[pathlib.Path, str]


def length(path: str | os.PathLike, verify: bool = False) -> int:
    """``check_speech``, called once per file and process. Raises AudioError."""
    try:
        status = os.stat(path)
        key = os.fspath(path), status.st_mtime_ns, status.st_size
    except (OSError, ValueError):  # check_speech says what is wrong
        return check_speech(path, verify)
    return known_length(*key, verify)


@functools.cache
def known_length(path: str, mtime_ns: int, size: int, verify: bool) -> int:
    return check_speech(path, verify)


def length_or_reason(path: pathlib.Path, verify: bool) -> int | str:
    """Number of samples of a usable file, or the reason why it cannot be used."""
    try:
        return length(path, verify)
    except AudioError as error:
        return str(error)


def scan(paths: Iterable[pathlib.Path], jobs: int | None, what: str, verify: bool = False) -> Scan:
    """Checks files with ``jobs`` threads (None: one per core) and a progress bar labelled ``what``.

    Only headers are read, so most truncated compressed files are not noticed; ``verify`` decodes every file to its end.
    Threads are enough, because libsndfile runs without Python's lock, and work the same on every operating system.
    """
    paths = list(paths)
    with contextlib.ExitStack() as stack:
        pool = concurrent.futures.ThreadPoolExecutor(jobs or os.cpu_count() or 1)
        stack.callback(pool.shutdown, cancel_futures=True)  # Ctrl-C does not wait for all files
        results = pool.map(functools.partial(length_or_reason, verify=verify), paths)
        bar = tqdm(results, total=len(paths), desc=what, unit="file", dynamic_ncols=True, disable=None)
        found = list(zip(paths, bar, strict=True))
    return Scan(
        {path: result for path, result in found if isinstance(result, int)},
        {path: result for path, result in found if isinstance(result, str)},
    )
