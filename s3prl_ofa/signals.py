"""SIGTERM, which Slurm, systemd and ``kill`` send, ends a command as Ctrl-C does.

Only the command line handles signals; used as a library, the package leaves them to its user.
"""

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator
from types import FrameType

SIGNAL_STATUS = 128  # a shell's exit status for a process that a signal ended is this plus the signal's number


class Terminated(KeyboardInterrupt):
    """SIGTERM was received. A KeyboardInterrupt, so that whatever cleans up at Ctrl-C does so at SIGTERM too."""


def in_main_thread() -> bool:
    """Python allows no other thread to set signal handlers."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def termination(replace: bool = False) -> Iterator[list[int]]:
    """Every SIGTERM raises Terminated in the block; yields a list to which the signal's number is added each time.

    A handler that is already set, as submitit does on a cluster, is kept unless ``replace`` is true.
    """
    seen: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise Terminated

    before = signal.getsignal(signal.SIGTERM)
    if not in_main_thread() or not (replace or before is signal.SIG_DFL):
        yield seen
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """Delays Ctrl-C and SIGTERM to the end of the block, so that a process started in it is recorded first."""
    came: list[tuple[int, FrameType | None]] = []
    if not in_main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
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
    """The exit status of ``process``. An interrupt terminates it too and waits for its end; a second interrupt does
    not wait."""
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
