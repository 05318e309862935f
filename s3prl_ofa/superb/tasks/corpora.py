"""The parser of LibriSpeech-like corpora and of pronunciation lexicons, and the choice of usable utterances.

The folders SPLIT/SPEAKER/CHAPTER/ hold audio files, named after their utterances, and ``*.trans.txt`` files with lines
of an utterance's name and its text. Every command that reads such a corpus, and every S3PRL dataset, gets its
utterances here.
"""

import dataclasses
import functools
import io
import logging
import pathlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from s3prl_ofa.arguments.run_downstream import option as flag
from s3prl_ofa.errors import UsageError, escaped, listed
from s3prl_ofa.io.audio import OTHER_SUFFIXES, SUFFIXES
from s3prl_ofa.io.files import printable
from s3prl_ofa.io.verified import verify_audio

logger = logging.getLogger(__name__)

# the usual name of the folder that each option gives
CORPORA = {
    "librispeech": "LibriSpeech",
    "voxceleb1": "VoxCeleb1",
    "speech_commands": "speech_commands",
    "fluent": "fluent_speech_commands_dataset",
    "snips": "SNIPS",
    "librimix": "LibriMix",
    "iemocap": "IEMOCAP_full_release",
    "quesst": "quesst14Database",
}
SHOWN = 3  # utterances or files that one message names
SHOWN_LABELS = 20
TRANSCRIPT = ".trans.txt"
WORD_END = "|"  # asr's label after each word
PRONUNCIATION_NUMBER = re.compile(r"\(\d+\)$")  # after a word, in cmudict


@dataclasses.dataclass(frozen=True)
class Utterance:
    """audio: its file. text: its transcript, in upper case. source: the file and line that the text comes from."""

    audio: pathlib.Path
    text: str
    source: str


class Pronunciation(NamedTuple):
    """phones: of a word. source: the file and line that they come from."""

    phones: list[str]
    source: str


@dataclasses.dataclass
class Corpus:
    """utterances: in the order of folders and lines. left_out: why the others cannot be used, by audio file."""

    utterances: list[Utterance] = dataclasses.field(default_factory=list)
    left_out: dict[pathlib.Path, str] = dataclasses.field(default_factory=dict)

    def with_usable_audio(self, what: str, prepared: pathlib.Path | None = None) -> "Corpus":
        """The corpus without the utterances whose audio ``verify_audio`` refuses, which are added to ``left_out``."""
        audio = verify_audio((utterance.audio for utterance in self.utterances), None, what, prepared)
        usable = [utterance for utterance in self.utterances if utterance.audio in audio.samples]
        return Corpus(usable, self.left_out | audio.bad)

    def usable(self, source: pathlib.Path, prepared: pathlib.Path | None = None) -> list[Utterance]:
        """The utterances with usable audio; reports those of ``source`` that are left out."""
        corpus = self.with_usable_audio(source.name, prepared)
        corpus.report_left_out(str(source))
        return corpus.utterances

    def report_left_out(self, what: str) -> None:
        """Logs once per process what is left out of ``what``. Raises UsageError if no utterance remains."""
        total = len(self.utterances) + len(self.left_out)
        named = listed((f"{printable(path)} ({why})" for path, why in sorted(self.left_out.items())), SHOWN, "; ")
        if not self.utterances:
            raise UsageError(f"{what}: none of {total} utterances can be used: {named}")
        if self.left_out:
            warn_once(f"{what}: {len(self.left_out)} of {total} utterances are left out: {named}")


@functools.cache
def warn_once(message: str) -> None:
    """Logs a message once: S3PRL reads a split again for every evaluation."""
    logger.warning("%s", message)


def corpus_root(root: str | pathlib.Path | None, option: str) -> pathlib.Path:
    """The absolute folder of the corpus that an option of ``CORPORA`` gives; ``root`` may also be the folder above it.

    Raises UsageError naming the option when no root was given or it is not a folder.
    """
    name = CORPORA[option]
    if root is None:
        raise UsageError(f"this task reads {name}: give its folder with {flag(option)} ROOT")
    folder = pathlib.Path(root).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{flag(option)} {root}: there is no such folder")
    return ((folder / name) if (folder / name).is_dir() else folder).resolve()


