"""Speaker identification's list: the files of train, dev and test, and a label for every speaker in it.

S3PRL's SID knows only VoxCeleb1's 1251 speakers: it takes labels from the numbers in their names, and its search for
the files of a list is so slow that it caches the result in a pickle. Here its dataset gets files and labels from us.
For VoxCeleb1's speakers the labels are S3PRL's own; other speakers get a label each, kept in the experiment's config.
"""

import argparse
import importlib
import logging
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from s3prl_ofa.errors import UsageError, listed
from s3prl_ofa.io.scan import scan
from s3prl_ofa.superb.tasks.corpora import read_lines

logger = logging.getLogger(__name__)

DOWNSTREAMS = ("voxceleb1", "voxceleb1_framelevel")  # S3PRL's tasks that read such a list
PARTS = {"train": 1, "dev": 2, "test": 3}  # as a list's first column says it
LINE = re.compile(r"([123])\s+(?=\S)((?!\.\.?/)[^/\r\n]+/[^\r\n]+)")
VOXCELEB1 = [f"id{number}" for number in range(10001, 11252)]  # a speaker's label is its index, as in S3PRL
LAYOUT = "ROOT/*/wav/SPEAKER/... as in VoxCeleb1, ROOT/SPEAKER/FILE or ROOT/SPEAKER/RECORDING/FILE"
MAKE_LIST = "`s3prl-ofa prepare voxceleb1` makes a list of the files that are there"


class Listed(NamedTuple):
    """A file of a list: its part (1, 2 or 3) and the line that says so, counted from 1."""

    part: int
    line: int


def speaker_of(name: str) -> str:
    return name.split("/")[0]


def parse_line(line: str) -> tuple[int, str] | None:
    """(part, file) of a line PART SPEAKER/...; None for any other line. The file may contain spaces."""
    found = LINE.fullmatch(line.strip())
    return (int(found[1]), found[2]) if found else None


def read_list(path: pathlib.Path) -> dict[str, Listed]:
    """The files of a list of lines PART SPEAKER/.... Raises UsageError naming the list, and the line that is wrong."""
    listed: dict[str, Listed] = {}
    for number, line in read_lines(path):
        found = parse_line(line)
        if found is None:
            raise UsageError(
                f"{path}, line {number}: expected 1 (train), 2 (dev) or 3 (test) and a file SPEAKER/..., "
                f"found {line[:80]!r}"
            )
        part, name = found
        if name in listed:
            raise UsageError(f"{path}, line {number}: {name} is already in line {listed[name].line}")
        listed[name] = Listed(part, number)
    return listed


def speaker_folders(root: pathlib.Path) -> list[pathlib.Path]:
    """The folders that hold a folder for each speaker: ``root/*/wav`` as in VoxCeleb1, or ``root`` itself.

    Raises UsageError when neither holds one.
    """
    found = sorted({speaker.parent for speaker in root.glob("*/wav/*/")})
    if not found and ((root / "wav").is_dir() or next(root.glob("*/"), None) is None):
        raise UsageError(f"{root} holds no folders of speakers; expected {LAYOUT}")
    return found or [root]


def feed_s3prl(args: argparse.Namespace, config: dict[str, Any], trained: dict[str, Any] | None) -> None:
    """Gives S3PRL's SID its files and labels, for the run that ``args`` and ``config`` describe.

    trained: the config of the experiment whose weights are used, or None for a new training. Speakers other than
    VoxCeleb1's are put into ``config`` (``downstream_expert.datarc.speakers``, by label), and so into the checkpoints.
    Raises UsageError when the list cannot be used.
    """
    datarc = data_of(config)
    if missing := [key for key in ("file_path", "meta_data") if key not in datarc]:
        raise UsageError(f"the config's downstream_expert.datarc has no {missing[0]}")
    path, root = pathlib.Path(datarc["meta_data"]), pathlib.Path(datarc["file_path"])
    if not path.is_file():
        raise UsageError(f"there is no speaker list {path}; {MAKE_LIST}")
    listed = read_list(path)
    own = data_of(config if trained is None else trained).get("speakers")
    if own is None and trained is None:
        names = sorted(set(map(speaker_of, listed)))
        own = None if set(names) <= set(VOXCELEB1) else names
    datarc.pop("speakers", None)
    if own is not None:
        datarc["speakers"] = own
    labels = labels_of(VOXCELEB1 if own is None else own)
    splits = splits_used(args, config)
    # a training checks the whole list, so that its test does not fail hours later for a missing file
    parts = {PARTS[split] for split in (PARTS if args.mode == "train" else splits)}
    wanted = {name: entry for name, entry in listed.items() if entry.part in parts}
    check_known(path, wanted, labels)
    usable = usable_files(path, root, wanted)
    files = {
        split: [(file, labels[speaker_of(name)]) for name, file in usable.items() if wanted[name].part == part]
        for split, part in PARTS.items()
    }
    if empty := [split for split in splits if not files[split]]:
        raise UsageError(f"{path} lists no usable file of {empty[0]} (a line that begins with {PARTS[empty[0]]})")
    if args.mode == "train":
        check_trained(path, listed, set(usable), own is not None)
    counts = ", ".join(f"{len(files[split])} {split}" for split in splits)
    logger.info("%s: %s files, %d labels", path, counts, len(labels))
    patch_dataset(list(labels), files)


