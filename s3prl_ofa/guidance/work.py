"""Processes the utterances of manifests in parallel and writes their guidance."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from s3prl_ofa.errors import UsageError
from s3prl_ofa.guidance import layout
from s3prl_ofa.guidance.layout import GuidanceError, guidance_path, num_frames, read_manifest
from s3prl_ofa.io.files import atomic_path, printable
from s3prl_ofa.model import SAMPLE_RATE
from s3prl_ofa.output import tell
from s3prl_ofa.progress import Progress
from s3prl_ofa.signals import delayed_signals

LEFT_OUT = "left_out.tsv"
CHUNK = 16  # utterances per task of a process; fewer are not worth a process
SHOWN = 20  # utterances listed at the end; left_out.tsv lists all


@dataclasses.dataclass(frozen=True)
class Entry:
    """An utterance of a manifest: its path below the manifest's root, and its length."""

    root: pathlib.Path
    relative: str
    samples: int

    @property
    def path(self) -> pathlib.Path:
        return self.root / self.relative

    @property
    def stem(self) -> str:
        return pathlib.PurePosixPath(self.relative).stem


def read_entries(manifests: Sequence[pathlib.Path]) -> list[Entry]:
    """All utterances of the manifests. Raises UsageError for a bad manifest and for two with the same guidance file."""
    entries: dict[pathlib.Path, Entry] = {}
    for manifest in manifests:
        try:
            root, rows = read_manifest(manifest)
        except GuidanceError as error:
            raise UsageError(str(error)) from None
        for relative, samples in rows:
            entry = Entry(root, relative, samples)
            other = entries.setdefault(guidance_path("", relative), entry)
            if other != entry:
                raise UsageError(f"{manifest}: {entry.path} would have the guidance file of {other.path}; rename one")
    if not entries:
        raise UsageError(
            f"{', '.join(map(str, manifests))}: no utterances; expected lines of a path, a tab and a number of samples"
        )
    return list(entries.values())


def each(function: Callable[[Entry], Any], entries: Sequence[Entry], jobs: int, what: str) -> Iterator[Any]:
    """Yields ``function`` of every utterance, in order, from ``jobs`` processes, with a progress bar labeled ``what``.

    The function is sent to every process once, so it may hold large data.
    """
    jobs = min(jobs, len(entries) // CHUNK)
    results: Iterator[Any]
    with contextlib.ExitStack() as stack:
        if jobs <= 1:
            results = map(function, entries)
        else:
            # Spawned, because threads of torch and BLAS do not survive a fork.
            pool = concurrent.futures.ProcessPoolExecutor(
                jobs, multiprocessing.get_context("spawn"), start_process, (function,)
            )
            stack.callback(pool.shutdown, cancel_futures=True)
            with delayed_signals():  # a process that loses its parent while it starts prints a traceback
                results = pool.map(call, entries, chunksize=CHUNK)
        seconds = sum(entry.samples for entry in entries) / SAMPLE_RATE
        bar = stack.enter_context(Progress(seconds=seconds, desc=what))
        for entry, result in zip(entries, results, strict=True):
            bar.add_audio(entry.samples / SAMPLE_RATE)
            yield result


call_function: Callable[[Entry], Any]  # of this worker process


def start_process(function: Callable[[Any], Any]) -> None:
    """Initializes a worker process."""
    import torch

    global call_function
    call_function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    torch.set_num_threads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Ends this process when its parent is killed; otherwise it would wait forever for work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def call(entry: Entry) -> Any:
    return call_function(entry)


@dataclasses.dataclass(frozen=True)
class Write:
    """Segments one utterance and writes its guidance. force: remove that of an utterance that is left out."""

    make: Callable[[Entry], Tensor]  # gives boundaries (segments,)
    folder: pathlib.Path
    force: bool

    def __call__(self, entry: Entry) -> int | str:
        """The number of segments, 0 if they are there already, or the reason why the utterance is left out."""
        result = self.write(entry)
        if isinstance(result, str) and self.force:
            with contextlib.suppress(OSError):
                layout.remove(self.folder, entry.relative)
        return result

    def write(self, entry: Entry) -> int | str:
        frames = num_frames(entry.samples)
        if not frames:
            return f"too short: {entry.samples} samples, at least {layout.FRAMES.receptive_field} are needed"
        try:
            boundaries = self.make(entry)
            written = layout.write(self.folder, entry.relative, boundaries, frames)
        except UsageError:
            raise
        except (ValueError, RuntimeError) as error:  # RuntimeError: torch's errors, such as out of memory
            return " ".join(str(error).split())
        except OSError as error:
            # Of the errors of writing, only this concerns a single file.
            if error.errno != errno.ENAMETOOLONG:
                raise
            return "its name is too long for an output file"
        return written and len(boundaries)


def write_all(
    entries: list[Entry], make: Callable[[Entry], Tensor], folder: pathlib.Path, jobs: int, again: bool, force: bool
) -> int:
    """Writes what is missing, or with ``again`` what is missing or differs, and reports what was left out and why.

    force: remove earlier guidance of what is left out. Returns the exit status.
    """
    todo = [entry for entry in entries if again or force or not layout.is_written(folder, entry.relative)]
    results = list(zip(todo, each(Write(make, folder, force), todo, jobs, "guidance"), strict=True))
    done = [(entry, segments) for entry, segments in results if isinstance(segments, int) and segments]
    left_out = [(entry, reason) for entry, reason in results if isinstance(reason, str)]
    already = len(entries) - len(done) - len(left_out)
    line = f"{folder}: {len(done)} of {len(entries)} utterances written, {already} already done"
    if done:
        milliseconds = 1000 * sum(entry.samples for entry, _ in done) / SAMPLE_RATE
        line += f"; the mean segment is {milliseconds / sum(segments for _, segments in done):.1f} ms long"
    tell(line)
    report(folder, left_out)
    return 1 if left_out else 0


def report(folder: pathlib.Path, left_out: list[tuple[Entry, str]]) -> None:
    """Lists on stderr and in ``left_out.tsv`` the utterances without guidance, and why."""
    path = folder / LEFT_OUT
    path.unlink(missing_ok=True)
    if not left_out:
        return
    with atomic_path(path) as temporary:
        lines = [f"{printable(entry.relative)}\t{reason}\n" for entry, reason in left_out]
        temporary.write_text("".join(lines), "utf-8")
    for entry, reason in left_out[:SHOWN]:
        print(f"left out: {printable(entry.relative)}: {reason}", file=sys.stderr)
    print(f"{len(left_out)} utterances were left out; all of them are in {path}", file=sys.stderr)
