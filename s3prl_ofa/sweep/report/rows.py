"""Checks the rows of a report, which are from one sweep or were merged by hand from several."""

import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from s3prl_ofa.errors import shown
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE, NUMBERS, UNIFORM, with_current_names
from s3prl_ofa.sweep.job import FAILED, FINISHED, RATE_NAMES, Row
from s3prl_ofa.sweep.results import RESULTS, numbered_lines, point_rows

OPTIONS = {ADAPTIVE: "rate_weight", UNIFORM: "lambd"}  # whose values are a rate's, where it has another name
PERCENT = 100  # the unit of scores that are shares
LARGEST = 1e15  # beyond it, means and deviations lose all digits or overflow


class Column(NamedTuple):
    """What a column holds: in words, and a test of whether a value fits."""

    words: str
    fits: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST  # false for NaN


TEXT = Column("one line of text", lambda value: isinstance(value, str) and bool(value.strip()) and value.isprintable())
RATE = Column(f"one of {', '.join(RATE_NAMES)}", lambda value: isinstance(value, str) and value in RATE_NAMES)
FLAG = Column("true or false", lambda value: isinstance(value, bool))
NUMBER = Column("a number", is_number)
POSITIVE = Column("a number above 0", lambda value: is_number(value) and value > 0)
COST = Column("a number of at least 0", lambda value: is_number(value) and value >= 0)
WHOLE = Column("a whole number", lambda value: is_number(value) and value == int(value))
SHARE = Column("a share from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
REPEAT = Column("a whole number or text", lambda value: WHOLE.fits(value) or TEXT.fits(value))

NEEDED = {"task": TEXT, "model": TEXT, "metric": TEXT, "seed": WHOLE, "score": NUMBER, "unit": POSITIVE}
NEEDED |= {"higher_is_better": FLAG}
NULLABLE = {"rate": RATE, "value": NUMBER, "output_frames": TEXT, "learning_rate": NUMBER}  # must be there, may be null
OPTIONAL = {"asked_repeat": REPEAT, "repeat": WHOLE, "steps": WHOLE, "lambd_start": NUMBER, "lambd_max": NUMBER}
OPTIONAL |= {"checkpoint_sha256": TEXT, "config_sha256": TEXT, "test_split": TEXT, "device": TEXT}
OPTIONAL |= {"dtype": TEXT, "dev_score": NUMBER, "learnt_lambd": NUMBER}
OPTIONAL |= {"frame_period_ms": POSITIVE, "macs_per_second": COST, "peak_memory_mb": COST}
OPTIONAL |= {"upstream_seconds_per_second": COST, "downstream_seconds_per_second": COST}

# rows that are alike in all of these are of one run
RUN = ("task", "model", "rate", "value", "lambd_start", "lambd_max", "output_frames", "asked_repeat", "learning_rate")
RUN += ("dtype", "seed", "steps", "metric", "test_split", "checkpoint_sha256", "config_sha256")

COLUMNS = NEEDED | NULLABLE | OPTIONAL
FLOATS = [key for key, kind in COLUMNS.items() if kind in (NUMBER, POSITIVE, COST)]


def read_rows(out: pathlib.Path) -> tuple[list[Row], list[str]]:
    """One usable row per point, from the results file and the points' own results, and what is wrong with the others.
    Of several, also of one run under several names, the last finished one counts, or else the last one."""
    lines = list(numbered_lines(out))
    written = [row for _, row in lines]
    lines += [(place, row) for place, row in point_rows(out) if row not in written]
    found: dict[str, Row] = {}
    names: dict[tuple[Any, ...], str] = {}  # of the finished points, by their run
    faults = []
    for place, row in lines:
        if row is None:
            faults.append(f"{RESULTS}, {place}: not a row of a sweep; cut off while it was written?")
            continue
        where = f"{row['point']} ({place})"
        try:
            row, left_out = checked(row)
        except ValueError as error:
            faults.append(f"{where}: {error}; the row is left out")
            continue
        faults += [f"{where}: {text}; it is treated as unknown" for text in left_out]
        earlier = found.get(row["point"], {}).get("state")
        if earlier == row["state"] == FINISHED:
            faults.append(f"{where}: finished in an earlier line too; the last one counts")
        if earlier != FINISHED or row["state"] == FINISHED:
            found[row["point"]] = row
        if row["state"] == FINISHED:
            run = tuple(row[key] for key in RUN)
            if (other := names.get(run, row["point"])) != row["point"]:
                faults.append(f"{where}: has the settings and seed of {other}; the last one counts")
                found.pop(other, None)
            names[run] = row["point"]
    return list(found.values()), faults


def checked(row: Row) -> tuple[Row, list[str]]:
    """The row with all columns that a report reads, and what was wrong with values that were removed.

    Raises ValueError for a row that cannot be used.
    """
    row = with_current_names(row)
    if row["state"] == FAILED:
        log = row.get("log") if isinstance(row.get("log"), list) else []
        return {**row, "error": str(row.get("error", "no reason is given")), "log": [str(line) for line in log]}, []
    if row["state"] != FINISHED:
        raise ValueError(f"state: {FINISHED} or {FAILED} is expected, found {shown(row['state'])}")
    found, left_out, limits = dict(row), [], limits_of(row)
    for key, kind in COLUMNS.items():
        if key not in row and key not in OPTIONAL:
            raise ValueError(f"{key} is missing")
        value = row.get(key)
        if key in NULLABLE and isinstance(value, float) and math.isnan(value):
            value = None
        if kind.fits(value):
            kind = limits.get(key, kind)
        if not (kind.fits(value) or key not in NEEDED and value is None):
            fault = f"{key}: {kind.words} is expected, found {shown(value)}"
            if key not in OPTIONAL:
                raise ValueError(fault)
            left_out.append(fault)
            value = None
        # other programs write whole numbers as floats in a column that has empty cells
        found[key] = int(value) if isinstance(value, float) and kind in (WHOLE, REPEAT) else value
    if (found["rate"] is None) != (found["value"] is None):
        raise ValueError(f"rate and value belong together, found {shown(row['rate'])} and {shown(row['value'])}")
    return found, left_out


def limits_of(row: Row) -> dict[str, Column]:
    """The limits of a row's numbers that follow from its other columns."""
    limits = {}
    if row.get("unit") == PERCENT:  # an error rate may exceed 1, an accuracy cannot
        limits = dict.fromkeys(("score", "dev_score"), SHARE if row.get("higher_is_better") is True else COST)
    if RATE.fits(rate := row.get("rate")):
        _, is_valid, words = NUMBERS[OPTIONS.get(rate, rate)]
        limits["value"] = Column(words, is_valid)
    return limits
