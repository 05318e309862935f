"""The folders of a sweep's points, written before anything runs.

A folder never holds a mixture: all points of a task are trained alike but for what a grid varies, and a checkpoint's
name stands for one checkpoint. What an earlier sweep has begun there must fit, whether its points are in the grid or
not, as one report tells of all.
"""

import json
import pathlib
from typing import Any

from s3prl_ofa.errors import UsageError
from s3prl_ofa.files import atomic_path

from .folder import FAILURE, GRID, LOG, POINT, POINTS, RESULT, described, read_json, write_json
from .grid import Grid
from .reading import to_yaml
from .results import FILE, FINISHED, Results, Row

Settings = dict[str, Any]  # of a point, as check.prepare makes them
Prepared = dict[str, Settings]  # by the point's name
OF_THE_SCORE = ("metric", "unit", "higher_is_better")  # may be put right as long as there is no score
SHOWN = 3  # differences


def lay_out(grid: Grid, prepared: Prepared, out: pathlib.Path) -> set[str]:
    """Writes what each point is to its folder. Returns the points of which the results have a finished row and there is
    no folder, as on another machine: they are done.

    Raises UsageError, with nothing written, where what was begun there earlier does not fit.
    """
    prepared = json.loads(json.dumps(prepared))
    begun = {path.name: path for path in (out / POINTS).glob("*") if is_begun(path)}
    rows = {row["point"]: row for row in Results(out).rows() if row["state"] == FINISHED and row["point"] not in begun}
    for name, folder in begun.items():
        refuse(folder, differing_settings(folder, prepared.get(name), prepared), "that folder and its line in " + FILE)
    for name, row in rows.items():
        refuse(f"{out / FILE}: {name}", differing_row(row, prepared.get(name), prepared), "its line")
    for name, settings in prepared.items():
        if name not in rows:
            write_json(out / POINTS / name / POINT, settings)
    with atomic_path(out / GRID) as temporary:
        temporary.write_text(to_yaml(grid), "utf-8")
    return prepared.keys() & rows.keys()


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
    if now is not None:
        ignored = () if (folder / RESULT).exists() else OF_THE_SCORE
        first, second = (
            {key: value for key, value in settings.items() if key not in ignored} for settings in (earlier, now)
        )
        return differences(first, second)
    return [
        found
        for key, common in (("task", of_task), ("model", of_model))
        for other in one_with(key, earlier["point"][key], prepared)
        for found in differences(common(earlier), common(other))
    ]


def differing_row(row: Row, now: Settings | None, prepared: Prepared) -> list[str]:
    """The same for a row without a folder."""
    if now is not None:
        # the same file may lie elsewhere on another machine
        keys = [key for key in described(now) if key in row and key not in ("state", "checkpoint")]
        return differences({key: row[key] for key in keys}, {key: described(now)[key] for key in keys})
    return [
        found
        for key, column in (("task", "steps"), ("model", "checkpoint_sha256"))
        for other in one_with(key, row[key], prepared)
        for found in differences({column: row.get(column)}, {column: described(other)[column]})
    ]


def one_with(key: str, value: str, prepared: Prepared) -> list[Settings]:
    """A point of the grid with this task or model, if there is one: in what is compared they are all alike."""
    return [settings for settings in prepared.values() if settings["point"][key] == value][:1]


def of_task(settings: Settings) -> dict[str, Any]:
    """What all points of a task have in common."""
    config = {**settings["config"], "optimizer": {**(settings["config"].get("optimizer") or {}), "lr": None}}
    return {"config": config, **{key: settings[key] for key in ("dev", "test", *OF_THE_SCORE)}}


def of_model(settings: Settings) -> dict[str, Any]:
    return {"checkpoint_sha256": settings["checkpoint_sha256"]}


def differences(earlier: Any, now: Any, where: str = "") -> list[str]:
    """What differs between two JSON values, as ``config.runner.total_steps: 100, now 200``."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*earlier, *now])
        return [found for key in keys for found in differences(earlier.get(key), now.get(key), f"{where}.{key}")]
    return [] if earlier == now else [f"{where.lstrip('.')}: {earlier}, now {now}"]
