"""Lists of speech files by speaker, and the folders that hold their speakers."""

import pathlib
import re
from typing import NamedTuple

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.tasks.corpora import read_lines

SPEAKER_LISTS = ("veri_test_class.txt", "iden_split.txt")  # S3PRL's name for VoxCeleb1's list, and VoxCeleb's own
PARTS = {"train": 1, "dev": 2, "test": 3}  # the number in a list's first column
LINE = re.compile(r"([123])\s+(\S[^\r\n]*)")
LAYOUT = "ROOT/*/wav/SPEAKER/... as in VoxCeleb1, ROOT/SPEAKER/FILE or ROOT/SPEAKER/RECORDING/FILE"


class Entry(NamedTuple):
    """A file's place in a list: its part (1, 2 or 3) and its line, counted from 1."""

    part: int
    line: int


def speaker_of(name: str) -> str:
    return name.split("/")[0]


def parse_line(line: str) -> tuple[int, str] | None:
    """(part, file) of a line PART SPEAKER/...; None for any other line. The file may contain spaces, but not ``..``."""
    found = LINE.fullmatch(line.strip())
    parts = found[2].split("/") if found else []
    return (int(found[1]), found[2]) if len(parts) > 1 and not {"", ".", ".."} & set(parts) else None


def read_list(path: pathlib.Path) -> dict[str, Entry]:
    """The files of a list of lines PART SPEAKER/.... Raises UsageError naming the list and the wrong line."""
    entries: dict[str, Entry] = {}
    for number, line in read_lines(path):
        found = parse_line(line)
        if found is None:
            raise UsageError(
                f"{path}, line {number}: expected 1 (train), 2 (dev) or 3 (test) and a file SPEAKER/..., "
                f"found {line[:80]!r}"
            )
        part, name = found
        if name in entries:
            raise UsageError(f"{path}, line {number}: {name} is already in line {entries[name].line}")
        entries[name] = Entry(part, number)
    return entries


def speaker_folders(root: pathlib.Path) -> list[pathlib.Path]:
    """The folders that hold a folder for each speaker: ``root/*/wav`` as in VoxCeleb1, or ``root`` itself.

    Raises UsageError when neither holds one.
    """
    found = sorted({speaker.parent for speaker in root.glob("*/wav/*/")})
    if not found and ((root / "wav").is_dir() or next(root.glob("*/"), None) is None):
        raise UsageError(f"{root} holds no folders of speakers; expected {LAYOUT}")
    return found or [root]
