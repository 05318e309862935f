"""Reads audio ahead of the model and writes features behind it, in threads.

Threads are enough: libsndfile, soxr and file systems run without Python's lock.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from s3prl_ofa.extract.inputs import Utterance, make_batches
from s3prl_ofa.io.audio import AudioError
from s3prl_ofa.progress import Progress

READERS = min(16, os.cpu_count() or 1)
AHEAD = 2  # batches that are being read, or have been, while the model works on another
BEHIND = 2  # batches that are being written or wait for it

ItemT = TypeVar("ItemT")
ReadT = TypeVar("ReadT")


def read_ahead(
    read: Callable[[ItemT], ReadT], batches: Iterable[list[ItemT]]
) -> Generator[tuple[list[ItemT], list["Future[ReadT]"]], None, None]:
    """Yields each batch with the futures of ``read(item)``, one per item, while the next batches are read."""
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(READERS)
        stack.callback(pool.shutdown, cancel_futures=True)  # Ctrl-C does not wait for whole batches
        waiting: deque[tuple[list[ItemT], list[Future[ReadT]]]] = deque()
        for batch in batches:
            waiting.append((batch, [pool.submit(read, item) for item in batch]))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


def loaded_batches(
    utterances: list[tuple[Utterance, float]],
    batch_seconds: float,
    load: Callable[[Utterance], ReadT],
    fail: Callable[[Utterance, str], None],
    what: str,
) -> Generator[list[tuple[Utterance, ReadT]], None, None]:
    """Yields (utterance, wave) pairs in batches, read ahead from (utterance, seconds) pairs, with a progress bar.

    load: reads a wave, in a thread. fail: called with the reason for each utterance that raises an AudioError. what:
    the label of the bar.
    """
    total = sum(seconds for _, seconds in utterances)
    batches = read_ahead(lambda pair: load(pair[0]), make_batches(utterances, batch_seconds))
    with Progress(seconds=total, desc=what) as bar, contextlib.closing(batches):
        for batch, waves in batches:
            loaded = []
            for (utterance, _), wave in zip(batch, waves, strict=True):
                try:
                    loaded.append((utterance, wave.result()))
                except AudioError as error:
                    fail(utterance, str(error))
            yield loaded
            bar.add_audio(sum(seconds for _, seconds in batch))


@contextlib.contextmanager
def write_behind() -> Iterator[Callable[..., None]]:
    """Yields ``call(function, *arguments)``, which calls functions in a background thread, one after another.

    ``call`` waits for room. It raises the error of an earlier call, as does the end of the block. If the block raises,
    calls that have not begun are dropped.
    """
    unfinished: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1) as pool:

        def call(function: Callable[..., Any], *arguments: Any) -> None:
            while unfinished and (unfinished[0].done() or len(unfinished) >= BEHIND):
                unfinished.popleft().result()
            unfinished.append(pool.submit(function, *arguments))

        try:
            yield call
            while unfinished:
                unfinished.popleft().result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
