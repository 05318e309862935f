"""The size limit of a feature cache's folder, shared by all processes that use it."""

import contextlib
import pathlib
import re
import shutil

from s3prl_ofa.io.files import atomic_write
from s3prl_ofa.io.locks import InUse, locked

LOCK, USERS, USED, KEY, WRITING = ".lock", ".users", "bytes", "key.json", ".writing"
SUFFIX = ".safetensors"
NAME = re.compile("[0-9a-f]{32}")  # of a section
HALF_WRITTEN = (f".{pathlib.Path(KEY).stem}.*", f"*/.*{SUFFIX}")  # what a killed process leaves in a section


class Quota:
    """Counts the bytes of all entries below ``folder`` in its file ``bytes``, and keeps them within ``limit``.

    Entries are in sections, subfolders that may be deleted; whatever else is in the folder is left alone and not
    counted. A killed process may leave the count too high; the first process to open the folder recounts and removes
    half-written files.

    locks: keeps the folder in use until it is closed.
    """

    def __init__(self, folder: pathlib.Path, limit: int, locks: contextlib.ExitStack) -> None:
        self.folder, self.limit, self.lock = folder, limit, folder / LOCK
        with locked(self.lock, wait=True):
            with contextlib.suppress(InUse), locked(folder / USERS, wait=False):
                half_written = (path for each in self.sections() for name in HALF_WRITTEN for path in each.glob(name))
                for path in (*folder.glob(f".{USED}.*"), *half_written):
                    path.unlink(missing_ok=True)
                self.write(sum(map(size_of, self.sections())))
            locks.enter_context(locked(folder / USERS, wait=True, shared=True))

    def reserve(self, size: int, keep: pathlib.Path) -> bool:
        """Reserves ``size`` bytes, deleting sections other than ``keep`` if necessary; returns whether they fit.

        With a size of 0, when a section is opened, entries of ``keep`` are deleted too if it exceeds the limit itself.
        """
        with locked(self.lock, wait=True):
            used = int((self.folder / USED).read_text())
            if used + size > self.limit and (not size or size_of(keep) + size <= self.limit):
                for section in sorted(self.sections(), key=last_opened):
                    if used + size > self.limit and section != keep:
                        used -= delete(section)
            if not size and used > self.limit:
                used -= trim(keep, used - self.limit)
            fits = used + size <= self.limit
            self.write(used + size if fits else used)
            return fits

    def sections(self) -> list[pathlib.Path]:
        return [path for path in self.folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]

    def write(self, used: int) -> None:
        atomic_write(self.folder / USED, f"{used}\n")


def last_opened(section: pathlib.Path) -> float:
    """The time when a section was last opened; 0 if its deletion was interrupted."""
    key = section / KEY
    return key.stat().st_mtime if key.exists() else 0.0


def delete(section: pathlib.Path) -> int:
    """Deletes a section that is not in use; returns the number of bytes freed."""
    try:
        with locked(section / LOCK, wait=False):
            size = size_of(section)
            shutil.rmtree(section, ignore_errors=True)
            return size - size_of(section)
    except (InUse, OSError):
        return 0


def trim(section: pathlib.Path, excess: int) -> int:
    """Deletes entries of a section until at least ``excess`` bytes are freed; returns how many were.

    A process that has an entry open can still read it; one that looks for it computes it again.
    """
    freed = 0
    for path in section.rglob(f"[!.]*{SUFFIX}"):  # not those being written
        if freed >= excess:
            break
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed


def size_of(section: pathlib.Path) -> int:
    """The size in bytes of all entries of a section."""
    total = 0
    for path in section.rglob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
