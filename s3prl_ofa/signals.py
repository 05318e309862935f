"""Makes SIGTERM, which Slurm, systemd and ``kill`` send, end a command as Ctrl-C does.

Only the command line handles signals; used as a library, the package leaves them alone.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNAL_STATUS = 128  # plus the signal's number: a shell's exit status of a process that the signal ended
AGAIN_SECONDS = 0.1


class Terminated(KeyboardInterrupt):
    """SIGTERM was received. A KeyboardInterrupt, so that whatever cleans up after Ctrl-C also does after SIGTERM."""


def in_main_thread() -> bool:
    """Whether signal handlers can be set: Python allows it only in the main thread."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def termination() -> Iterator[list[int]]:
    """Raises Terminated for every SIGTERM within the block; yields the list of the signals received so far.

    A handler that is already set, as by submitit on a cluster, is kept. Python drops an exception that is raised in the
    callback of a weak reference or in ``__del__``, of which there are many when a model is freed: then the signal is
    sent again.
    """
    seen: list[int] = []
    timers: list[threading.Timer] = []

    def end(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise Terminated

    def dropped(found: "sys.UnraisableHookArgs") -> None:
        if not isinstance(found.exc_value, Terminated):
            return hook(found)
        timers.append(threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGTERM)))
        timers[-1].start()

    before, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    if not in_main_thread() or before is not signal.SIG_DFL:
        yield seen
        return
    signal.signal(signal.SIGTERM, end)
    sys.unraisablehook = dropped
    try:
        yield seen
    finally:
        for timer in timers:
            timer.cancel()
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def delayed_signals() -> Iterator[None]:
    """Delays Ctrl-C and SIGTERM to the end of the block, so that a process started in it is recorded first."""
    came: list[tuple[int, FrameType | None]] = []
    if not in_main_thread():
        yield
        return
    handlers: dict[int, Callable[[int, FrameType | None], Any]] = {
        number: handler for number in (signal.SIGINT, signal.SIGTERM) if callable(handler := signal.getsignal(number))
    }
    for number in handlers:
        signal.signal(number, lambda *signalled: came.append(signalled))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in came[:1]:
            handlers[number](number, frame)


def wait_for(process: subprocess.Popen) -> int:
    """Waits for ``process`` and returns its exit status. An interrupt terminates it; a second one stops waiting."""
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
