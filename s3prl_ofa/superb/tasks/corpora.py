"""The one parser of LibriSpeech-like folders and pronunciation lexicons, and which utterances can be used.

The folders SPLIT/SPEAKER/CHAPTER/ hold audio files, named after their utterances, and ``*.trans.txt`` files with lines
of an utterance's name and its text. Every command that reads such a corpus gets its utterances from here, and so do
S3PRL's datasets.
"""

import dataclasses
import functools
import io
import logging
import pathlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator

from s3prl_ofa.errors import UsageError, listed
from s3prl_ofa.io.audio import ALL_SUFFIXES, OTHER_SUFFIXES, SUFFIXES
from s3prl_ofa.io.files import printable
from s3prl_ofa.io.scan import scan

logger = logging.getLogger(__name__)

SHOWN = 3  # utterances or files that one message names
SHOWN_LABELS = 20
WORD_END = "|"  # asr's label after each word
ALTERNATIVE = re.compile(r"\(\d+\)$")  # after a word, in cmudict


@dataclasses.dataclass(frozen=True)
class Utterance:
    """audio: its file. text: its transcript, in upper case. source: the file and line that the text comes from."""

    audio: pathlib.Path
    text: str
    source: str


@dataclasses.dataclass
class Found:
    """utterances: in the order of folders and lines. left_out: why each other one cannot be used, by its audio."""

    utterances: list[Utterance] = dataclasses.field(default_factory=list)
    left_out: dict[pathlib.Path, str] = dataclasses.field(default_factory=dict)


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
    """The sub-folders of LibriSpeech that hold transcripts, such as train-clean-100; unreadable ones are logged."""
    return [split.name for split in folders(librispeech) if has_transcripts(split)]


def has_transcripts(split: pathlib.Path) -> bool:
    try:
        return any(transcripts(chapter) for chapter in chapters(split))
    except UsageError as error:
        warn_once(str(error))
        return False


def has_audio(split: pathlib.Path) -> bool:
    try:
        return any(path.suffix.lower() in ALL_SUFFIXES for chapter in chapters(split) for path in listing(chapter))
    except UsageError:  # has_transcripts has told of it
        return False


