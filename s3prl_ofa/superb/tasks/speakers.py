"""Speaker identification in S3PRL: the train, dev and test files of a list, and a label for each of its speakers.

S3PRL's SID knows only the 1251 speakers of VoxCeleb1: it derives labels from the numbers in their names, and its search
for the files of a list is so slow that it caches the result in a pickle. Here its dataset gets files and labels from
us. VoxCeleb1's speakers keep S3PRL's labels; other speakers get labels that are stored in the experiment's config.
"""

import argparse
import importlib
import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any

from s3prl_ofa.errors import UsageError, listed
from s3prl_ofa.io.verified import verify_audio
from s3prl_ofa.superb.tasks.configs import mapping_at, splits_of
from s3prl_ofa.superb.tasks.speaker_lists import PARTS, Entry, read_list, speaker_folders, speaker_of

logger = logging.getLogger(__name__)

DOWNSTREAMS = ("voxceleb1", "voxceleb1_framelevel")  # S3PRL's tasks that read such a list
VOXCELEB1 = [f"id{number}" for number in range(10001, 11252)]  # a speaker's label is its index, as in S3PRL
MAKE_LIST = "`s3prl-ofa prepare voxceleb1` makes a list of the files that exist"


def feed_s3prl(args: argparse.Namespace, config: dict[str, Any], trained: dict[str, Any] | None) -> None:
    """Gives S3PRL's SID its files and labels, for the run that ``args`` and ``config`` describe.

    trained: the config of the experiment whose weights are used, or None for a new training. Speakers other than
    VoxCeleb1's are added to ``config`` (``downstream_expert.datarc.speakers``, by label) and thereby to the
    checkpoints. Raises UsageError if the list cannot be used.
    """
    datarc = mapping_at(config, "downstream_expert", "datarc")
    if missing := [key for key in ("file_path", "meta_data") if key not in datarc]:
        raise UsageError(f"the config's downstream_expert.datarc has no {missing[0]}")
    path, root = pathlib.Path(datarc["meta_data"]), pathlib.Path(datarc["file_path"])
    if not path.is_file():
        raise UsageError(f"there is no speaker list {path}; {MAKE_LIST}")
    entries = read_list(path)
    speakers = mapping_at(config if trained is None else trained, "downstream_expert", "datarc").get("speakers")
    if speakers is None and trained is None and not set(map(speaker_of, entries)) <= set(VOXCELEB1):
        speakers = sorted(set(map(speaker_of, entries)))
    datarc.pop("speakers", None)
    if speakers is not None:
        datarc["speakers"] = speakers
    labels = labels_of(VOXCELEB1 if speakers is None else speakers)
    splits = splits_of(config, args.mode, args.evaluate_split)
    if unknown := [split for split in splits if split not in PARTS]:
        raise UsageError(f"sid has no split {unknown[0]}; it has {', '.join(PARTS)}")
    # a training checks the whole list, so that its test does not fail hours later for a missing file
    parts = {PARTS[split] for split in (PARTS if args.mode == "train" else splits)}
    wanted = {name: entry for name, entry in entries.items() if entry.part in parts}
    if unknown := lines_of(wanted, lambda speaker: speaker not in labels):
        raise UsageError(
            f"{path} has speakers that are not among the model's {len(labels)} (such as {next(iter(labels))}): "
            f"{unknown}; remove their lines, or train a new experiment on this list"
        )
    usable = usable_files(path, root, wanted)
    files = {
        split: [(file, labels[speaker_of(name)]) for name, file in usable.items() if wanted[name].part == part]
        for split, part in PARTS.items()
    }
    if empty := [split for split in splits if not files[split]]:
        raise UsageError(f"{path} lists no usable file of {empty[0]} (a line that begins with {PARTS[empty[0]]})")
    trained_speakers = {speaker_of(name) for name in usable if wanted[name].part == PARTS["train"]}
    untrained = lines_of(entries, lambda speaker: speaker not in trained_speakers)
    if untrained and args.mode == "train":
        found = f"{path} has speakers without a usable training file: {untrained}"
        if speakers is not None:
            raise UsageError(f"{found}; give each a line that begins with 1, or remove its lines")
        logger.warning("%s; they cannot be recognized", found)  # S3PRL has labels for them, listed or not
    counts = ", ".join(f"{len(files[split])} {split}" for split in splits)
    logger.info("%s: %s files, %d labels", path, counts, len(labels))
    patch_dataset(list(labels), files)


def labels_of(speakers: Any) -> dict[str, int]:
    """The label of every speaker: its index in the list."""
    if isinstance(speakers, list) and all(isinstance(name, str) for name in speakers):
        labels = {name: label for label, name in enumerate(speakers)}
        if len(labels) == len(speakers) > 0:
            return labels
    raise UsageError("the config's downstream_expert.datarc.speakers must be a list of different names")


def lines_of(entries: dict[str, Entry], chosen: Callable[[str], bool]) -> str:
    """The first few ``chosen`` speakers of a list, each with its first line; empty if there are none."""
    lines: dict[str, int] = {}
    for name, entry in entries.items():
        lines.setdefault(speaker_of(name), entry.line)
    return listed(f"{speaker} (line {line})" for speaker, line in lines.items() if chosen(speaker))


def usable_files(path: pathlib.Path, root: pathlib.Path, wanted: dict[str, Entry]) -> dict[str, str]:
    """The path of every usable file of a list; the others are left out and logged.

    Raises UsageError naming the lines whose files are missing.
    """
    folders = speaker_folders(root)
    files: dict[str, pathlib.Path] = {}
    for name in wanted:
        places = (os.path.join(folder, name) for folder in folders)
        if file := next((place for place in places if os.path.lexists(place)), None):
            files[name] = pathlib.Path(file)
    if missing := listed(f"{name} (line {entry.line})" for name, entry in wanted.items() if name not in files):
        raise UsageError(f"{path} lists files that are not in {root}: {missing}; {MAKE_LIST}")
    audio = verify_audio(files.values(), None, "speech files", path.parent)
    bad = {file: (audio.bad[file], wanted[name].line) for name, file in files.items() if file in audio.bad}
    if bad:
        shown = listed(f"{file}: {reason} (line {line})" for file, (reason, line) in bad.items())
        logger.warning("%s: %d of %d files cannot be used and are left out: %s", path, len(bad), len(wanted), shown)
    return {name: str(file) for name, file in files.items() if file not in bad}


def patch_dataset(speakers: list[str], files: dict[str, list[tuple[str, int]]]) -> None:
    """Gives S3PRL's dataset its (file, label) of every split, and a class for each of ``speakers``."""
    dataset = importlib.import_module("s3prl.downstream.voxceleb1.dataset").SpeakerClassifiDataset

    def init(self, mode: str, file_path: pathlib.Path, meta_data: str, max_timestep: int | None = None) -> None:
        self.root, self.meta_data, self.max_timestep = file_path, meta_data, max_timestep
        self.speaker_num = len(speakers)
        self.dataset = [file for file, _ in files[mode]]
        self.label = [label for _, label in files[mode]]

    dataset.__init__ = init
    dataset.label2speaker = staticmethod(lambda labels: [speakers[label] for label in labels])
