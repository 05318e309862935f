"""The arguments of ``s3prl-ofa predict``."""

import pathlib

from s3prl_ofa.arguments.parser import Parser, add_device_argument

BATCH_SECONDS = 60.0


def add_arguments(parser: Parser) -> None:
    parser.examples = (
        "s3prl-ofa predict result/downstream/asr_40ms meeting.flac",
        "s3prl-ofa predict result/downstream/sid_half/dev-best.ckpt recordings --frame-period-ms 60 --out speakers",
        "s3prl-ofa predict result/downstream/asv_half recordings --trials trials.txt --out verified",
    )
    parser.intermixed = True
    parser.add_argument(
        "experiment",
        type=pathlib.Path,
        metavar="EXPERIMENT",
        help="folder of a trained task of SUPERB (its last states-*.ckpt), or one of its checkpoints",
    )
    parser.add_argument("audio", nargs="+", metavar="AUDIO", help="audio files, or folders to search for audio")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--lambd", type=float, metavar="L", help="use this rate instead of the experiment's")
    rate.add_argument("--frame-period-ms", type=float, metavar="P", help="the same, as a mean frame period")
    parser.add_argument(
        "--trials",
        type=pathlib.Path,
        metavar="FILE",
        help="the pairs that asv scores, in lines such as 'enrol.wav test.wav' (default: every pair)",
    )
    parser.add_argument("-k", "--ckpt", help="the checkpoint of the experiment's upstream, if it has moved")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="DIR",
        help="write DIR/predictions.jsonl, and resume there (default: print the lines)",
    )
    parser.add_argument(
        "--batch-seconds", type=float, default=BATCH_SECONDS, metavar="S", help="audio per batch (default: 60)"
    )
    add_device_argument(parser)
    parser.add_argument("--force", action="store_true", help="start again, removing DIR's predictions")
