"""The output folder: its index of finished utterances and its list of bad files.

``index.jsonl`` gets one line per utterance, after the utterance's features are in place: a killed process loses only
what it was working on.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from s3prl_ofa.errors import UsageError
from s3prl_ofa.extract.inputs import Utterance
from s3prl_ofa.extract.writers import FEATURES, TIMES, files_of
from s3prl_ofa.io.files import append, atomic_path, printable
from s3prl_ofa.io.output_folder import SETTINGS, check_settings, locked_folder, remove_results, write_settings

INDEX, ERRORS = "index.jsonl", "errors.jsonl"
RESULTS = (FEATURES, TIMES, INDEX, ERRORS)


@dataclasses.dataclass(frozen=True)
class Store:
    """An output folder, opened by ``open_store``."""

    folder: pathlib.Path
    finished: dict[str, dict[str, Any]]  # rows of the index by name

    def is_finished(self, utterance: Utterance) -> bool:
        """Whether the utterance's features exist and its audio has not changed since.

        A file of the same size and time elsewhere is taken for the same file, moved. Raises UsageError when the name
        belongs to the features of another file.
        """
        row = self.finished.get(utterance.name)
        if row is None:
            return False
        if (row["size"], row["mtime_ns"]) == (utterance.size, utterance.mtime_ns):
            return all(path.is_file() for path in files_of(self.folder, row["file"]))
        if row["audio"] != str(utterance.path) and utterance.size >= 0:
            raise UsageError(
                f"{utterance.name} was already made from {row['audio']}; give another --out, or --force to start again"
            )
        return False

    def add(self, row: dict[str, Any]) -> None:
        """Records an utterance as finished; its files must be in place."""
        append_line(self.folder / INDEX, row)

    def add_error(self, utterance: Utterance, reason: str) -> None:
        row = {"name": printable(utterance.name), "audio": printable(utterance.path), "error": reason}
        append_line(self.folder / ERRORS, row)


def append_line(path: pathlib.Path, row: dict[str, Any]) -> None:
    append(path, f"{json.dumps(row)}\n".encode())


@contextlib.contextmanager
def open_store(folder: pathlib.Path, settings: dict[str, Any], force: bool) -> Iterator[Store]:
    """The store in ``folder``, locked until the block ends.

    force: start again, removing the results of earlier runs. Raises UsageError when the folder cannot be written, is in
    use, holds other files, or (without ``force``) features made with different settings.
    """
    with locked_folder(folder, f"--out {folder}", (f"{FEATURES}/**/.*", f"{TIMES}/**/.*")):
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if names and SETTINGS not in names:
            raise UsageError(f"--out {folder} holds other files; expected an empty folder or one of an earlier extract")
        if force:
            remove_results(folder, RESULTS)
        if check_settings(folder, settings, RESULTS) is None:
            write_settings(folder, settings)
        (folder / ERRORS).unlink(missing_ok=True)
        yield Store(folder, read_index(folder))


def read_index(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Rows by name. A line that a killed process left unfinished is removed from the file as well."""
    path = folder / INDEX
    rows: dict[str, dict[str, Any]] = {}
    for line in path.read_text("utf-8", "replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            row = json.loads(line)
            rows[row["name"]] = row
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows.values()), "utf-8")
    return rows