def data_of(config: dict[str, Any]) -> dict[str, Any]:
    """The config's ``downstream_expert.datarc``, empty if it has none."""
    expert = config.get("downstream_expert")
    datarc = expert.get("datarc") if isinstance(expert, dict) else None
    return datarc if isinstance(datarc, dict) else {}


def labels_of(speakers: Any) -> dict[str, int]:
    """The label of every speaker: its index in the list."""
    if isinstance(speakers, list) and all(isinstance(name, str) for name in speakers):
        labels = {name: label for label, name in enumerate(speakers)}
        if len(labels) == len(speakers) > 0:
            return labels
    raise UsageError("the config's downstream_expert.datarc.speakers must be a list of different names")


def splits_used(args: argparse.Namespace, config: dict[str, Any]) -> list[str]:
    """The splits that a run reads: train and those that it evaluates on, or the one of an evaluation."""
    runner = config.get("runner") or {}
    used = [args.evaluate_split] if args.mode == "evaluate" else []
    if args.mode == "train":
        used = [runner.get("train_dataloader", "train"), *runner.get("eval_dataloaders", [])]
    if unknown := [split for split in used if split not in PARTS]:
        raise UsageError(f"sid has the splits {', '.join(PARTS)}, found {unknown[0]}")
    return [split for split in PARTS if split in used]


def check_known(path: pathlib.Path, wanted: dict[str, Listed], labels: dict[str, int]) -> None:
    """Raises UsageError naming the speakers of a list that the model has no label for."""
    unknown = lines_of_speakers(wanted, lambda speaker: speaker not in labels)
    if unknown:
        raise UsageError(
            f"{path} has speakers that are not among the model's {len(labels)} (such as "
            f"{next(iter(labels))}): {shown(unknown)}; remove their lines, or train a new experiment on this list"
        )


def check_trained(path: pathlib.Path, listed: dict[str, Listed], usable: set[str], own: bool) -> None:
    """Reports the speakers in any part of a list that have no usable training file: UsageError for own speakers.

    For VoxCeleb1's it is a warning, because S3PRL has labels for them whether they are in a list or not.
    """
    trained = {speaker_of(name) for name in usable if listed[name].part == PARTS["train"]}
    untrained = lines_of_speakers(listed, lambda speaker: speaker not in trained)
    if untrained:
        found = f"{path} has speakers without a usable training file: {shown(untrained)}"
        if own:
            raise UsageError(f"{found}; give each a line that begins with 1, or remove its lines")
        logger.warning("%s; they cannot be recognised", found)


def lines_of_speakers(listed: dict[str, Listed], chosen: Callable[[str], bool]) -> dict[str, int]:
    """The speakers of a list that are ``chosen``, each with its first line."""
    lines: dict[str, int] = {}
    for name, entry in listed.items():
        if chosen(speaker_of(name)):
            lines.setdefault(speaker_of(name), entry.line)
    return lines


def shown(lines: dict[str, int]) -> str:
    """Some of the names, each with its line."""
    return listed(f"{name} (line {line})" for name, line in lines.items())


def usable_files(path: pathlib.Path, root: pathlib.Path, wanted: dict[str, Listed]) -> dict[str, str]:
    """The path of every file of a list that can be used; the others are left out and logged.

    Raises UsageError naming the lines whose files are missing.
    """
    folders = speaker_folders(root)
    files, missing = {}, {}
    for name, entry in wanted.items():
        places = (os.path.join(folder, name) for folder in folders)
        file = next((place for place in places if os.path.lexists(place)), None)
        if file is None:
            missing[name] = entry.line
        else:
            files[name] = pathlib.Path(file)
    if missing:
        raise UsageError(f"{path} lists files that are not in {root}: {shown(missing)}; {MAKE_LIST}")
    found = scan(files.values(), None, "speech files", verify=True)
    bad = {f"{file}: {found.bad[file]}": wanted[name].line for name, file in files.items() if file in found.bad}
    if bad:
        logger.warning(
            "%s: %d of %d files cannot be used and are left out: %s", path, len(bad), len(wanted), shown(bad)
        )
    return {name: str(file) for name, file in files.items() if file in found.samples}


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
