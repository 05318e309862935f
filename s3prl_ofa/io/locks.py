"""File locks that are released when their holder ends, however it is killed."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import IO

from s3prl_ofa.errors import UsageError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

HELD: set[IO[str]] = set()


def close_in_child() -> None:
    """A forked data worker outlives a killed parent by some seconds and must not keep its locks."""
    for file in HELD:
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=close_in_child)


class InUse(Exception):
    """Another process holds the lock."""


class NoLocks(UsageError):
    """The file system or the operating system has no locks."""


@contextlib.contextmanager
def locked(path: pathlib.Path, wait: bool, shared: bool = False, remove: bool = False) -> Iterator[IO[str]]:
    """Locks the file ``path`` and yields it: a process that inherits the open file holds the lock as well.

    wait: wait for another holder instead of raising InUse. shared: allow other shared holders. remove: delete the file
    when it is released. Raises NoLocks where there are no locks, OSError if the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(path.open("a"))
            take(file, path, wait, shared)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
            stack.pop_all().close()  # its holder removed it after we had opened it and before we locked it
        HELD.add(file)
        stack.callback(HELD.discard, file)
        if remove:
            stack.callback(path.unlink, missing_ok=True)
        yield file


def take(file: IO[str], path: pathlib.Path, wait: bool, shared: bool) -> None:
    try:
        if fcntl is None:
            raise OSError("not on this operating system")
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise InUse(path) from None
    except OSError as error:
        raise NoLocks(
            f"{path.parent}: its file system has no locks ({error.strerror or error}), without which two processes "
            f"could write the same file; choose a folder on another one"
        ) from None


def is_locked(path: pathlib.Path) -> bool:
    """Whether a process holds the lock. Makes no file."""
    if not path.exists():
        return False
    try:
        with locked(path, wait=False):
            return False
    except InUse:
        return True
