"""What a sweep keeps on disk: a folder per point, and ``results.jsonl``, one row per line, collected from them."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterator

from s3prl_ofa.io.files import atomic_path, read_json, write_json
from s3prl_ofa.sweep.job import FAILED, FINISHED, SCORING, Job, Row

logger = logging.getLogger(__name__)

POINTS = "points"  # the folder of the points' folders
FEATURES = "features"  # the feature cache, beside POINTS
RESULTS = "results.jsonl"
TAIL = 5  # lines of a log that are shown


class PointFolder:
    """The files of a point; each is written only when the step it stands for is done."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.settings = path / "point.json"  # the job; exists only while the last grid of the sweep has the point
        self.config = path / "config.yaml"  # the job's config, for S3PRL
        self.experiment = path / "experiment"  # S3PRL's folder
        self.log = path / "run.log"  # the commands and what they printed
        self.trained = path / "trained.json"  # training is done
        self.evaluated = path / "evaluated.json"  # SHA-256 of what each evaluation of the point has measured, by file
        self.utterances = path / "utterances.json"  # of the test split: sums and counts of each, as measured
        self.result = path / "result.json"  # the point's row: it has finished or failed
        self.lock = path / ".point.lock"

    def save(self, job: Job) -> None:
        write_json(self.settings, dataclasses.asdict(job))

    def job(self) -> Job:
        return Job(**read_json(self.settings))

    def row(self) -> Row | None:
        """None where the point has neither finished nor failed."""
        return row_of(self.result.read_bytes()) if self.result.exists() else None

    def tail(self) -> list[str]:
        """The last lines of the log, without those of progress bars."""
        text = self.log.read_text("utf-8", errors="replace").replace("\r", "\n") if self.log.exists() else ""
        lines = [line for line in text.splitlines() if line.strip() and "it/s]" not in line and "s/it]" not in line]
        return lines[-TAIL:]


def point_folders(out: pathlib.Path) -> list[PointFolder]:
    return [PointFolder(path) for path in sorted((out / POINTS).glob("*"))]


def collect(out: pathlib.Path) -> dict[str, Row]:
    """All rows, by point. A row in ``results.jsonl`` is kept if the point has no result of its own, because its folder
    was deleted or is on another machine, or if it has failed here and finished there."""
    rows = {}
    for place, row in [*numbered_lines(out), *point_rows(out)]:
        if row is None:
            logger.warning("%s, %s is not a row of a sweep and is skipped", out, place)
        elif row["state"] != FAILED or not is_finished(rows.get(row["point"]), row):
            rows[row["point"]] = row
    return rows


def is_finished(row: Row | None, other: Row) -> bool:
    """Whether a row is of a point that has finished, scored as in the other row."""
    return row is not None and row["state"] == FINISHED and all(row.get(key) == other.get(key) for key in SCORING)


def write_results(out: pathlib.Path) -> dict[str, Row]:
    """Brings ``results.jsonl`` up to date and returns its rows. Only one process at a time may do so."""
    rows = collect(out)
    with atomic_path(out / RESULTS) as temporary:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values())
        temporary.write_text("".join(lines), "utf-8", errors="surrogatepass")
    return rows


def numbered_lines(out: pathlib.Path) -> Iterator[tuple[str, Row | None]]:
    """("line N", row) of every line of ``results.jsonl`` that is not empty; None for one that is not a row."""
    text = (out / RESULTS).read_bytes() if (out / RESULTS).exists() else b""
    return ((f"line {number}", row_of(part)) for number, part in enumerate(text.split(b"\n"), 1) if part.strip())


def point_rows(out: pathlib.Path) -> Iterator[tuple[str, Row | None]]:
    """(path below ``out``, row) of every point that has finished or failed, earliest first."""
    ended = [folder for folder in point_folders(out) if folder.result.exists()]
    ended.sort(key=lambda folder: folder.result.stat().st_mtime_ns)
    return ((str(folder.result.relative_to(out)), folder.row()) for folder in ended)


def row_of(text: bytes) -> Row | None:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("point", "state"))
    return row if is_row else None
