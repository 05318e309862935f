"""What lies in the folder of a point, and how it is written: light, as every process of a sweep reads it.

point.json       what the point is, with S3PRL's whole config; written before it is run for the first time
config.yaml      that config, for S3PRL
experiment/      S3PRL's folder
run.log          the commands and what they printed
trained.json     training is done
result.json      everything is done: the row
failed.json      a command failed: the row that says so
"""

import json
import os
import pathlib
from typing import Any

from s3prl_ofa.io.files import atomic_path

GRID = "grid.yaml"  # the grid in full, as it was run last
POINTS = "points"  # the folder of the points' folders
FEATURES = "features"  # beside it, the cache of features
CACHE_GB = "--cache-gb"  # of work.py and of run_downstream
LOCK = ".point.lock"
POINT, CONFIG, EXPERIMENT, LOG = "point.json", "config.yaml", "experiment", "run.log"
TRAINED, RESULT, FAILURE = "trained.json", "result.json", "failed.json"
NO_ROOM = 74  # exit status of a point's process on a full disk, as in sysexits.h; the point can be resumed
TAIL = 5  # lines of a log that are shown


def read_json(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes the file for good: what it says is done is on the disk before."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def tail(log: pathlib.Path) -> list[str]:
    """The last lines of a log, without what progress bars left."""
    text = log.read_text("utf-8", errors="replace").replace("\r", "\n") if log.exists() else ""
    return [line for line in text.splitlines() if line.strip() and "it/s]" not in line and "s/it]" not in line][-TAIL:]


def described(settings: dict[str, Any]) -> dict[str, Any]:
    """What the row of a point holds whatever becomes of it: the keys of the grid."""
    config = settings["config"]
    asked = {key: value for key, value in settings["point"].items() if key not in ("learning_rate", "repeat")}
    return {
        "point": settings["name"],
        "state": None,
        **asked,
        "asked_repeat": settings["point"]["repeat"],
        "learning_rate": (config.get("optimizer") or {}).get("lr"),
        "lambd_max": settings.get("lambd_max"),
        "steps": config["runner"]["total_steps"],
        "metric": settings["metric"],
        "higher_is_better": settings["higher_is_better"],
        "unit": settings["unit"],
        "checkpoint_sha256": settings["checkpoint_sha256"],
    }
