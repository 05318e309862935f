"""Writing files so that a reader never sees half of one, and a full disk gives one clear error."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from s3prl_ofa.errors import escaped

STEM = 40  # characters of the file's name kept in its temporary name: at most 4 bytes each, of the 255 of a name
TEMPORARY_NAME = re.compile(r"\..+\.[a-z0-9_]{8}(\.\w+)?")  # of atomic_path
# EFBIG: the file system or the shell limits the size of a file. Windows has no EDQUOT.
NO_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # in messages of safetensors
PROBE = bytes(1 << 16)


class DiskFull(OSError):
    """There is no room for the file ``filename``: the disk is full, or a quota or size limit is reached."""

    def __str__(self) -> str:
        return (
            f"{self.filename}: no room to write it ({self.strerror}); free some space or raise the limit, then resume "
            "or repeat the command"
        )


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, sync: bool = False) -> Iterator[pathlib.Path]:
    """Yields a temporary file beside ``path``, which is renamed to ``path`` when the block succeeds.

    The temporary name keeps the suffix of ``path``, because some writers choose a format by it. When the block raises,
    the temporary file is removed and an existing file at ``path`` is left as it was. Parent folders are made. Raises
    DiskFull if there is no room for the file, OSError (ENAMETOOLONG) if the file system does not accept its name.

    sync: waits until the content is on the disk before it gets its name; else a power cut can leave zeros.
    """
    path = pathlib.Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Shortened, because mkstemp could not add to a name of maximum length.
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:STEM]}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = pathlib.Path(name)
        try:
            yield temporary
            if sync:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            # mkstemp makes private files; a result should have the permissions of any other new file.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:
            if no_room(error) is None:
                append_probe(temporary)  # numpy and torch do not report why a write failed
            raise
        finally:
            temporary.unlink(missing_ok=True)


def atomic_write(path: str | os.PathLike, content: str | bytes, sync: bool = False) -> None:
    """Writes a file, text as UTF-8, with ``atomic_path``."""
    with atomic_path(path, sync) as temporary:
        if isinstance(content, str):
            temporary.write_text(content, "utf-8")
        else:
            temporary.write_bytes(content)


@contextlib.contextmanager
def writing(path: str | os.PathLike | None) -> Iterator[None]:
    """Turns any library's error for a full disk into DiskFull. path: the file to name; None takes the error's."""
    try:
        yield
    except Exception as error:
        found = no_room(error)
        if found is None or isinstance(error, DiskFull):
            raise
        number, name = found
        raise DiskFull(number, os.strerror(number), os.fspath(path or name or "the output")) from error


def no_room(error: BaseException | None) -> tuple[int, str | None] | None:
    """errno and file name (if known) if the error or one of its causes means a full disk; else None."""
    seen = set()  # an error that was stored and raised again can be among its own causes
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno is not None and error.errno in NO_ROOM:
            return error.errno, error.filename
        if (found := RUST_ERROR.search(str(error))) and int(found[1]) in NO_ROOM:
            return int(found[1]), None
        error = error.__cause__ or error.__context__
    return None


def read_json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def write_json(path: str | os.PathLike, content: Any, indent: int | None = 1) -> None:
    """Writes the file durably: its content is on the disk before it gets its name."""
    atomic_write(path, json.dumps(content, indent=indent) + "\n", sync=True)


def append(path: str | os.PathLike, content: bytes) -> None:
    """Appends to a file in one write. If there is no room, raises DiskFull and leaves the file as it was.

    Only one process at a time may do so.
    """
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)


def append_probe(path: pathlib.Path) -> None:
    """Appends to a file that is about to be removed; if there is no room, the OSError says so."""
    if path.exists():
        with path.open("ab") as file:
            file.write(PROBE)
            file.flush()
            os.fsync(file.fileno())


def printable(path: str | os.PathLike) -> str:
    """The path on one line, for messages and reports, ``escaped``: bytes that are not UTF-8 (``\\udcff``) could not be
    written to a text file either."""
    return escaped(os.fspath(path))


def cache_folder() -> pathlib.Path:
    """Where the package keeps what it can recompute: ``~/.cache/s3prl_ofa``, or below ``XDG_CACHE_HOME``."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "s3prl_ofa")


def digest(path: pathlib.Path) -> str:
    """SHA-256 of a file, or of all files in a folder (a Hugging Face checkpoint)."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()
