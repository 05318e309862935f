"""The list of training, development and test files: VoxCeleb1's, checked against what is there, or a new one."""

import pathlib
import random
from collections import defaultdict

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.audio import find_audio
from s3prl_ofa.superb.tasks.speakers import LAYOUT, PARTS, parse_line, speaker_folders, speaker_of

TRAIN, DEV, TEST = PARTS.values()
HELD_OUT = 0.1  # of every speaker's files, for development and for test each


def find_files(root: pathlib.Path, bad: dict[pathlib.Path, str]) -> dict[str, pathlib.Path]:
    """All audio files of speakers below ``root``, by SPEAKER/... as in a list; others go into ``bad``.

    Raises UsageError if there are none, and if folders are nested too deeply to tell the speakers: without VoxCeleb1's
    ``*/wav``, there may be at most one folder, of a recording, between speaker and file.
    """
    files: dict[str, pathlib.Path] = {}
    folders = speaker_folders(root)
    for folder in folders:
        for path in find_audio(folder):
            name = path.relative_to(folder).as_posix()
            if parse_line(f"{TRAIN} {name}") == (TRAIN, name):
                files.setdefault(name, path)
            else:
                bad[path] = "in no speaker's folder" if "/" not in name else "its name cannot be in a list, rename it"
    deep = next((path for name, path in files.items() if name.count("/") > 2), None)
    if not files or deep and folders == [root]:
        found = f"{deep} is nested too deeply" if deep else f"{root} holds no audio of speakers"
        raise UsageError(f"{found}; expected {LAYOUT}")
    return files


def make_list(names: list[str], seed: int) -> dict[str, int]:
    """Divides every speaker's files into training, development and test, the same way for the same names and seed.

    A recording (a folder of a speaker) goes into one part as a whole where a speaker has at least three; else the files
    themselves are divided. A speaker with fewer than three files is for training only.
    """
    speakers: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        speakers[speaker_of(name)].append(name)
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
