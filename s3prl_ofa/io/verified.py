"""Decodes audio files to their end and remembers which are intact, so that each is decoded once by whichever command.

A record is a text file with a JSON list on each line: path, size in bytes, modification time in ns, length in samples.
Every command adds to the record in the user's cache folder; ``prepare`` also writes one beside its other files, for
whoever uses those. A file that has changed or moved since is decoded again. Only intact files are remembered: most
faults are found without decoding, and a single failure of a network file system must not condemn a file for good. A
record can be removed at any time; lines that cannot be read, such as one that was cut off by a kill, are skipped.
"""

import contextlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Iterable, Iterator

from s3prl_ofa.io.files import atomic_path, cache_folder
from s3prl_ofa.io.locks import InUse, NoLocks, locked
from s3prl_ofa.io.scan import Scan, each_in_threads, length_or_reason

logger = logging.getLogger(__name__)

RECORD = "verified_audio.jsonl"
SAVE_EVERY = 10.0  # seconds of decoding that a kill may lose

File = tuple[str, int, int]  # absolute path, bytes, ns
verdicts: dict[File, int | str] = {}  # in this process: samples of intact files, why others cannot be used


def verify_audio(
    paths: Iterable[pathlib.Path],
    jobs: int | None,
    what: str,
    prepared: pathlib.Path | None = None,
    again: bool = False,
) -> Scan:
    """The files that ``check_speech`` accepts when they are decoded to their end, and why it refuses the others.

    jobs, what: as in ``each_in_threads``. prepared: the output folder of ``prepare``, whose record counts too. again:
    also decode files that an earlier process found intact. About 1700 s of FLAC are decoded per second and core. While
    another process decodes, this one waits for its results.
    """
    files = {path: file_of(path) for path in paths}
    found: dict[pathlib.Path, int | str] = {}

    def unknown() -> list[pathlib.Path]:
        found.update({path: verdicts[file] for path, file in files.items() if file in verdicts})
        return [path for path in files if path not in found]

    if unknown() and not again:
        load_records(prepared)
    if unknown():
        with decoding_lock():
            if not again:
                load_records(None)  # what another process has found meanwhile
            found |= decode({path: files[path] for path in unknown()}, jobs, what)
    return Scan.of({path: found[path] for path in files})


def decode(files: dict[pathlib.Path, File | None], jobs: int | None, what: str) -> dict[pathlib.Path, int | str]:
    """The verdict on each file, by decoding it; intact files are recorded."""
    found: dict[pathlib.Path, int | str] = {}
    new: dict[File, int] = {}
    saved = time.monotonic()
    try:
        for path, verdict in each_in_threads(lambda path: length_or_reason(path, verify=True), files, jobs, what):
            found[path] = verdict
            if (file := files[path]) is not None:
                verdicts[file] = verdict
                if isinstance(verdict, int):
                    new[file] = verdict
            if time.monotonic() > saved + SAVE_EVERY:
                append(new)
                new, saved = {}, time.monotonic()
    finally:
        append(new)
    return found


def file_of(path: pathlib.Path) -> File | None:
    """What identifies the content of a file; None if it cannot be read."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def load_records(prepared: pathlib.Path | None) -> None:
    """Adds the content of the records to ``verdicts``."""
    for folder in (prepared, cache_folder()):
        if folder is not None:
            verdicts.update(read(folder / RECORD))


def read(record: pathlib.Path) -> dict[File, int]:
    """The samples of the files in a record; empty if there is none."""
    found: dict[File, int] = {}
    try:
        lines = record.read_bytes().split(b"\n")
    except OSError:
        return found
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, OverflowError, RecursionError):
            path, *numbers = json.loads(line)
            size, mtime_ns, samples = (int(number) for number in numbers)
            found[str(path), size, mtime_ns] = samples
    return found


def lines_of(files: dict[File, int]) -> str:
    return "".join(f"{json.dumps([*file, samples])}\n" for file, samples in files.items())


def append(files: dict[File, int]) -> None:
    """Adds to the record in the cache folder; without one that can be written, the next process decodes again."""
    record = cache_folder() / RECORD
    if not files:
        return
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with record.open("ab", buffering=0) as file:
            # begins a new line, because a killed process may have left half of one
            file.write(f"\n{lines_of(files)}".encode())
    except OSError as error:
        logger.warning("%s cannot be written (%s): the next command decodes audio again", record, error.strerror)


def save(prepared: pathlib.Path, paths: Iterable[pathlib.Path]) -> None:
    """Writes the record of ``prepared``: the verified files, and what it already holds about others."""
    files = {
        file: samples
        for path in paths
        if (file := file_of(path)) is not None and isinstance(samples := verdicts.get(file), int)
    }
    named = {path for path, _, _ in files}
    others = {file: samples for file, samples in read(prepared / RECORD).items() if file[0] not in named}
    with atomic_path(prepared / RECORD) as temporary:
        temporary.write_text(lines_of(others | files), "utf-8")


@contextlib.contextmanager
def decoding_lock() -> Iterator[None]:
    """Waits until no other process decodes; without locks, two may decode the same files."""
    lock = cache_folder() / f".{RECORD}.lock"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(NoLocks, OSError):
            try:
                stack.enter_context(locked(lock, wait=False))
            except InUse:
                logger.info("another process is decoding audio: waiting for its results")
                stack.enter_context(locked(lock, wait=True))
        yield
