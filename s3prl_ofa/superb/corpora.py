"""Reading corpora as they are laid out on disk: LibriSpeech's folders and transcripts, pronunciation lexicons."""

import pathlib
from collections.abc import Iterable, Iterator

from s3prl_ofa.audio import SUFFIXES
from s3prl_ofa.errors import UsageError


def corpus_root(root: str | pathlib.Path | None, option: str, inner: str) -> pathlib.Path:
    """The absolute folder of a corpus; a folder that holds the corpus in a sub-folder ``inner`` will do as well.

    Raises UsageError naming ``option`` when no root was given or it is not a folder.
    """
    if root is None:
        raise UsageError(f"this task reads {inner}: say where it is with {option} ROOT")
    folder = pathlib.Path(root).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{option} {root}: there is no such folder")
    return ((folder / inner) if (folder / inner).is_dir() else folder).resolve()


def split_names(librispeech: pathlib.Path) -> list[str]:
    """The sub-folders of LibriSpeech that hold transcripts, such as train-clean-100."""
    folders = sorted(folder for folder in librispeech.iterdir() if folder.is_dir())
    return [folder.name for folder in folders if next(folder.glob("*/*/*.trans.txt"), None)]


def read_transcripts(split: pathlib.Path) -> Iterator[tuple[pathlib.Path, str, str]]:
    """Yields (folder, utterance, text in capitals) for every line of a split's ``speaker/chapter/*.trans.txt``."""
    for path in sorted(split.glob("*/*/*.trans.txt")):
        for line in path.read_text("utf-8").splitlines():
            utterance, _, text = line.strip().partition(" ")
            if utterance:
                yield path.parent, utterance, " ".join(text.upper().split())


def read_split(split: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
    """(audio file, text) of a LibriSpeech split; audio in any format, found beside its transcript.

    Raises UsageError when the folder is missing or holds no utterance, and when a transcript has no audio.
    """
    if not split.is_dir():
        there = ", ".join(split_names(split.parent)) if split.parent.is_dir() else "nothing"
        raise UsageError(f"there is no split {split.name} in {split.parent}; it has {there or 'no split'}")
    audio: dict[pathlib.Path, dict[str, pathlib.Path]] = {}
    utterances, missing = [], []
    for folder, utterance, text in read_transcripts(split):
        if folder not in audio:
            audio[folder] = {path.stem: path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
        path = audio[folder].get(utterance)
        if path is None:
            missing.append(folder / utterance)
        else:
            utterances.append((path, text))
    if missing:
        raise UsageError(f"{len(missing)} utterances of {split} have a transcript without audio, such as {missing[0]}")
    if not utterances:
        raise UsageError(f"{split} holds no speaker/chapter/*.trans.txt with utterances")
    return utterances


def read_lexicon(files: Iterable[str | pathlib.Path]) -> dict[str, list[str]]:
    """The first pronunciation of every word, in capitals, from lines of a word and its phones.

    Words and phones may be separated by spaces or tabs. Raises UsageError when a file is missing or a line has no
    phone.
    """
    lexicon: dict[str, list[str]] = {}
    for path in map(pathlib.Path, files):
        if not path.is_file():
            raise UsageError(f"there is no lexicon {path}; `s3prl-ofa prepare lexicon` makes one")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            word, *phones = line.split() or [""]
            if word and not phones:
                raise UsageError(f"{path}, line {number}: the word {word} has no phones")
            if word:
                lexicon.setdefault(word.upper(), phones)
    return lexicon
