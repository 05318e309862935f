"""For sid: the list of training, validation and test files, VoxCeleb1's own as far as its files exist, or a new one."""

import pathlib
import random
from collections import defaultdict

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.audio import find_audio
from s3prl_ofa.superb.prepare.output import Output
from s3prl_ofa.superb.tasks import speaker_lists
from s3prl_ofa.superb.tasks.speaker_lists import PARTS, SPEAKER_LISTS, speaker_of

TRAIN, DEV, TEST = PARTS.values()
HELD_OUT = 0.1  # of every speaker's files, for validation and for test each


def write_speaker_list(output: Output, root: pathlib.Path, given: pathlib.Path | None, seed: int) -> None:
    """Writes a line PART FILE for each usable file; the part is 1 for train, 2 for dev, 3 for test."""
    official = given or next((root / name for name in SPEAKER_LISTS if (root / name).is_file()), None)
    if official and not official.is_file():
        raise UsageError(f"--list {official}: there is no such file")

    def make() -> tuple[str, str]:
        files = find_files(root, output.left_out)
        listed = speaker_lists.read_list(official) if official else {}
        samples = output.usable(files.values(), "VoxCeleb1")
        usable = [name for name, file in files.items() if file in samples]
        parts = {name: entry.part for name, entry in listed.items()} if official else make_list(usable, seed)
        output.left_out |= {
            root / name: f"{official}, line {entry.line}: no such file"
            for name, entry in listed.items()
            if name not in files
        }
        parts = {name: part for name, part in parts.items() if files.get(name) in samples}
        text = "".join(f"{part} {name}\n" for name, part in parts.items())
        train, dev, test = (list(parts.values()).count(part) for part in PARTS.values())
        source = f"from {official}" if official else "divided at random, not VoxCeleb1's own split"
        return text, f"{train} train, {dev} dev, {test} test of {len(set(map(speaker_of, parts)))} speakers, {source}"

    output.write(SPEAKER_LISTS[0], make)


def find_files(root: pathlib.Path, left_out: dict[pathlib.Path, str]) -> dict[str, pathlib.Path]:
    """All audio files of speakers below ``root``, by SPEAKER/... as in a list; others go into ``left_out``.

    Raises UsageError if there are none, and if folders are nested too deeply to tell the speakers: without VoxCeleb1's
    ``*/wav``, there may be at most one folder, of a recording, between speaker and file.
    """
    files: dict[str, pathlib.Path] = {}
    folders = speaker_lists.speaker_folders(root)
    for folder in folders:
        for path in find_audio(folder):
            name = path.relative_to(folder).as_posix()
            if speaker_lists.parse_line(f"{TRAIN} {name}") == (TRAIN, name):
                files.setdefault(name, path)
            else:
                reason = "its name cannot be in a list; rename it" if "/" in name else "in no speaker's folder"
                left_out[path] = reason
    deep = next((path for name, path in files.items() if name.count("/") > 2), None)
    if not files or deep and folders == [root]:
        found = f"{deep} is nested too deeply" if deep else f"{root} holds no audio of speakers"
        raise UsageError(f"{found}; expected {speaker_lists.LAYOUT}")
    return files


def make_list(names: list[str], seed: int) -> dict[str, int]:
    """Divides every speaker's files into training, validation and test, the same way for the same names and seed.

    A recording (a folder of a speaker) goes into one part as a whole if the speaker has at least three; else the files
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
        # units that must be left for the other parts: validation and training, then training
        for part, left in ((TEST, 2), (DEV, 1)) if len(units) > 2 else ():
            taken = 0
            while len(units) > left and taken < HELD_OUT * len(files):
                unit = units.pop()
                parts.update(dict.fromkeys(unit, part))
                taken += len(unit)
        parts.update({name: TRAIN for unit in units for name in unit})
    return dict(sorted(parts.items()))
