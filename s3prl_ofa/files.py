"""Writing files so that a reader never meets half of one."""

import contextlib
import os
import pathlib
import tempfile
import unicodedata
from collections.abc import Iterator

UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}  # categories of control characters, surrogates and line breaks
STEM = 40  # characters of a file's name in its temporary name; of at most 4 bytes each, where a name may have 255


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a temporary name beside ``path``; when the block ends well the file is renamed to ``path``.

    The temporary name keeps the suffix of ``path``, because some writers choose a format by it. When the block raises,
    the temporary file is removed and whatever stood at ``path`` is untouched. Parent folders are made. Raises OSError
    (ENAMETOOLONG) when the file system does not take the name of ``path``.
    """
    path = pathlib.Path(path)
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
    finally:
        temporary.unlink(missing_ok=True)


def printable(path: str | os.PathLike) -> str:
    """The path for people and reports, on one line: control characters and line breaks become ``\\n``, ``\\t``, and
    bytes that are no UTF-8, which no text file takes, ``\\udcff``."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in UNPRINTABLE else character
        for character in os.fspath(path)
    )