def listing(folder: pathlib.Path) -> list[pathlib.Path]:
    """The contents of a folder, sorted, without hidden files such as macOS's ``._*`` and ``.DS_Store``.

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


def splits_with(librispeech: pathlib.Path, *suffixes: str) -> list[str]:
    """The sub-folders whose chapters hold files with such suffixes; a warning names those that cannot be read."""

    def holds(split: pathlib.Path) -> bool:
        try:
            files = (path for chapter in chapters(split) for path in listing(chapter))
            return any(path.name.lower().endswith(suffixes) for path in files)
        except UsageError as error:
            warn_once(str(error))
            return False

    return [split.name for split in folders(librispeech) if holds(split)]


def split_folder(librispeech: pathlib.Path, split: str, remark: str = "") -> pathlib.Path:
    """The folder of a split. Raises UsageError that lists the existing splits, with the remark, where there is none."""
    if not (librispeech / split).is_dir():
        names = splits_with(librispeech, TRANSCRIPT) if librispeech.is_dir() else []
        raise UsageError(f"there is no split {split} in {librispeech}; it has {', '.join(names) or 'no split'}{remark}")
    return librispeech / split


def read_split(split: pathlib.Path) -> Corpus:
    """The utterances of a split, from its transcripts and file names; no audio file is opened.

    Raises UsageError when the folder is missing or holds no transcripts, and for a transcript that is not UTF-8.
    """
    corpus = read_chapters(chapters(split_folder(split.parent, split.name)))
    if not (corpus.utterances or corpus.left_out):
        raise UsageError(f"{split} holds no speaker/chapter/*.trans.txt with utterances")
    return corpus


def read_chapters(chapters: Iterable[pathlib.Path]) -> Corpus:
    """The utterances of these folders, except those without audio, without text, or with two different texts.

    A transcript's audio may be in any format. Raises UsageError for a transcript that is not UTF-8.
    """
    corpus = Corpus()
    for chapter in chapters:
        files = listing(chapter)
        # if an utterance has several files, the first by name in a readable format counts
        audio = {
            nfc(path.stem): path
            for suffixes in (OTHER_SUFFIXES, SUFFIXES)
            for path in files[::-1]
            if path.suffix.lower() in suffixes
        }
        texts: dict[str, tuple[str, str]] = {}
        conflicts: dict[str, str] = {}
        for path in (path for path in files if path.name.lower().endswith(TRANSCRIPT)):
            for number, line in read_lines(path):
                name, *words = line.split()
                name = nfc(name)
                text, source = upper_case(" ".join(words)), f"{path}, line {number}"
                if texts.setdefault(name, (text, source))[0] != text:
                    conflicts[name] = f"has different texts in {texts[name][1]} and {source}"
        for name, (text, source) in texts.items():
            path = audio.pop(name, None)
            if path is None:
                corpus.left_out[chapter / name] = f"no audio for {source}"
            elif not text or name in conflicts:
                corpus.left_out[path] = conflicts.get(name, f"no text in {source}")
            else:
                corpus.utterances.append(Utterance(path, text, source))
        corpus.left_out.update(dict.fromkeys(audio.values(), "no line in a *.trans.txt beside it"))
    return corpus


def characters(text: str) -> str:
    """asr's labels of a transcript: the letters of each word, followed by ``WORD_END``."""
    return text.replace(" ", WORD_END) + WORD_END


def refuse_unknown(labels: dict[Utterance, Collection[str]], what: str, remedy: str) -> None:
    """Raises UsageError if utterances have labels that are unknown to their task.

    labels: the unknown labels of every utterance of a split, mostly none. what: the kind of labels and where they are
    missing.
    """
    unknown = {utterance: found for utterance, found in labels.items() if found}
    if unknown:
        found = sorted(set().union(*unknown.values()))
        shown = listed(map(escaped, found), SHOWN_LABELS, " ")
        places = listed((f"{utterance.audio.stem} ({utterance.source})" for utterance in unknown), SHOWN, "; ")
        raise UsageError(f"{len(unknown)} of {len(labels)} utterances have {what}: {shown}, in {places}; {remedy}")


def read_lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """(number, stripped text) of every line of a UTF-8 file that is not blank.

    A byte order mark is skipped, and all line endings are accepted. Raises UsageError naming file and line for anything
    else.
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


def upper_case(text: str) -> str:
    """The text in the form of labels: Unicode's upper case (ß becomes SS), in NFC."""
    return nfc(text.upper())


def nfc(text: str) -> str:
    """Each letter composed with its accents; macOS may store file names decomposed."""
    return unicodedata.normalize("NFC", text)


def read_lexicon(files: Iterable[str | pathlib.Path]) -> dict[str, Pronunciation]:
    """The first pronunciation of every word, in upper case, in lexicons of lines WORD PHONES.

    Word and phones may be separated by spaces or tabs. As in cmudict, ``;;;`` begins a comment line, ``#`` a comment
    after the phones, and WORD(2) is another pronunciation of WORD. Raises UsageError when a file is missing or not in
    UTF-8, and for a word without phones.
    """
    lexicon: dict[str, Pronunciation] = {}
    for path in map(pathlib.Path, files):
        if not path.is_file():
            raise UsageError(f"there is no lexicon {path}; `s3prl-ofa prepare lexicon` makes one")
        for number, line in read_lines(path):
            if line.startswith(";;;"):
                continue
            word, *phones = line.split()
            comment = (index for index, phone in enumerate(phones) if phone.startswith("#"))
            pronunciation = Pronunciation(phones[: next(comment, None)], f"{path}, line {number}")
            if not pronunciation.phones:
                raise UsageError(f"{pronunciation.source}: the word {word} has no phones")
            lexicon.setdefault(upper_case(PRONUNCIATION_NUMBER.sub("", word)), pronunciation)
    return lexicon
