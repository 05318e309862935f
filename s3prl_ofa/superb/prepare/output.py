"""The output folder of ``prepare``: which audio is usable, files that are kept or written whole, and the report."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io import verified
from s3prl_ofa.io.audio import ALL_SUFFIXES
from s3prl_ofa.io.files import atomic_write, printable
from s3prl_ofa.output import tell
from s3prl_ofa.superb.tasks.corpora import TRANSCRIPT, Utterance, read_split, splits_with

REPORT = "bad_audio.tsv"
SHOWN_BAD_FILES = 20


def refuse_all(bad: dict[pathlib.Path, str], what: str) -> NoReturn:
    """Raises UsageError with the first of the reasons why no audio file of ``what`` can be used."""
    path, reason = next(iter(bad.items()))
    raise UsageError(f"{what}: none of {len(bad)} audio files can be used, the first {printable(path)}: {reason}")


@dataclasses.dataclass
class Output:
    """The output folder of one call of ``prepare``.

    force: replaces existing files. jobs: threads that read audio, None for one per core. again: also decodes audio
    that is known to be whole. left_out: why each audio file that cannot be used is left out.
    """

    folder: pathlib.Path
    force: bool = False
    jobs: int | None = None
    again: bool = False
    left_out: dict[pathlib.Path, str] = dataclasses.field(default_factory=dict)
    verified: set[pathlib.Path] = dataclasses.field(default_factory=set)
    has_written: bool = False
    has_kept: bool = False

    def usable(self, paths: Iterable[pathlib.Path], what: str) -> dict[pathlib.Path, int]:
        """The samples of every usable file; the others are left out. Raises UsageError when there is no usable file."""
        paths = list(paths)
        if not paths:
            raise UsageError(f"{what} holds no audio files")
        audio = verified.verify_audio(paths, self.jobs, what, self.folder, self.again)
        self.left_out |= audio.bad
        self.verified |= audio.samples.keys()
        if not audio.samples:
            refuse_all(audio.bad, what)
        return audio.samples

    def usable_utterances(
        self, librispeech: pathlib.Path, splits: list[str] | None = None
    ) -> Iterator[tuple[Utterance, int]]:
        """Yields the usable utterances of splits (None: of all), with their samples; the others are left out."""
        for split in self.splits(librispeech, splits):
            corpus = read_split(librispeech / split)
            self.left_out |= corpus.left_out
            if not corpus.utterances:
                refuse_all(corpus.left_out, split)
            samples = self.usable((utterance.audio for utterance in corpus.utterances), split)
            for utterance in corpus.utterances:
                if utterance.audio in samples:
                    yield utterance, samples[utterance.audio]

    def splits(self, librispeech: pathlib.Path, wanted: list[str] | None) -> list[str]:
        """The ``wanted`` splits, or all. Raises UsageError when there is none or one of them is missing.

        A folder of audio without transcripts is not a split, and is left out.
        """
        names = splits_with(librispeech, TRANSCRIPT)
        missing = [split for split in wanted or [] if split not in names]
        if missing or not names:
            raise UsageError(
                f"{librispeech} has {', '.join(names) or 'no folder SPLIT/speaker/chapter with transcripts'}"
                + (f", not {missing[0]}" if missing else "")
            )
        if wanted:
            return wanted
        reason = "no split: it holds speaker/chapter/ with audio, but no *.trans.txt beside it"
        silent = [name for name in splits_with(librispeech, *ALL_SUFFIXES) if name not in names]
        self.left_out |= {librispeech / name: reason for name in silent}
        return names

    def write(self, name: str, make: Callable[[], tuple[str, str]]) -> None:
        """Writes a text file and prints its summary, both of which ``make`` returns; an existing file is kept, unless
        ``force``."""
        path = self.folder / name
        if path.exists() and not self.force:
            self.keep(path)
            return
        text, summary = make()
        atomic_write(path, text)
        self.has_written = True
        tell(f"{path}: {summary}")

    def keep(self, *paths: pathlib.Path) -> None:
        self.has_kept = True
        tell(f"{' and '.join(map(str, paths))}: already exists, kept (--force replaces it)")

    def report(self) -> int:
        """Names what was left out, on stderr and in ``REPORT``; the exit status, 1 if there is any, else 0.

        If all files were made and nothing was left out, the report of an earlier call is removed.
        """
        if self.has_written:  # something that the tasks read, so that they need not decode the audio
            verified.save(self.folder, self.verified)
        report = self.folder / REPORT
        bad = [(printable(path), reason) for path, reason in sorted(self.left_out.items())]
        if not bad:
            if not self.has_kept:
                report.unlink(missing_ok=True)
            return 0
        atomic_write(report, "".join(f"{path}\t{reason}\n" for path, reason in bad))
        for path, reason in bad[:SHOWN_BAD_FILES]:
            print(f"left out: {path}: {reason}", file=sys.stderr)
        print(f"{len(bad)} files were left out; all of them are in {report}", file=sys.stderr)
        return 1
