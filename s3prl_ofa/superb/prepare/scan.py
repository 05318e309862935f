"""Measuring many audio files at once, and naming those that cannot be used."""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import pathlib
from collections.abc import Iterable

from tqdm import tqdm

from s3prl_ofa.audio import AudioError, check_speech

CHUNK = 64  # files a process takes at a time


@dataclasses.dataclass(frozen=True)
class Scan:
    """samples: the length of every usable file; bad: why each other one is not."""

    samples: dict[pathlib.Path, int]
    bad: dict[pathlib.Path, str]


def measure(path: pathlib.Path) -> int | str:
    """Samples of a 16 kHz mono file by its header, or in words why it is of no use to S3PRL and fairseq."""
    try:
        return check_speech(path)
    except AudioError as error:
        return str(error)


def scan(paths: Iterable[pathlib.Path], jobs: int | None, what: str) -> Scan:
    """Measures files with ``jobs`` processes (all cores if None), with a progress bar that says ``what``.

    Only headers are read: a compressed file that is cut off further on is not noticed.
    """
    paths = list(paths)
    bar = functools.partial(tqdm, total=len(paths), desc=what, unit="file", dynamic_ncols=True)
    jobs = min(jobs or os.cpu_count() or 1, len(paths) // CHUNK)
    if jobs <= 1:
        results = list(bar(map(measure, paths)))
    else:
        # forked, because a fresh interpreter would take longer to import torch than to read the headers
        context = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
            results = list(bar(pool.map(measure, paths, chunksize=CHUNK)))
    found = list(zip(paths, results, strict=True))
    return Scan(
        {path: result for path, result in found if isinstance(result, int)},
        {path: result for path, result in found if isinstance(result, str)},
    )
