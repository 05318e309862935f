"""The arguments of ``s3prl-ofa extract``."""

import pathlib

from s3prl_ofa.arguments.parser import CKPT_HELP, DTYPES, Parser, add_device_argument

FORMATS = ("npy", "safetensors", "hdf5")
EXECUTORS = ("local", "slurm")
BATCH_SECONDS = 120.0  # of audio; enough for Base to need about 2 GB in float32


def add_arguments(parser: Parser) -> None:
    parser.examples = (
        "s3prl-ofa extract audio --ckpt tiny --frame-period-ms 50 --out features",
        "s3prl-ofa extract a.wav b.flac --ckpt checkpoint.pt --lambd 0.5 --layer all --format hdf5 --out features",
        "s3prl-ofa extract lectures --ckpt checkpoint.pt --window-s 30 --out features   # files of an hour",
    )
    parser.intermixed = True
    parser.add_argument("audio", nargs="+", metavar="AUDIO", help="audio files, or folders to search for audio")
    parser.add_argument("--ckpt", required=True, metavar="CKPT", help=CKPT_HELP)
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR", help="output folder")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--lambd", type=float, metavar="L", help="compression, from 0 (none, the default) to below 2")
    rate.add_argument("--frame-period-ms", type=float, metavar="P", help="the rate as a mean frame period, at least 20")
    parser.add_argument(
        "--allow-beyond-one", action="store_true", help="allow lambd above 1 where --frame-period-ms needs it"
    )
    parser.add_argument("--format", default="npy", choices=FORMATS, help="output format (default: npy)")
    parser.add_argument(
        "--layer",
        metavar="K",
        help="hidden state K, from 0 (the encoder's input) to the last layer (the default); several, such as 2,4; all; "
        "or weighted",
    )
    help_text = "with --layer weighted: the experiment of run_downstream that learnt the layer weights"
    parser.add_argument("--weights", type=pathlib.Path, metavar="EXPERIMENT", help=help_text)
    parser.add_argument(
        "--window-s",
        type=float,
        metavar="S",
        help="for long files: attention sees S seconds at a time, such as 30 (default: the whole file)",
    )
    parser.add_argument(
        "--overlap-s", type=float, metavar="S", help="seconds that neighboring windows share (default: 4)"
    )
    parser.add_argument(
        "--batch-seconds", type=float, default=BATCH_SECONDS, metavar="S", help="audio per batch (default: 120)"
    )
    add_device_argument(parser)
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=DTYPES,
        help="dtype of the model (default: float32); auto is bfloat16 where the device is fast in it",
    )
    parser.add_argument("--shards", type=int, metavar="N", help="divide the work among N processes")
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        help="where they run: local (the default), as many at a time as there are GPUs, "
        "or else cores; or slurm, a job for each",
    )
    slurm = parser.add_argument_group("resources of each job, with --executor slurm")
    slurm.add_argument("--partition")
    slurm.add_argument("--account")
    slurm.add_argument("--qos")
    slurm.add_argument("--gpus", type=int, metavar="N", help="GPUs (default: 1, or 0 with --device cpu)")
    slurm.add_argument("--cpus", type=int, metavar="N", help="CPU cores (default: 4)")
    slurm.add_argument("--hours", type=float, metavar="H", help="time limit (default: 24)")
    slurm.add_argument("--memory-gb", type=float, metavar="GB")
    slurm.add_argument("--setup", action="append", metavar="COMMAND", help="a command to run first; may be repeated")
    parser.add_argument("--force", action="store_true", help="start again, removing DIR's results of earlier runs")
