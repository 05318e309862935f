"""Writing files so that a reader never sees half of one, and a full disk gives one clear error."""

import contextlib
import errno
import os
import pathlib
import re
import tempfile
import unicodedata
from collections.abc import Iterator

UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}  # Unicode categories of control characters, surrogates and line breaks
STEM = 40  # characters of a file's name in its temporary name; of at most 4 bytes each, where a name may have 255
TEMPORARY_NAME = re.compile(r"\..+\.[a-z0-9_]{8}(\.\w+)?")  # what atomic_path calls its temporary files
# Windows has no EDQUOT. EFBIG: the size of a file is limited, by the file system or by the shell.
NO_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # in messages of safetensors
PROBE = bytes(1 << 16)


class DiskFull(OSError):
    """There is no room for the file ``filename``: its disk is full, or a quota or size limit is reached."""

    def __str__(self) -> str:
        return (
            f"{self.filename}: no room to write it ({self.strerror}); free some space and run the command again: "
            "nothing was left half written"
        )


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a temporary name beside ``path``; when the block ends well the file is renamed to ``path``.

    The temporary name keeps the suffix of ``path``, because some writers choose a format by it. When the block raises,
    the temporary file is removed and whatever stood at ``path`` is untouched. Parent folders are made. Raises DiskFull
    if there is no room for the file, OSError (ENAMETOOLONG) if the file system does not accept the name of ``path``.
    """
    path = pathlib.Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Shortened, because a name that just fits has no room for what mkstemp adds.
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:STEM]}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = pathlib.Path(name)
        try:
            yield temporary
            # mkstemp makes files private; a result should have the permissions of any other new file.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:
            if no_room(error) is None:
                probe(temporary)  # numpy and torch only report that too few bytes were written
            raise
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike | None) -> Iterator[None]:
    """Turns any library's error for a full disk into DiskFull. path: the file to name; None takes the error's own."""
    try:
        yield
    except Exception as error:
        found = no_room(error)
        if found is None or isinstance(error, DiskFull):
            raise
        number, name = found
        raise DiskFull(number, os.strerror(number), os.fspath(path or name or "the output")) from error


def no_room(error: BaseException | None) -> tuple[int, str | None] | None:
    """errno and file name (if known) where the error or one of its causes means a full disk; else None."""
    seen = set()  # an error that was kept and raised again can be among its own causes
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return error.errno, error.filename
        if (said := RUST_ERROR.search(str(error))) and int(said[1]) in NO_ROOM:
            return int(said[1]), None
        error = error.__cause__ or error.__context__
    return None


def append(path: str | os.PathLike, content: bytes, sync: bool = False) -> None:
    """Appends to a file in one write. Raises DiskFull, and leaves the file as it was, if there is no room.

    Only one process at a time may do so. sync: the content is on the disk when this returns.
    """
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if sync:
                    os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)


def probe(path: pathlib.Path) -> None:
    """Appends to a file that is about to be removed. Raises OSError if there is no room."""
    if path.exists():
        with path.open("ab") as file:
            file.write(PROBE)
            file.flush()
            os.fsync(file.fileno())


def printable(path: str | os.PathLike) -> str:
    """The path on one line, for messages and reports. Control characters and line breaks are escaped (``\\n``), and so
    are bytes that are not UTF-8 (``\\udcff``), which cannot be written to a text file."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in UNPRINTABLE else character
        for character in os.fspath(path)
    )
