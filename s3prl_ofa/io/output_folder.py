"""Output folders: one process at a time writes to a folder, and all results in it were made with the same settings."""

import contextlib
import json
import logging
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import TEMPORARY_NAME, write_json
from s3prl_ofa.io.locks import InUse, NoLocks, locked

logger = logging.getLogger(__name__)

LOCK, SETTINGS = ".lock", "settings.json"


@contextlib.contextmanager
def locked_folder(folder: pathlib.Path, name: str, temporary: Sequence[str], must_lock: bool = False) -> Iterator[None]:
    """Makes ``folder``, keeps other processes out of it, and removes what a killed process left half written.

    name: what messages call the folder, such as "--out features". temporary: glob patterns below ``folder`` where
    temporary files of ``atomic_path`` may lie; nothing else is removed. A killed process leaves no lock behind. Where
    the file system has no locks, a warning says so; with ``must_lock`` NoLocks is raised. Raises UsageError if the
    folder cannot be written or is locked.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK, wait=False, remove=True))
        except InUse:
            raise in_use(name) from None
        except NoLocks as error:  # as on some network file systems, where a single process works all the same
            if must_lock:
                raise
            logger.warning("%s", error)
        except OSError as error:
            raise UsageError(f"{name} cannot be written ({error.strerror}); expected a folder to write to") from None
        for path in (path for pattern in temporary for path in folder.glob(pattern)):
            if TEMPORARY_NAME.fullmatch(path.name) and not path.is_dir():
                logger.info("removing %s, which a killed process left half written", path)
                path.unlink(missing_ok=True)
        yield


def in_use(name: str) -> UsageError:
    return UsageError(f"{name} is in use by another process; wait until it ends, or choose another folder")


def check_settings(
    folder: pathlib.Path, settings: dict[str, Any], results: Sequence[str], force: bool = False
) -> dict[str, Any] | None:
    """The settings that the results in ``folder`` were made with; None if there are no results.

    results: names of the files and folders that hold them. Raises UsageError for results without settings, for settings
    without any of these keys, and for settings that are unreadable or differ; with ``force`` the results are removed in
    the last two cases.
    """
    path = folder / SETTINGS
    if not path.exists():
        if any((folder / name).exists() for name in results):
            raise UsageError(f"--out {folder} holds results without {SETTINGS}, not made here; give another --out")
        return None
    try:
        earlier = dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError, RecursionError):
        problem = f"{path} cannot be read"
    else:
        if not earlier.keys() & settings.keys():
            raise UsageError(f"{path} is a file of another program or command; give another --out")
        key = next((key for key, value in settings.items() if earlier.get(key) != value), None)
        if key is None:
            return earlier
        problem = f"--out {folder} holds results made with {key} {earlier.get(key)}, not {settings[key]}"
    if not force:
        raise UsageError(f"{problem}; give --force to start again, or another --out")
    remove_results(folder, results)
    return None


def write_settings(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    write_json(folder / SETTINGS, settings)


def remove_results(folder: pathlib.Path, results: Sequence[str]) -> None:
    """Removes the results, and last the settings that mark the folder as ours."""
    for name in (*results, SETTINGS):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
