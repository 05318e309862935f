"""The arguments of ``s3prl-ofa guidance``: a subcommand for each source of segmentations, and ``check``."""

import pathlib

from s3prl_ofa.arguments.parser import Parser, add_device_argument

CLUSTERS = 100
LONGEST = 50  # frames of a segment, 1 s
PERIOD_MS = 90.0  # that of the reference's model at lambd 1
SILENCES = ("SIL", "sil", "<sil>", "sp", "spn", "<eps>")  # besides empty labels and gaps between intervals
EXAMPLES = {
    "ctm": "phones.ctm.gz --manifest manifests/train.tsv manifests/valid.tsv --out guidance",
    "textgrid": "textgrids --manifest manifests/train.tsv manifests/valid.tsv --out guidance --silence merge",
    "segment": "--manifest manifests/train.tsv manifests/valid.tsv --out guidance --period-ms 90",
    "check": "guidance --manifest manifests/train.tsv --against from_alignments",
}


def add_arguments(parser: Parser) -> None:
    """Adds a subcommand for each source of segmentations, and ``check``."""
    examples = {name: f"{parser.prog} {name} {options}" for name, options in EXAMPLES.items()}
    parser.examples = list(examples.values())
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, text in (
        ("ctm", "from time alignments in a CTM file"),
        ("textgrid", "from Praat TextGrids"),
        ("segment", "from speech alone, by dynamic programming over the codes of a k-means"),
        ("check", "count good, missing and broken files, also of the reference's guidance"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.examples = [examples[name]]
        if name == "ctm":
            help_text = "lines of utterance (the file's name), channel, start, duration, label; plain or .gz"
            command.add_argument("ctm", type=pathlib.Path, metavar="CTM", help=help_text)
        elif name == "textgrid":
            command.add_argument("textgrids", type=pathlib.Path, metavar="DIR", help="searched for NAME.TextGrid")
            command.add_argument("--tier", default="phones", help="tier of the segments (default: phones)")
        elif name == "check":
            command.add_argument("root", type=pathlib.Path, metavar="ROOT", help="folder with alpha/ and boundaries/")
            help_text = "other guidance to score the boundaries against, such as guidance from alignments"
            command.add_argument("--against", type=pathlib.Path, metavar="ROOT", help=help_text)
        help_text = "manifests from `s3prl-ofa prepare manifest` or fairseq"
        command.add_argument("--manifest", type=pathlib.Path, nargs="+", required=True, metavar="TSV", help=help_text)
        command.add_argument("--jobs", type=int, metavar="N", help="processes (default: all cores; 1 on a GPU)")
        if name in ("ctm", "textgrid"):
            add_silence_arguments(command)
        if name == "segment":
            add_segment_arguments(command)
        if name != "check":
            command.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="output folder")
            help_text = "make existing files again; files made with other settings are removed"
            command.add_argument("--force", action="store_true", help=help_text)


def add_silence_arguments(command: Parser) -> None:
    help_text = "keep silences as segments (default), or merge them into the segment before"
    command.add_argument("--silence", choices=("keep", "merge"), default="keep", help=help_text)
    help_text = f"labels of silence, besides empty labels and gaps (default: {' '.join(SILENCES)})"
    command.add_argument("--silence-labels", nargs="+", default=SILENCES, metavar="LABEL", help=help_text)
    help_text = "maximum length of a segment in frames of 20 ms; longer ones are cut into equal parts (default: none)"
    command.add_argument("--longest", type=int, metavar="N", help=help_text)


def add_segment_arguments(command: Parser) -> None:
    source = "features: MFCC, unless --ckpt or --upstream is given"
    group = command.add_argument_group(source)
    group.add_argument("--ckpt", metavar="FILE", help="hidden states of a checkpoint, or --upstream's checkpoint")
    group.add_argument("--upstream", metavar="NAME", help="hidden states of an S3PRL upstream, such as hubert")
    group.add_argument("--layer", type=int, metavar="K", help="index of the hidden state; 0 is the encoder's input")
    add_device_argument(group)
    help_text = "codes of an earlier run (default: DIR/codes.safetensors, made if missing)"
    command.add_argument("--codes", type=pathlib.Path, metavar="FILE", help=help_text)
    command.add_argument("--clusters", type=int, metavar="N", help=f"number of codes to make (default: {CLUSTERS})")
    help_text = "seed that draws the utterances that the codes are trained on (default: 1)"
    command.add_argument("--seed", type=int, default=1, help=help_text)
    rate = command.add_mutually_exclusive_group()
    help_text = f"mean length of a segment, for which the penalty is solved (default: {PERIOD_MS:g})"
    rate.add_argument("--period-ms", type=float, metavar="P", help=help_text)
    rate.add_argument("--penalty", type=float, metavar="X", help="penalty per segment, in squared feature units")
    help_text = f"maximum length of a segment in frames of 20 ms (default: {LONGEST})"
    command.add_argument("--longest", type=int, default=LONGEST, metavar="N", help=help_text)
