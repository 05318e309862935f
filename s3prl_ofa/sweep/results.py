"""``results.jsonl``: one line a point, written at once and for good.

A line is added in one write and brought to the disk before anything else is done. A process that was killed in between
leaves a cut line at most, which is taken away before the next one is added and passed over when reading. A point that
failed and was run again has its line replaced, so that no point is there twice.
"""

import json
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from s3prl_ofa.io.files import append, atomic_path
from s3prl_ofa.io.locks import locked

logger = logging.getLogger(__name__)

FILE = "results.jsonl"
FINISHED, FAILED = "finished", "failed"  # the exit state of a row
Row = dict[str, Any]


class Results:
    """The rows of the sweep in ``folder``."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.path = folder / FILE

    def rows(self) -> list[Row]:
        """All whole rows; what is none is passed over and said in the log."""
        found = []
        for number, row in self.numbered():
            if row is None:
                logger.warning("%s, line %d is not a row of a sweep and is skipped", self.path, number)
            else:
                found.append(row)
        return found

    def numbered(self) -> Iterator[tuple[int, Row | None]]:
        """(line number, row) of every line that is not empty, counted from 1; None for one that is not a row."""
        text = self.path.read_bytes() if self.path.exists() else b""
        return ((number, row_of(part)) for number, part in enumerate(text.split(b"\n"), 1) if part.strip())

    def record(self, row: Row) -> bool:
        """Adds the row of a point, in place of an earlier failed one; whether it was not there already."""
        with locked(self.path.with_name(f".{FILE}.lock"), wait=True):
            self.repair()
            rows = self.rows()
            earlier = [other for other in rows if other["point"] == row["point"]]
            if any(other["state"] == FINISHED for other in earlier):
                return False
            if earlier:
                kept = [other for other in rows if other["point"] != row["point"]]
                self.replace(b"".join(map(line, [*kept, row])))
            else:
                append(self.path, line(row), sync=True)
        return True

    def replace(self, text: bytes) -> None:
        with atomic_path(self.path) as temporary, temporary.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def repair(self) -> None:
        """Takes away a line that was cut off at the end; one that lacks its end of line only gets it."""
        text = self.path.read_bytes() if self.path.exists() else b""
        if text and not text.endswith(b"\n"):
            logger.warning("%s ends in the middle of a line: a process was killed while it wrote", self.path)
            whole = text[: text.rfind(b"\n") + 1]
            last = row_of(text[len(whole) :])
            self.replace(whole if last is None else whole + line(last))


def line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"


def row_of(text: bytes) -> Row | None:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("point", "state"))
    return row if is_row else None
