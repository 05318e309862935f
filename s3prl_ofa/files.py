"""Writing files so that a reader never meets half of one, and a full disk is one sentence."""

import contextlib
import errno
import os
import pathlib
import re
import tempfile
import unicodedata
from collections.abc import Iterator

UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}  # categories of control characters, surrogates and line breaks
STEM = 40  # characters of a file's name in its temporary name; of at most 4 bytes each, where a name may have 255
# Windows has no quotas by that name. EFBIG: a limit of the file system, or of the shell, on the size of one file.
NO_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors tells
PROBE = bytes(1 << 16)


class DiskFull(OSError):
    """There is no room for a file: its disk is full, or a quota or a limit is reached. Named by ``filename``."""

    def __str__(self) -> str:
        return (
            f"{self.filename}: no room to write it ({self.strerror}); make room, then run the same command again: "
            "nothing was left half written"
        )


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a temporary name beside ``path``; when the block ends well the file is renamed to ``path``.

    The temporary name keeps the suffix of ``path``, because some writers choose a format by it. When the block raises,
    the temporary file is removed and whatever stood at ``path`` is untouched. Parent folders are made. Raises DiskFull
    where there is no room for the file, OSError (ENAMETOOLONG) when the file system does not take the name of ``path``.
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
                probe(temporary)  # numpy and torch only say that fewer bytes were written than should have been
            raise
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike | None) -> Iterator[None]:
    """Raises DiskFull for whatever a library makes of a full disk. path: None for the name that the error has."""
    try:
        yield
    except Exception as error:
        found = no_room(error)
        if found is None or isinstance(error, DiskFull):
            raise
        number, name = found
        raise DiskFull(number, os.strerror(number), os.fspath(path or name or "the output")) from error


def no_room(error: BaseException | None) -> tuple[int, str | None] | None:
    """Number and file of a full disk, by the error, those that it came from, or its text; None for other errors."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return error.errno, error.filename
        if (said := RUST_ERROR.search(str(error))) and int(said[1]) in NO_ROOM:
            return int(said[1]), None
        error = error.__cause__ or error.__context__
    return None


def append(path: str | os.PathLike, content: bytes, sync: bool = False) -> None:
    """Adds to a file in one write; where there is no room the file stays as it was, and DiskFull is raised.

    One process at a time may do so. sync: it is on the disk when this returns.
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
    """Adds to a file that is to be removed. Raises OSError where there is no room."""
    if path.exists():
        with path.open("ab") as file:
            file.write(PROBE)
            file.flush()
            os.fsync(file.fileno())


def printable(path: str | os.PathLike) -> str:
    """The path for people and reports, on one line: control characters and line breaks become ``\\n``, ``\\t``, and
    bytes that are no UTF-8, which no text file takes, ``\\udcff``."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in UNPRINTABLE else character
        for character in os.fspath(path)
    )
