"""Reading corpora as they are laid out on disk: LibriSpeech's folders and transcripts, pronunciation lexicons."""

import io
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

from s3prl_ofa.audio import SUFFIXES
from s3prl_ofa.errors import UsageError

ALTERNATIVE = re.compile(r"\(\d+\)$")  # after a word, in cmudict


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


def read_lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """(number, text without white space around it) of every line of a UTF-8 file that is not blank.

    A byte order mark is skipped; lines end as on any system. Raises UsageError naming file and line for anything else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
        bad = content.find(b"\0")
    except UnicodeDecodeError as error:
        bad = error.start
    if bad >= 0:
        line = content.count(b"\n", 0, bad) + 1
        raise UsageError(
            f"{path}, line {line}: not a text in UTF-8 (perhaps Latin-1 or UTF-16?); "
            f"`iconv -f ENCODING -t UTF-8 FILE` converts it"
        )
    return ((number, line.strip()) for number, line in enumerate(io.StringIO(text, None), 1) if line.strip())


def capitals(text: str) -> str:
    """The text as labels are made of it: Unicode's upper case (ß becomes SS), letters and their accents as one."""
    return unicodedata.normalize("NFC", text.upper())


def lexicon_entries(files: Iterable[str | pathlib.Path]) -> Iterator[tuple[str, str, list[str]]]:
    """Yields (place, word in capitals, phones) for every line WORD PHONES; the place is "FILE, line N".

    Word and phones may be separated by spaces or tabs. As in cmudict, ``;;;`` begins a line of comment, ``#`` a comment
    after the phones, and WORD(2) is another pronunciation of WORD. Raises UsageError when a file is missing or not in
    UTF-8, and for a word without phones.
    """
    for path in files:
        if not pathlib.Path(path).is_file():
            raise UsageError(f"there is no lexicon {path}; `s3prl-ofa prepare lexicon` makes one")
        for number, line in read_lines(pathlib.Path(path)):
            if line.startswith(";;;"):
                continue
            word, *phones = line.split()
            comment = (index for index, phone in enumerate(phones) if phone.startswith("#"))
            phones = phones[: next(comment, None)]
            if not phones:
                raise UsageError(f"{path}, line {number}: the word {word} has no phones")
            yield f"{path}, line {number}", capitals(ALTERNATIVE.sub("", word)), phones


def read_lexicon(files: Iterable[str | pathlib.Path]) -> dict[str, list[str]]:
    """The first pronunciation of every word, in capitals; see ``lexicon_entries``."""
    lexicon: dict[str, list[str]] = {}
    for _, word, phones in lexicon_entries(files):
        lexicon.setdefault(word, phones)
    return lexicon
