"""The output folder: its index of finished utterances and its list of bad files.

``index.jsonl`` gets one line per utterance, after the utterance's features are in place: a killed process loses only
what it was working on. The process of a shard has an index and a list of its own in the folder ``shards/N``; they are
merged into those of the output folder when all shards have ended, or at the next start.
"""

import contextlib
import dataclasses
import filecmp
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

from s3prl_ofa.errors import UsageError
from s3prl_ofa.extract.inputs import Utterance
from s3prl_ofa.extract.writers import FEATURES, TIMES, files_of
from s3prl_ofa.io.files import append, atomic_write, printable
from s3prl_ofa.io.locks import is_locked, locked
from s3prl_ofa.io.output_folder import LOCK, SETTINGS, check_settings, locked_folder, remove_results, write_settings

logger = logging.getLogger(__name__)

INDEX, ERRORS = "index.jsonl", "errors.jsonl"
RESULTS = (FEATURES, TIMES, INDEX, ERRORS)
SHARDS, SUBMITIT = "shards", "submitit"  # in SHARDS a folder per shard with its WORK, and what submitit writes
WORK = "work.json"


@dataclasses.dataclass(frozen=True)
class Store:
    """An output folder, opened by ``open_store``. records: the folder of its index and its list of bad files."""

    folder: pathlib.Path
    records: pathlib.Path
    finished: dict[str, dict[str, Any]]  # rows of the index by name

    def is_finished(self, utterance: Utterance) -> bool:
        """Whether the utterance's features exist and its audio has not changed since; raises what ``is_of`` raises."""
        row = self.finished.get(utterance.name)
        return is_of(row, utterance) and all(path.is_file() for path in files_of(self.folder, row["file"]))

    def forget(self, utterances: Iterable[Utterance]) -> None:
        """Removes what is made again from the index, which would keep it if its audio can no longer be used."""
        names = self.finished.keys() & {utterance.name for utterance in utterances}
        if names:
            for name in names:
                del self.finished[name]
            write_rows(self.folder / INDEX, self.finished)

    def add(self, row: dict[str, Any]) -> None:
        """Records an utterance as finished; its files must be in place."""
        append_line(self.records / INDEX, row)

    def add_error(self, utterance: Utterance, reason: str) -> None:
        row = {"name": printable(utterance.name), "audio": printable(utterance.path), "error": reason}
        append_line(self.records / ERRORS, row)


def is_of(row: dict[str, Any] | None, utterance: Utterance) -> TypeGuard[dict[str, Any]]:
    """Whether there is a row, of the utterance's audio as it is now.

    A file of the same size and time in another place is the same file, moved or copied, unless the earlier one is still
    there and differs. Raises UsageError when the row is of another file.
    """
    if row is None:
        return False
    unchanged = (row["size"], row["mtime_ns"]) == (utterance.size, utterance.mtime_ns)
    if unchanged and is_copy(row["audio"], utterance.path):
        return True
    if row["audio"] != str(utterance.path) and utterance.size >= 0:
        raise UsageError(
            f"{utterance.name} was already made from {row['audio']}; give another --out, or --force to start again"
        )
    return False


def is_copy(earlier: str, path: pathlib.Path) -> bool:
    """Whether a file is the earlier one, or may be: that one is gone, or has the same content."""
    return earlier == str(path) or not os.path.exists(earlier) or filecmp.cmp(earlier, path, shallow=False)


def append_line(path: pathlib.Path, row: dict[str, Any]) -> None:
    append(path, f"{json.dumps(row)}\n".encode())


@contextlib.contextmanager
def open_store(folder: pathlib.Path, settings: dict[str, Any], force: bool, must_lock: bool = False) -> Iterator[Store]:
    """The store in ``folder``, locked until the block ends.

    force: start again, removing the results of earlier runs. must_lock: for shards, which need locks. Raises UsageError
    when the folder cannot be written, is in use, holds other files, or (without ``force``) features made with different
    settings.
    """
    with locked_folder(folder, f"--out {folder}", (f"{FEATURES}/**/.*", f"{TIMES}/**/.*"), must_lock):
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if names and SETTINGS not in names:
            raise UsageError(f"--out {folder} holds other files; expected an empty folder or one of an earlier extract")
        wait_for_shards(folder)
        if check_settings(folder, settings, RESULTS, force) is None or force:
            remove_shards(folder)
            remove_results(folder, RESULTS)
            write_settings(folder, settings)
        (folder / ERRORS).unlink(missing_ok=True)
        yield Store(folder, folder, read_index(folder))


def shard_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    found = (path.parent for path in folder.glob(f"{SHARDS}/[0-9]*/{WORK}"))
    return sorted(found, key=lambda path: (len(path.name), path.name))


def remove_shards(folder: pathlib.Path) -> None:
    """Removes what shards have left, but no files of others in a folder of that name."""
    for path in (*shard_folders(folder), folder / SHARDS / SUBMITIT):
        (path / INDEX).unlink(missing_ok=True)  # first: what a kill leaves must not look finished to a later shard
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        (folder / SHARDS).rmdir()


def wait_for_shards(folder: pathlib.Path) -> None:
    """Waits for processes that have outlived the command that started them, as jobs of a cluster may."""
    for shard in shard_folders(folder):
        if is_locked(shard / LOCK):
            logger.warning("shard %s of an earlier run is still running; waiting for it to end", shard.name)
        with locked(shard / LOCK, wait=True):
            pass


def read_rows(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The rows of a file by name, without lines that a killed process left unfinished."""
    rows: dict[str, dict[str, Any]] = {}
    for line in path.read_text("utf-8", "replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            row = json.loads(line)
            rows[row["name"]] = row
    return rows


def read_index(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Rows by name. Those of shards are merged into the folder's index and the shards removed; none may be running. A
    line that a killed process left unfinished is removed from the file as well."""
    rows = read_rows(folder / INDEX)
    for shard in shard_folders(folder):
        rows.update(read_rows(shard / INDEX))
    write_rows(folder / INDEX, rows)
    remove_shards(folder)
    return rows


def write_rows(path: pathlib.Path, rows: dict[str, dict[str, Any]]) -> None:
    atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows.values()))
