"""When, and with what, a row of a sweep came to be."""

import datetime
import importlib.metadata
import pathlib
import subprocess
from typing import Any

from s3prl_ofa.version import __version__

PACKAGES = ("torch", "s3prl")


def provenance() -> dict[str, Any]:
    """The keys of a row, of a finished and of a failed one: finished (the time, UTC), versions, commit."""
    return {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"s3prl_ofa": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}},
        "commit": git_commit(),
    }


def git_commit() -> str | None:
    """Of the project, where it is run from a checkout; with -dirty where files differ from it."""
    root = pathlib.Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
