"""Locks that die with their holder, whatever kills it: of a sweep's folder, of a point, of a cache of features."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator
from typing import IO

from s3prl_ofa.errors import UsageError


class InUse(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: pathlib.Path, wait: bool, shared: bool = False) -> Iterator[IO[str]]:
    """Holds the lock file ``path`` and gives it: a process that inherits the open file holds the lock as well.

    shared: together with others that hold it so. Raises InUse where another process holds it and ``wait`` is false,
    UsageError where the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InUse(path) from None
        except OSError as error:
            raise UsageError(
                f"{path.parent}: its file system has no locks ({error.strerror}), without which two processes could "
                f"write the same file; choose a folder on another one"
            ) from None
        yield file


def is_locked(path: pathlib.Path) -> bool:
    try:
        with locked(path, wait=False):
            return False
    except InUse:
        return True
