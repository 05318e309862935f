"""What a process that is told to end does: SIGTERM, which Slurm, systemd and ``kill`` send, ends it as Ctrl-C does.

Only a command line that runs here takes signals; used as a library, the package leaves them to its user.
"""

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator
from types import FrameType

SHELL = 128  # what shells add to the number of the signal that ended a process


class Terminated(KeyboardInterrupt):
    """SIGTERM came. A KeyboardInterrupt, so that all that ends in order at Ctrl-C does so at SIGTERM."""


def in_main_thread() -> bool:
    """Python gives handlers to no other thread."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def termination(replace: bool = False) -> Iterator[list[int]]:
    """SIGTERM raises Terminated in the block, again each time it comes; gives a list that then holds its number.

    A handler that a host has set already, as submitit does on a cluster, stays, unless ``replace`` is set.
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
    """Ctrl-C and SIGTERM wait for the end of the block: a process that is started in it is known before they count."""
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
    """Its exit status. An interrupt of this process ends that one too, and its end is waited for; a second interrupt
    does not wait."""
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
