"""The folders of a sweep's points, written before anything runs.

A folder never holds a mixture: all points of a task are trained alike but for what a grid varies, and a checkpoint's
name stands for one checkpoint. What an earlier sweep has begun there must fit, whether its points are in the grid or
not, as one report tells of all.
"""

import json
import pathlib
import shutil
from collections.abc import Set
from typing import Any

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.io.locks import is_locked
from s3prl_ofa.sweep.grid.parsing import to_yaml
from s3prl_ofa.sweep.grid.schema import Grid
from s3prl_ofa.sweep.job import FAILURE, GRID, LOCK, LOG, POINT, POINTS, RESULT, described, read_json, write_json
from s3prl_ofa.sweep.results import FILE, FINISHED, Results, Row

Settings = dict[str, Any]  # of a point, as check.prepare makes them
Prepared = dict[str, Settings]  # by the point's name
OF_THE_SCORE = {"metric", "unit", "higher_is_better", "dev", "test"}  # may be put right while there is no score
# of a row, what those with the same task, and so on, have in common
COLUMNS = {("task",): ("steps", "metric", "unit"), ("model",): ("checkpoint_sha256",), ("task", "rate"): ("lambd_max",)}
SHOWN = 3  # differences


def check_fits(prepared: Prepared, out: pathlib.Path) -> set[str]:
    """Raises UsageError where what was begun in ``out`` earlier does not fit. Nothing is written.

    Returns the points of which the results have a finished row and there is no folder, as on another machine: they are
    done. Of these only what the row says is compared.
    """
    prepared = plain(prepared)
    begun = {path.name: path for path in (out / POINTS).glob("*") if is_begun(path)}
    rows = {row["point"]: row for row in Results(out).rows() if row["state"] == FINISHED and row["point"] not in begun}
    for name, folder in begun.items():
        refuse(folder, differing_settings(folder, prepared.get(name), prepared), "that folder and its line in " + FILE)
    for name, row in rows.items():
        refuse(f"{out / FILE}: {name}", differing_row(row, prepared.get(name), prepared), "its line")
    return prepared.keys() & rows.keys()


def lay_out(grid: Grid, prepared: Prepared, out: pathlib.Path) -> set[str]:
    """Writes what each point is to its folder, if it fits; see ``check_fits``, also for what is returned."""
    recorded = check_fits(prepared, out)
    for path in (out / POINTS).glob("*"):
        if not (path.name in prepared or is_begun(path) or is_locked(path / LOCK)):
            shutil.rmtree(path, ignore_errors=True)  # an earlier grid wanted it, and it may wait in a queue
    for name, settings in prepared.items():
        if name not in recorded:
            write_json(out / POINTS / name / POINT, settings)
    with atomic_path(out / GRID) as temporary:
        temporary.write_text(to_yaml(grid), "utf-8")
    return recorded


def plain(prepared: Prepared) -> Prepared:
    """As JSON gives it back."""
    return json.loads(json.dumps(prepared))


def is_begun(folder: pathlib.Path) -> bool:
    return (folder / POINT).exists() and any((folder / name).exists() for name in (LOG, RESULT, FAILURE))


def refuse(what: Any, differing: list[str], removed: str) -> None:
    if differing:
        said = "; ".join(differing[:SHOWN])
        raise UsageError(f"{what} was run with other settings ({said}); give another --out, or remove {removed}")


def differing_settings(folder: pathlib.Path, now: Settings | None, prepared: Prepared) -> list[str]:
    """What differs between a point that was begun and the grid: itself, or where that has no such point, others of its
    task and of its model."""
    earlier = read_json(folder / POINT)
    settled = (folder / RESULT).exists() or is_locked(folder / LOCK)
    ignored = set() if settled else OF_THE_SCORE
    if now is not None:
        return differences(without(ignored, earlier), without(ignored, now))
    return [
        found
        for keys, common in ((("task",), of_task), (("model",), of_model), (("task", "rate"), of_rate))
        for other in one_with(keys, earlier["point"], prepared)
        for found in differences(without(ignored, common(earlier)), without(ignored, common(other)))
    ]


def differing_row(row: Row, now: Settings | None, prepared: Prepared) -> list[str]:
    """The same for a row without a folder."""
    if now is not None:
        # the same file may lie elsewhere on another machine
        keys = described(now).keys() & row.keys() - {"state", "checkpoint"}
        return differences({key: row[key] for key in keys}, {key: described(now)[key] for key in keys})
    return [
        found
        for keys, columns in COLUMNS.items()
        for other in one_with(keys, row, prepared)
        for column in columns
        if column in row
        for found in differences({column: row[column]}, {column: described(other)[column]})
    ]


def without(ignored: Set[str], settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in ignored}


def one_with(keys: tuple[str, ...], point: dict[str, Any], prepared: Prepared) -> list[Settings]:
    """A point of the grid that has these keys as this one, if there is one: in what is compared they are all alike."""
    return [found for found in prepared.values() if all(found["point"][key] == point[key] for key in keys)][:1]


def of_task(settings: Settings) -> dict[str, Any]:
    """What all points of a task have in common."""
    config = {**settings["config"], "optimizer": {**(settings["config"].get("optimizer") or {}), "lr": None}}
    return {"config": config, **{key: settings[key] for key in sorted(OF_THE_SCORE)}}


def of_model(settings: Settings) -> dict[str, Any]:
    return {"checkpoint_sha256": settings["checkpoint_sha256"]}


def of_rate(settings: Settings) -> dict[str, Any]:
    return {"lambd_max": settings["lambd_max"]}


def differences(earlier: Any, now: Any, where: str = "") -> list[str]:
    """What differs between two JSON values, as ``config.runner.total_steps: 100, now 200``."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*earlier, *now])
        return [found for key in keys for found in differences(earlier.get(key), now.get(key), f"{where}.{key}")]
    return [] if earlier == now else [f"{where.lstrip('.')}: {earlier}, now {now}"]
