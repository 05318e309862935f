"""Speech Commands for S3PRL's keyword spotting: S3PRL's twelve classes and its splits, limited to usable files.

S3PRL itself does not check files, and lists them in the order of the file system, so that equal runs differ.
"""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from s3prl.downstream.speech_commands import dataset

from s3prl_ofa.errors import UsageError, listed
from s3prl_ofa.io.audio import duration
from s3prl_ofa.superb.tasks.corpora import Corpus, Utterance, folders, listing

NOISE = "_background_noise_"

Clip = tuple[str, pathlib.Path]  # a class and a file


def usable(clips: Iterable[Clip], root: pathlib.Path) -> list[Clip]:
    """The usable clips, sorted; the others are logged. Raises UsageError if none is left."""
    corpus = Corpus([Utterance(path, name, "") for name, path in sorted(clips)])
    return [(utterance.text, utterance.audio) for utterance in corpus.usable(root)]


def divide(split_dataset: Callable[[str], Iterable[list[Clip]]], root: str) -> list[list[Clip]]:
    """The clips to train on and to validate with.

    split_dataset: S3PRL's function, which splits by a hash of the speaker in each file's name. Raises UsageError for a
    part without clips.
    """
    parts = list(split_dataset(root))
    if not all(parts):
        raise UsageError(f"{root} has too few files KEYWORD/SPEAKER_nohash_NUMBER.wav to train and to validate with")
    return [usable(clips, pathlib.Path(root)) for clips in parts]


class KeywordTrainingSet(dataset.SpeechCommandsDataset):
    """Clips of the keywords and of other words, and one-second pieces of the corpus's background noise.

    Raises UsageError for noise of less than a second.
    """

    def __init__(self, clips: list[Clip], **datarc: Any) -> None:
        super().__init__(clips, **datarc)
        noise = pathlib.Path(datarc["speech_commands_root"], NOISE)
        files = [path for path in listing(noise) if path.suffix == ".wav"] if noise.is_dir() else []
        silence = usable([("_silence_", path) for path in files], noise) if files else []
        self.data = [clip for clip in self.data if clip[0] != "_silence_"] + silence
        if short := [str(path) for _, path in silence if duration(path) < 1]:
            raise UsageError(f"background noise of less than a second: {listed(short)}; remove it")
        names = [name for name, _ in self.data]
        counts = {name: names.count(name) for name in set(names)}
        self.sample_weights = [len(names) / counts[name] for name in names]


class KeywordTestSet(dataset.SpeechCommandsTestingDataset):
    """The clips of the test set. Raises UsageError for a folder that is not one of the twelve classes."""

    def __init__(self, **datarc: Any) -> None:
        dataset.SpeechCommandsBaseDataset.__init__(self)
        root = pathlib.Path(datarc["speech_commands_test_root"])
        if unknown := [folder.name for folder in folders(root) if folder.name not in self.class2index]:
            raise UsageError(f"{root}: expected a folder for each of {', '.join(self.class2index)}, found {unknown[0]}")
        clips = [(folder.name, path) for folder in folders(root) for path in listing(folder) if path.suffix == ".wav"]
        self.data = usable(clips, root)
