"""``results.jsonl``: one row per line, collected from the results in the points' folders."""

import json
import logging
import pathlib
from collections.abc import Iterator

from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.sweep.job import POINTS, RESULT, Row

logger = logging.getLogger(__name__)

FILE = "results.jsonl"


def collect(out: pathlib.Path) -> dict[str, Row]:
    """All rows, by point. A row in ``results.jsonl`` stays where the point has no result of its own: its folder was
    deleted, or is on another machine."""
    rows = {}
    for place, row in [*numbered_lines(out), *point_results(out)]:
        if row is None:
            logger.warning("%s, %s is not a row of a sweep and is skipped", out, place)
        else:
            rows[row["point"]] = row
    return rows


def write_results(out: pathlib.Path) -> dict[str, Row]:
    """Brings ``results.jsonl`` up to date and returns its rows. Only one process at a time may do so."""
    rows = collect(out)
    with atomic_path(out / FILE) as temporary:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values())
        temporary.write_text("".join(lines), "utf-8", errors="surrogatepass")
    return rows


def numbered_lines(out: pathlib.Path) -> Iterator[tuple[str, Row | None]]:
    """("line N", row) of every line of ``results.jsonl`` that is not empty; None for one that is not a row."""
    text = (out / FILE).read_bytes() if (out / FILE).exists() else b""
    return ((f"line {number}", row_of(part)) for number, part in enumerate(text.split(b"\n"), 1) if part.strip())


def point_results(out: pathlib.Path) -> Iterator[tuple[str, Row | None]]:
    """(path below ``out``, row) of every point that has finished or failed, the earliest first."""
    paths = sorted((out / POINTS).glob(f"*/{RESULT}"), key=lambda path: path.stat().st_mtime_ns)
    return ((str(path.relative_to(out)), read_result(path.parent)) for path in paths)


def read_result(folder: pathlib.Path) -> Row | None:
    """The row of the point in ``folder``; None where it has neither finished nor failed."""
    path = folder / RESULT
    return row_of(path.read_bytes()) if path.exists() else None


def row_of(text: bytes) -> Row | None:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("point", "state"))
    return row if is_row else None
