"""The options of ``s3prl-ofa run_downstream`` beside S3PRL's own."""

import argparse
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb import registration
from s3prl_ofa.superb.compat import plain_names
from s3prl_ofa.superb.tasks import configs
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE, FRAMES

AUTO = "auto"
ROOTS = {
    "librispeech": ("ROOT", "LibriSpeech: the folder that holds its splits"),
    "voxceleb1": ("ROOT", "VoxCeleb1, the folder that holds dev/wav and test/wav; or a folder of your own speakers"),
    "prepared": ("DIR", "what s3prl-ofa prepare all wrote: bucket lengths, lexicon, speaker list"),
    "bucket": ("DIR", "bucket lengths for asr"),
    "lexicon": ("FILE[,FILE]", "pronunciations for pr"),
    "vocabulary": ("FILE", "labels for asr or pr (default: SUPERB's, or what prepare vocabulary wrote to --prepared)"),
    "speaker_list": ("FILE", "which utterances train, choose and test sid"),
    "splits": ("TRAIN,DEV,TEST", "folders of LibriSpeech, several joined by +"),
}


class CombinedParser(argparse.ArgumentParser):
    """What S3PRL's ``get_downstream_args`` gets for its parser: it adds its options to ours.

    argv: what to parse. adapt: is given what was found, ours and S3PRL's options together, and returns what S3PRL sees.
    """

    def __init__(self, argv: Sequence[str], adapt: Callable[[argparse.Namespace], argparse.Namespace]) -> None:
        super().__init__(
            prog="s3prl-ofa run_downstream",
            description="S3PRL's run_downstream with the upstream ofa_wav2vec2. -d also takes asr, pr and sid, and -c "
            "is SUPERB's config of the task by default. The rate is kept with the experiment, so -e goes on with it.",
        )
        self.argv = list(argv)
        self.adapt = adapt
        group = self.add_argument_group("options of s3prl-ofa")
        rate = group.add_mutually_exclusive_group()
        lambd_help = "0 (20 ms a frame, the default) up to, not with, 2; adaptive: learnt by the task"
        rate.add_argument("--lambd", type=lambd_or_adaptive, metavar="L|adaptive", help=lambd_help)
        rate.add_argument("--frame-period-ms", type=float, metavar="P", help="mean frame period, 20 or more")
        rate.add_argument("--pool", type=int, metavar="N", help="at lambd 0, the mean of each N frames: a fixed rate")
        group.add_argument("--rate-weight", type=float, metavar="W", help="of an adaptive lambd: what frames cost")
        group.add_argument("--lambd-start", type=float, metavar="L", help="of an adaptive lambd: 0 to 1, default 0.5")
        group.add_argument("--lambd-max", type=float, metavar="L", help="of an adaptive lambd: up to 1, the default")
        group.add_argument(
            "--frames",
            choices=FRAMES,
            help="native: the compressed frames, the default for asr, pr, sid and other tasks that can use them; "
            "upsampled: repeated to 20 ms, the default for the rest",
        )
        group.add_argument(
            "--repeat",
            type=repeat_count,
            metavar="N|auto",
            help="repeat each native frame, for CTC; auto: as often as the training labels need",
        )
        group.add_argument(
            "--cache-gb",
            type=positive,
            metavar="GB",
            help="keep the features of a frozen upstream on the disk, up to so many 10^9 bytes, and use what is there",
        )
        group.add_argument(
            "--feature-cache", metavar="DIR", help="where --cache-gb keeps them; default: ~/.cache/s3prl_ofa/features"
        )
        group.add_argument("--mini", action="store_true", help="the small config, for minutes on two CPU cores")
        for name, (metavar, text) in ROOTS.items():
            group.add_argument("--" + name.replace("_", "-"), metavar=metavar, help=text)

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """Adds the spelling of --local_rank that newer launchers pass."""
        return super().add_argument(*names, *["--local-rank"] * ("--local_rank" in names), **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse_args(self) -> argparse.Namespace:
        return self.adapt(super().parse_args(self.argv))


def lambd_or_adaptive(value: str) -> float | str:
    try:
        return value if value == ADAPTIVE else float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number or {ADAPTIVE} is expected, found {value!r}") from None


def positive(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"a number above 0 is expected, found {value!r}")
    return number


def repeat_count(value: str) -> int | str:
    if value != AUTO and not value.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number or {AUTO} is expected, found {value!r}")
    return value if value == AUTO else int(value)


def check_new(args: argparse.Namespace) -> None:
    """Raises UsageError for a new experiment without a folder, an upstream and its checkpoint, or a task."""
    if args.expdir is None:
        raise UsageError("say where the experiment goes: -n NAME (result/downstream/NAME) or -p FOLDER")
    if args.upstream is None:
        raise UsageError("say which upstream: -u ofa_wav2vec2 -k CHECKPOINT")
    plain_names.check_upstream(args)
    if args.downstream is None:
        raise UsageError(f"say which task: -d {', '.join(configs.S3PRL_DOWNSTREAM)} or another of S3PRL's")
    plain_names.check_downstream(args.downstream)
    if args.init_ckpt is not None and not pathlib.Path(args.init_ckpt).is_file():
        raise UsageError(f"-i {args.init_ckpt}: there is no such checkpoint")
    if is_ours(args) and args.upstream_ckpt is None:
        raise UsageError(f"{args.upstream} needs a checkpoint: -k FILE or URL")


def is_ours(args: argparse.Namespace) -> bool:
    return args.upstream in registration.ENTRIES
