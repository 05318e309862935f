"""Many audio files at once: each in a thread, with a progress bar, and the reasons why some cannot be used."""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from s3prl_ofa.io.audio import SAMPLE_RATE, AudioError, check_speech
from s3prl_ofa.progress import Progress

ResultT = TypeVar("ResultT", bound=float | str)


@dataclasses.dataclass(frozen=True)
class Scan:
    """samples: the length of every usable file. bad: for every other file, why it cannot be used."""

    samples: dict[pathlib.Path, int]
    bad: dict[pathlib.Path, str]

    @classmethod
    def of(cls, found: dict[pathlib.Path, int | str]) -> "Scan":
        return cls(
            {path: result for path, result in found.items() if isinstance(result, int)},
            {path: result for path, result in found.items() if isinstance(result, str)},
        )


def length_or_reason(path: pathlib.Path, verify: bool = False) -> int | str:
    """Number of samples of a usable file, or the reason why it cannot be used; see ``check_speech``."""
    try:
        return check_speech(path, verify)
    except AudioError as error:
        return str(error)


def each_in_threads(
    function: Callable[[pathlib.Path], ResultT], paths: Iterable[pathlib.Path], jobs: int | None, what: str
) -> Iterator[tuple[pathlib.Path, ResultT]]:
    """Yields each path with ``function(path)``, in order, computed by ``jobs`` threads (None: one per core).

    function: gives the samples (int) of a usable file, or why it cannot be used. what: the label of the progress bar.

    Threads are enough, because libsndfile runs without Python's lock, and work the same on every operating system.
    """
    paths = list(paths)
    with contextlib.ExitStack() as stack:
        pool = concurrent.futures.ThreadPoolExecutor(jobs or os.cpu_count() or 1)
        stack.callback(pool.shutdown, cancel_futures=True)  # Ctrl-C does not wait for all files
        results = pool.map(function, paths)
        bar = stack.enter_context(Progress(results, total=len(paths), desc=what, unit="file"))
        for path, result in zip(paths, bar, strict=True):
            if isinstance(result, int):
                bar.add_audio(result / SAMPLE_RATE)
            yield path, result


def scan(paths: Iterable[pathlib.Path], jobs: int | None, what: str) -> Scan:
    """Checks files by their headers, see ``each_in_threads``; ``verified.verify_audio`` decodes them."""
    return Scan.of(dict(each_in_threads(length_or_reason, paths, jobs, what)))
