"""Adds the upstream to a source checkout of S3PRL, and removes it again.

A checkout imports each upstream by a line in its ``hub.py``. So two things are added: the folder
``upstream/ofa_wav2vec2``, copied from this project, and one marked line in ``hub.py``. That line comes first, so that
the shims are in place before S3PRL's other upstreams are imported.
"""

import argparse
import filecmp
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import atomic_write
from s3prl_ofa.output import tell
from s3prl_ofa.resources import folder

logger = logging.getLogger(__name__)

NAME = "ofa_wav2vec2"
HUB_LINE = f"from s3prl.upstream.{NAME}.hubconf import *  # added by s3prl-ofa link\n".encode()
FIRST_IMPORT = re.compile(rb"^from s3prl\.(upstream|downstream)\.\w+\.hubconf import ", re.MULTILINE)
MARK = ".copied_by_s3prl_ofa"
CHECKOUT_FILES = ("hub.py", "run_downstream.py", "upstream/interfaces.py", "downstream/runner.py")


def run(args: argparse.Namespace) -> None:
    link(args.checkout, force=args.force)


def run_unlink(args: argparse.Namespace) -> None:
    unlink(args.checkout)


def link(checkout: str | os.PathLike, force: bool = False) -> pathlib.Path:
    """Makes ``-u ofa_wav2vec2`` work in a source checkout of S3PRL; returns the folder that was added.

    Calling it again changes nothing. Warns if the checkout's own script cannot run, because it imports torchaudio
    before we can patch it. Raises UsageError, and changes nothing, if ``checkout`` is not a checkout, if it has a
    folder of that name that is not ours, or if ours is from another version and ``force`` is not given.
    """
    package = checkout_package(checkout)
    source, target = folder("upstream") / NAME, package / "upstream" / NAME
    hub = package / "hub.py"
    new_text = with_hub_line(hub)
    if os.path.lexists(target):
        if not (target / MARK).is_file():
            raise UsageError(f"{target} exists and was not made by s3prl-ofa link; move it away first")
        names = [path.name for path in source.glob("*.py")]
        if not force and any(filecmp.cmpfiles(source, target, names, shallow=False)[1:]):
            raise UsageError(f"{target} is from another version of s3prl-ofa; --force updates it")
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    (target / MARK).write_text("s3prl-ofa unlink removes this folder\n", encoding="utf-8")
    write_hub(hub, new_text)
    problem = torchaudio_problem(package)
    if problem is None:
        tell(f"{target} is in place; run_downstream.py -u {NAME} -k CKPT now works in {package}")
    else:
        logger.warning(
            "%s is in place, but the checkout's own run_downstream.py needs a torchaudio that matches torch (%s); "
            "s3prl-ofa run_downstream works without",
            target,
            problem,
        )
    return target


def unlink(checkout: str | os.PathLike) -> None:
    """Removes what ``link`` added, and nothing else.

    Raises UsageError if ``checkout`` is not a checkout, is not linked, or has a folder of that name that is not ours.
    """
    package = checkout_package(checkout)
    target, hub = package / "upstream" / NAME, package / "hub.py"
    text = hub.read_bytes()
    exists = os.path.lexists(target)
    if exists and not (target / MARK).is_file():
        raise UsageError(f"{target} was not made by s3prl-ofa link, so it stays")
    if not exists and HUB_LINE not in text:
        raise UsageError(f"{package} is not linked: there is nothing to remove")
    write_hub(hub, text.replace(HUB_LINE, b""))
    if exists:
        shutil.rmtree(target)
    tell(f"{package} is as it was before s3prl-ofa link")


def checkout_package(checkout: str | os.PathLike) -> pathlib.Path:
    """The package folder of a source checkout, given the checkout or that folder. Raises UsageError."""
    root = pathlib.Path(checkout)
    if not root.is_dir():
        raise UsageError(f"there is no folder {root}; expected a checkout of S3PRL")
    for package in (root / "s3prl", root):
        if all((package / name).is_file() for name in CHECKOUT_FILES):
            if {"site-packages", "dist-packages"} & set(package.resolve().parts):
                raise UsageError(f"{package} is an installed S3PRL, not a checkout; use s3prl-ofa run_downstream there")
            return package
    raise UsageError(f"{root} is not a checkout of S3PRL: it has no s3prl folder with {', '.join(CHECKOUT_FILES)}")


def torchaudio_problem(package: pathlib.Path) -> str | None:
    """Why ``import torchaudio`` fails in a new Python process in this folder; None if it works."""
    result = subprocess.run([sys.executable, "-c", "import torchaudio"], cwd=package, capture_output=True, text=True)
    if result.returncode == 0:
        return None
    lines = result.stderr.strip().splitlines()
    return lines[-1] if lines else f"import torchaudio ends with status {result.returncode}"


def with_hub_line(hub: pathlib.Path) -> bytes:
    """The content of hub.py with our line before its first import of an upstream or downstream."""
    text = hub.read_bytes().replace(HUB_LINE, b"")
    if not FIRST_IMPORT.search(text):
        raise UsageError(f"{hub} does not import upstreams as S3PRL 0.4 does, so ours cannot be added")
    return FIRST_IMPORT.sub(HUB_LINE + rb"\g<0>", text, count=1)


def write_hub(hub: pathlib.Path, text: bytes) -> None:
    """Replaces hub.py and keeps its permissions."""
    mode = hub.stat().st_mode
    atomic_write(hub, text)
    hub.chmod(mode)