def listing(folder: pathlib.Path) -> list[pathlib.Path]:
    """What a folder holds, sorted, without hidden files such as macOS's ``._*`` and ``.DS_Store``.

    Raises UsageError naming the folder when it cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UsageError(f"{folder}: this folder cannot be read ({error.strerror})") from None


def folders(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in listing(folder) if path.is_dir()]


def chapters(split: pathlib.Path) -> Iterator[pathlib.Path]:
    """The speaker/chapter folders of a split."""
    return (chapter for speaker in folders(split) for chapter in folders(speaker))


def transcripts(chapter: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in listing(chapter) if path.name.endswith(".trans.txt")]


def read_split(split: pathlib.Path) -> Found:
    """The utterances of a split by its transcripts and file names; no audio file is opened.

    Raises UsageError when the folder is missing or holds no transcripts, and for a transcript that is not UTF-8.
    """
    if not split.is_dir():
        there = ", ".join(split_names(split.parent)) if split.parent.is_dir() else "nothing"
        raise UsageError(f"there is no split {split.name} in {split.parent}; it has {there or 'no split'}")
    found = read_chapters(chapters(split))
    if not (found.utterances or found.left_out):
        raise UsageError(f"{split} holds no speaker/chapter/*.trans.txt with utterances")
    return found


def read_chapters(chapters: Iterable[pathlib.Path]) -> Found:
    """The utterances of these folders; left out are those without audio, without text, or with two different texts.

    Audio in any format is found beside its transcript. Raises UsageError for a transcript that is not UTF-8.
    """
    found = Found()
    for chapter in chapters:
        # of several files of an utterance, the first by name in a readable format counts
        files = listing(chapter)[::-1]
        audio = {
            composed(path.stem): path
            for kind in (OTHER_SUFFIXES, SUFFIXES)
            for path in files
            if path.suffix.lower() in kind
        }
        texts: dict[str, tuple[str, str]] = {}
        conflicts: dict[str, str] = {}
        for path in transcripts(chapter):
            for number, line in read_lines(path):
                name, *words = line.split()
                name = composed(name)
                text, source = capitals(" ".join(words)), f"{path}, line {number}"
                if texts.setdefault(name, (text, source))[0] != text:
                    conflicts[name] = f"has different texts in {texts[name][1]} and {source}"
        for name, (text, source) in texts.items():
            path = audio.pop(name, None)
            if path is None:
                found.left_out[chapter / name] = f"no audio for {source}"
            elif not text or name in conflicts:
                found.left_out[path] = conflicts.get(name, f"no text in {source}")
            else:
                found.utterances.append(Utterance(path, text, source))
        found.left_out.update(dict.fromkeys(audio.values(), "no line in a *.trans.txt beside it"))
    return found


def check_audio(found: Found, what: str) -> Found:
    """``found`` with the utterances whose audio cannot be used moved to ``left_out``.

    what: the label of the progress bar. All files are decoded, once per process (about 1700 s of FLAC a second on one
    core): a file that is damaged in its middle would otherwise end a training hours later.
    """
    usable = scan([utterance.audio for utterance in found.utterances], None, what, verify=True)
    return Found(
        [utterance for utterance in found.utterances if utterance.audio in usable.samples], found.left_out | usable.bad
    )


def read_usable(splits: Iterable[pathlib.Path]) -> list[Utterance]:
    """The utterances of these splits that can be used. The number of the others is logged with the first of them.

    Raises UsageError if a split has none that can be used.
    """
    utterances = []
    for split in splits:
        found = check_audio(read_split(split), split.name)
        report_left_out(found, str(split))
        utterances += found.utterances
    return utterances


def report_left_out(found: Found, what: str) -> None:
    """Logs once per process what is left out. Raises UsageError if no utterance remains."""
    total = len(found.utterances) + len(found.left_out)
    named = listed((f"{printable(path)} ({why})" for path, why in sorted(found.left_out.items())), SHOWN, "; ")
    if not found.utterances:
        raise UsageError(f"{what}: none of {total} utterances can be used: {named}")
    if found.left_out:
        warn_once(f"{what}: {len(found.left_out)} of {total} utterances are left out: {named}")


@functools.cache
def warn_once(message: str) -> None:
    """Logs a message only once: S3PRL reads a split again for every evaluation."""
    logger.warning("%s", message)


def letters(text: str) -> str:
    """The labels of asr: the letters of each word, followed by ``WORD_END``."""
    return text.replace(" ", WORD_END) + WORD_END


def refuse_unknown(found: dict[Utterance, Collection[str]], what: str, cure: str) -> None:
    """Raises UsageError if there are utterances with labels that their task does not know.

    found: the unknown labels of every utterance of a split, mostly none. what: the kind of labels and where they are
    missing. cure: what to do.
    """
    unknown = {utterance: labels for utterance, labels in found.items() if labels}
    if not unknown:
        return
    labels = sorted(set().union(*unknown.values()))
    shown = listed((label if label.isprintable() else ascii(label) for label in labels), SHOWN_LABELS, " ")
    places = listed((f"{utterance.audio.stem} ({utterance.source})" for utterance in unknown), SHOWN, "; ")
    raise UsageError(f"{len(unknown)} of {len(found)} utterances have {what}: {shown}, in {places}; {cure}")


def read_lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """(number, text without white space around it) of every line of a UTF-8 file that is not blank.

    A byte order mark is skipped; any system's line endings are accepted. Raises UsageError naming file and line for
    anything else.
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
            f"{path}, line {line}: not UTF-8 text (perhaps Latin-1 or UTF-16?); "
            f"`iconv -f ENCODING -t UTF-8 FILE` converts it"
        )
    return ((number, line.strip()) for number, line in enumerate(io.StringIO(text, None), 1) if line.strip())


def capitals(text: str) -> str:
    """The text as labels see it: Unicode's upper case (ß becomes SS), each letter composed with its accents (NFC)."""
    return composed(text.upper())


def composed(text: str) -> str:
    """Each letter composed with its accents (NFC); macOS may store file names decomposed."""
    return unicodedata.normalize("NFC", text)


def lexicon_entries(files: Iterable[str | pathlib.Path]) -> Iterator[tuple[str, str, list[str]]]:
    """Yields (place, word in capitals, phones) for every line WORD PHONES; the place is "FILE, line N".

    Word and phones may be separated by spaces or tabs. As in cmudict, ``;;;`` begins a comment line, ``#`` a comment
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
