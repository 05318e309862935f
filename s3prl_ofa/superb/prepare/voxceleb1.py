"""VoxCeleb1's list of training, development and test files, checked against what is there, or made anew."""

import pathlib
import random
import re
from collections import defaultdict

from s3prl_ofa.audio import find_audio
from s3prl_ofa.errors import UsageError

TRAIN, DEV, TEST = 1, 2, 3  # as the list's first column says it
FIRST_SPEAKER, LAST_SPEAKER = 10001, 11251  # S3PRL's SID has a class for each
HELD_OUT = 0.1  # of every speaker's files, for development and for test each


def find_files(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """All audio files at ``root/*/wav/idXXXXX/...``, by their name from idXXXXX on.

    Raises UsageError when there are none, and for a speaker that S3PRL has no class for.
    """
    files: dict[str, pathlib.Path] = {}
    for wav in sorted(root.glob("*/wav")):
        files.update({path.relative_to(wav).as_posix(): path for path in find_audio(wav)})
    if not files:
        raise UsageError(f"{root} holds no audio at */wav/idXXXXX/...")
    for speaker in sorted({name.split("/")[0] for name in files}):
        number = re.fullmatch(r"id(\d+)", speaker)
        if not number or not FIRST_SPEAKER <= int(number[1]) <= LAST_SPEAKER:
            raise UsageError(f"S3PRL knows the speakers id{FIRST_SPEAKER} to id{LAST_SPEAKER}, {root} holds {speaker}")
    return files


def read_list(path: pathlib.Path) -> dict[str, int]:
    """A list's part (1, 2 or 3) of every file. Raises UsageError naming the file, and a line that is something else."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text in UTF-8; expected a list of lines PART idXXXXX/...") from None
    parts = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if fields and (len(fields) != 2 or fields[0] not in ("1", "2", "3")):
            raise UsageError(f"{path}, line {number}: expected 1, 2 or 3 and a file, found {line.strip()[:80]!r}")
        if fields:
            parts[fields[1]] = int(fields[0])
    return parts


def make_list(names: list[str], seed: int) -> dict[str, int]:
    """Divides every speaker's files into training, development and test, the same way for the same names and seed.

    A recording (a folder of a speaker) goes into one part as a whole where a speaker has at least three; else the files
    themselves are divided. A speaker with fewer than three files is for training only.
    """
    speakers: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        speakers[name.split("/")[0]].append(name)
    parts = {}
    for speaker, files in speakers.items():
        recordings: dict[str, list[str]] = defaultdict(list)
        for name in files:
            recordings[name.rpartition("/")[0]].append(name)
        units = list(recordings.values()) if len(recordings) >= 3 else [[name] for name in files]
        random.Random(f"{seed} {speaker}").shuffle(units)
        # what must be left for the other parts: development and training, then training
        for part, left in ((TEST, 2), (DEV, 1)) if len(units) > 2 else ():
            taken = 0
            while len(units) > left and taken < HELD_OUT * len(files):
                unit = units.pop()
                parts.update(dict.fromkeys(unit, part))
                taken += len(unit)
        parts.update({name: TRAIN for unit in units for name in unit})
    return dict(sorted(parts.items()))
