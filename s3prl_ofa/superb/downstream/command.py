"""``s3prl-ofa run_downstream``: S3PRL's own runner, with the rate kept with the experiment.

S3PRL's parser, its reading of configs and checkpoints and its runner are used as they are. Its module gives three
places to step in: the parser (our options are added, and what it found is put right before anything is written), the
result of ``get_downstream_args`` (the rate is settled, labels are counted against frames) and the runner (kept, to read
what went through its upstream).
"""

import argparse
import builtins
import contextlib
import copy
import dataclasses
import logging
import os
import pathlib
import tempfile
import types
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import yaml

from s3prl_ofa.checkpoint import checkpoint_path
from s3prl_ofa.checkpoint.safe_loading import patched_attributes
from s3prl_ofa.device import AUTO as AUTO_DEVICE
from s3prl_ofa.device import resolve_device
from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import atomic_path, writing
from s3prl_ofa.superb import registration
from s3prl_ofa.superb.compat import plain_names
from s3prl_ofa.superb.compat.caches import secure_caches
from s3prl_ofa.superb.compat.shims import Instead
from s3prl_ofa.superb.downstream import processes
from s3prl_ofa.superb.downstream.checkpoints import (
    SafeSaves,
    check_free,
    held,
    initial_states,
    make_folder,
    newest_readable,
    past_checkpoints,
    trained_config,
    trained_model_config,
)
from s3prl_ofa.superb.downstream.metrics import Meter, keeping_scores
from s3prl_ofa.superb.downstream.parser import AUTO, ROOTS, CombinedParser, check_new, is_ours
from s3prl_ofa.superb.downstream.processes import is_leader
from s3prl_ofa.superb.downstream.resume import KEY as POSITION
from s3prl_ofa.superb.downstream.resume import Position
from s3prl_ofa.superb.feature_cache.cache import cache_for, default_folder
from s3prl_ofa.superb.learned_rate import adaptive
from s3prl_ofa.superb.tasks import configs, experiment_data, speakers
from s3prl_ofa.superb.tasks.ctc_feasibility import check_ctc
from s3prl_ofa.superb.tasks.labels import settle_labels
from s3prl_ofa.superb.upstream.expert import Measured
from s3prl_ofa.superb.upstream.rate_options import (
    ADAPTIVE,
    ADAPTIVE_KEYS,
    NATIVE,
    OPTION_NAMES,
    RATE_KEYS,
    RateOptions,
    read_model_config,
)
from s3prl_ofa.superb.upstream.task_frames import check_trained, options_for

logger = logging.getLogger(__name__)

ESPNET = "s3prl.upstream.espnet_hubert.expert"
# what S3PRL takes from an experiment that is gone on with, whatever the command line says
S3PRL_STORED = {
    "upstream": "-u",
    "downstream": "-d",
    "config": "-c",
    "upstream_model_config": "-g",
    "downstream_variant": "-v",
    "upstream_layer_selection": "-l",
    "expdir": "-n or -p",
}


def run(argv: Sequence[str]) -> int:
    """The command. Raises UsageError for bad use; what goes wrong while S3PRL runs is raised as it is."""
    logging.getLogger("s3prl_ofa").setLevel(logging.INFO)  # S3PRL logs at this level, and what we put right is said
    logging.getLogger(ESPNET).setLevel(logging.ERROR)  # warns that ESPnet is missing, whatever the upstream is
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"s3prl\.")  # nobody here can follow them
        run_downstream(argv)
    return 0


def run_downstream(argv: Sequence[str]) -> Measured | None:
    """Runs S3PRL's ``run_downstream`` with these arguments, its own and ours.

    Returns what went through the upstream (utterances, seconds, frames), or None for an upstream that is not ours.
    """
    from s3prl import run_downstream as s3prl_run
    from s3prl.downstream import runner as s3prl_runner

    experiment, saves = Experiment(), SafeSaves()
    scores: dict[str, float] = {}
    meters: list[Meter] = []

    class KeptRunner(s3prl_run.Runner):
        def __init__(self, args: argparse.Namespace, config: dict[str, Any]) -> None:
            super().__init__(args, config)
            experiment.open_cache(self)
            meters.append(Meter(self, scores))
            if args.local_rank is not None:
                processes.check_divided(self)
            elif args.mode == "train":  # of several processes each has a state of its own
                saves.position = Position((experiment.past or {}).get(POSITION))
                saves.position.watch(self)

        def train(self) -> None:
            with processes.counting_updates(self, s3prl_runner):
                super().train()

    original_get_args = s3prl_run.get_downstream_args

    def get_downstream_args() -> tuple[argparse.Namespace, dict[str, Any], list[str]]:
        with tempfile.TemporaryDirectory() as folder:
            parser = CombinedParser(argv, lambda args: experiment.before_reading(args, pathlib.Path(folder)))
            with patched_attributes(
                s3prl_run,
                argparse=types.SimpleNamespace(ArgumentParser=lambda: parser),
                os=Instead(os, makedirs=experiment.make_folder),
                torch=Instead(torch, load=lambda *args, **kwargs: experiment.past),
            ):
                args, config, backups = original_get_args()
            experiment.before_running(args, config)
        return args, config, backups

    # S3PRL also replaces the builtin isinstance, for good; the rest of this process needs the real one.
    with (
        plain_names.reading_safely(),
        patched_attributes(builtins, isinstance=isinstance),
        patched_attributes(
            s3prl_run, get_downstream_args=get_downstream_args, Runner=KeptRunner, torch=processes.torch_for_main()
        ),
        patched_attributes(
            s3prl_runner,
            DDP=processes.data_parallel,
            os=Instead(os, remove=saves.remove),
            torch=Instead(s3prl_runner.torch, save=saves.save),
            SummaryWriter=keeping_scores(s3prl_runner.SummaryWriter, scores),
        ),
        experiment.folders(),
        once(logging.getLogger("s3prl_ofa.model.ofa")),
    ):
        s3prl_run.main()
    (meter,) = meters
    if is_leader(meter.runner.args):
        meter.write()
    upstream = meter.runner.upstream.model
    measured = getattr(getattr(upstream, "module", upstream), "measured", None)
    rate = adaptive.rate_of(meter.runner)
    is_others = rate is not None and rate.recent  # trained at rates that are not its own
    if measured is not None and measured.utterances and not is_others:
        logger.info(
            "measured frame period: %.2f ms over %d utterances (%.1f s, %d frames)",
            measured.frame_period_ms,
            measured.utterances,
            measured.seconds,
            measured.frames,
        )
    if rate is not None:
        logger.info("learnt lambd: %.4f", rate.value)
    return measured


class Experiment:
    """One call: what was asked for beyond S3PRL's own options, and how it changes what S3PRL is about to do."""

    def __init__(self) -> None:
        self.rate: dict[str, Any] = {}  # of RateOptions, as the command line gave them
        self.repeat_auto = False
        self.cache_gb: float | None = None
        self.cache_folder: str | None = None
        self.past: dict[str, Any] | None = None  # the checkpoint to go on from, as S3PRL stored it
        self.trained_config: str | None = None  # the ``-g`` in it
        self.made: list[pathlib.Path] = []  # folders that were not there before, a folder before the one it is in
        self.lock = contextlib.ExitStack()

    def before_reading(self, args: argparse.Namespace, folder: pathlib.Path) -> argparse.Namespace:
        """Takes our options out of ``args`` and puts S3PRL's right, before S3PRL reads or writes a file.

        folder: a place for the config that S3PRL is to read.
        """
        ours = {name: take(args, name) for name in (*OPTION_NAMES, "mini", *ROOTS)}
        self.cache_gb, self.cache_folder = take(args, "cache_gb"), take(args, "feature_cache")
        if self.cache_folder is not None and self.cache_gb is None:
            raise UsageError("--feature-cache needs --cache-gb: how much it may take")
        self.repeat_auto = ours["repeat"] == AUTO
        self.rate = {name: ours[name] for name in OPTION_NAMES if ours[name] not in (None, AUTO)}
        # says at once what is out of range; whether the rate is an adaptive one may stand in -g or the experiment
        alone = self.rate.keys() & set(ADAPTIVE_KEYS) and not self.rate.keys() & set(RATE_KEYS)
        assumed = {"lambd": ADAPTIVE} if alone else {}
        RateOptions.layered({"frames": NATIVE}, assumed, self.rate)
        args.override = plain_names.literal_override(args.override)
        args.downstream = configs.S3PRL_DOWNSTREAM.get(args.downstream, args.downstream)
        if args.expdir is None and args.expname is not None:
            args.expdir = f"result/downstream/{args.expname}"
        # absolute, as the experiment may be gone on with from another folder
        args.expdir = args.expdir and os.path.abspath(args.expdir)
        if args.upstream_ckpt is not None and (ckpt := checkpoint_path(args.upstream_ckpt)).exists():
            args.upstream_ckpt = os.path.realpath(ckpt)
        past = past_checkpoints(args.past_exp, args.auto_resume, args.expdir)
        if past:
            path, self.past = newest_readable(past)
            args.past_exp, args.auto_resume = os.path.abspath(path), False
            stored, roots = self.past["Args"], {name: ours[name] for name in ROOTS}
            if configs.is_superb(stored.downstream, self.past["Config"]):
                read = args.mode != "inference"
                experiment_data.refill(stored.downstream, self.past["Config"], roots, args.override, read)
                roots = {"vocabulary": roots["vocabulary"]}  # a model keeps its own
            self.go_on(args, stored, [f"--{option_name(name)}" for name in ("mini", *roots) if ours[name]])
        else:
            check_new(args)
            if args.config is None or args.downstream in configs.S3PRL_DOWNSTREAM.values():
                roots = {name: ours[name] for name in ROOTS}
                config = configs.resolve_config(args.downstream, args.config, ours["mini"], roots)
                args.config = str(folder / "config.yaml")
                write_yaml(pathlib.Path(args.config), config)
        return args

    def go_on(self, args: argparse.Namespace, stored: argparse.Namespace, given: list[str]) -> None:
        """Brings what an experiment stored, which S3PRL puts in place of ``args``, to where it is now.

        given: options of the command line that count for nothing here; S3PRL's own that differ are added.
        """
        self.trained_config = getattr(stored, "upstream_model_config", None)
        stored.expdir = os.path.dirname(args.past_exp)
        for name, option in S3PRL_STORED.items():
            if getattr(args, name) not in (None, getattr(stored, name, None)):
                given.append(option)
        if given:
            logger.warning(
                "the experiment has its own config and upstream: %s has no effect (-o changes its config, --lambd "
                "and --frame-period-ms its rate, -k the place of its checkpoint, --librispeech and others its data)",
                ", ".join(given),
            )
        if args.upstream_ckpt not in (None, stored.upstream_ckpt):
            logger.info("-k: %s in place of %s", args.upstream_ckpt, stored.upstream_ckpt)
            stored.upstream_ckpt = args.upstream_ckpt
        ckpt = stored.upstream_ckpt
        if is_ours(stored) and not (ckpt.startswith(registration.URL_SCHEMES) or os.path.exists(ckpt)):
            raise UsageError(f"the experiment's upstream is no longer at {ckpt}; say with -k FILE where it is now")

    def make_folder(self, path: str, exist_ok: bool = True) -> None:
        self.made += make_folder(path)

    def before_running(self, args: argparse.Namespace, config: dict[str, Any]) -> None:
        """Settles device, rate and data and patches S3PRL, once it has read its arguments, config and checkpoint."""
        plain_names.check(args, config)
        if args.mode != "inference":  # there -t is a file
            plain_names.check_split(args.evaluate_split)
        args.device = "cuda" if args.device == AUTO_DEVICE else args.device
        if args.device.startswith("cuda") and not torch.cuda.is_available():
            logger.info("there is no CUDA here: --device %s becomes cpu", args.device)
            args.device = "cpu"
        processes.settle(args)
        args.device = str(resolve_device(args.device))
        args.expdir = os.path.abspath(args.expdir)  # -o may have changed it
        self.lock.enter_context(writing(args.expdir))  # the folder is named if S3PRL has no room for a file
        expdir = pathlib.Path(args.expdir)
        if args.mode == "train":
            self.lock.enter_context(processes.joined(args))
            processes.check_resumed(self.past)
        if not is_leader(args):
            logging.getLogger("s3prl_ofa").setLevel(logging.WARNING)  # the leader logs everything
        elif args.mode == "train":
            self.lock.enter_context(held(expdir))
            if self.past is None and not args.auto_resume:
                check_free(expdir)
        experiment_data.check_splits(args.downstream, config, args.mode, args.evaluate_split)
        if args.downstream in speakers.DOWNSTREAMS:
            speakers.feed_s3prl(args, config, trained_config(self.past, args.init_ckpt))
        resolved = copy.deepcopy(config)
        if is_ours(args):
            options = self.settle_rate(args)
            adaptive.check_frozen(options.adaptive and args.upstream_trainable)
            if self.cache_gb is not None and (options.adaptive or args.upstream_trainable):
                trained = "-f" if args.upstream_trainable else f"lambd {ADAPTIVE}"
                raise UsageError(f"--cache-gb needs features that stay as they are: leave it out with {trained}")
            args.upstream_model_config = options.to_yaml()
            if args.mode == "train" and self.past is None:
                if is_leader(args):
                    options = self.check_training(args, config, options)
                options, specaug = processes.from_leader((options, config.get("specaug")))
                config.update({"specaug": specaug} if specaug else {})
                args.upstream_refresh = False  # done by the leader's check
                args.upstream_model_config = options.to_yaml()
            logger.info("%s runs at %s", args.upstream, options)
        elif self.rate or self.repeat_auto or self.cache_gb is not None:
            others = [*["repeat"] * self.repeat_auto, *["cache_gb"] * (self.cache_gb is not None)]
            given = ", ".join(f"--{option_name(name)}" for name in (*self.rate, *others))
            raise UsageError(f"{given} needs the upstream ofa_wav2vec2, found {args.upstream}")
        settle_labels(args, config, self.past or (args.init_ckpt and initial_states(args.init_ckpt)))
        if args.downstream in configs.S3PRL_DOWNSTREAM.values():
            configs.patch_ctc_loaders()
        secure_caches(args.downstream, expdir)
        if self.past is None:
            # an evaluation (-i) may go to the folder of a training, whose config stays
            args.config = str(expdir / ("config.yaml" if args.mode == "train" else f"config_{args.mode}.yaml"))
            if is_leader(args):
                write_yaml(pathlib.Path(args.config), resolved)

    def settle_rate(self, args: argparse.Namespace) -> RateOptions:
        """The rate of the command line on top of ``-g`` (or what ``-o`` makes of it), on top of the trained one."""
        given = args.upstream_model_config
        if self.past is not None:
            trained = self.trained_config
        elif args.init_ckpt:
            # ``-i`` takes weights alone; the rate that they were trained with belongs to them all the same.
            trained = trained_model_config(args.init_ckpt)
        else:
            return options_for(args.downstream, read_model_config(given), self.rate)
        base = read_model_config(trained)
        override = read_model_config(given) if given != trained else {}
        before, options = RateOptions.layered(base), RateOptions.layered(base, override, self.rate)
        check_trained(args.downstream, before, options)
        adaptive.check_change(before, options, args.mode)
        if options != before:
            logger.info("the experiment was trained at %s; it now runs at %s", before, options)
        if self.repeat_auto:
            logger.info("--repeat auto is for a new training: the experiment's own repeat, %d, is used", options.repeat)
        return options

    def check_training(self, args: argparse.Namespace, config: dict[str, Any], options: RateOptions) -> RateOptions:
        """Loads the checkpoint once before anything is written, and counts frames against labels for CTC.

        Returns the options with ``repeat`` settled; SpecAug's widths in ``config`` are brought to the frame period.
        """
        entry = registration.ENTRIES[args.upstream]
        expert = entry(args.upstream_ckpt, refresh=args.upstream_refresh, model_config=options.to_yaml())
        expert.options = adaptive.slowest(options)
        check = check_ctc(args.downstream, config, expert.to(args.device))
        if check is None:
            return options
        reached = f"at lambd {options.lambd_max:g}, which an adaptive rate may come to: " if options.adaptive else ""
        name = "--lambd-max" if options.adaptive else "--lambd"
        other = f"; so would {name} {check.largest_lambd:g}" if check.too_many and check.largest_lambd else ""
        if check.too_many and not (self.repeat_auto and options.frames == NATIVE):
            raise UsageError(f"{reached}{check}{other}")
        if self.repeat_auto and options.frames == NATIVE:
            options = dataclasses.replace(options, repeat=check.needed_repeat)
            logger.info("%s--repeat auto: CTC needs each frame %d times%s", reached, options.repeat, other)
        else:
            logger.info("%s%s", reached, check)
        if options.frames == NATIVE and config.get("specaug") and "config.specaug" not in (args.override or ""):
            period_ms = adaptive.period_at_start(options, check.frame_period_ms * check.repeat) / options.repeat
            config.update(configs.scale_specaug(config, period_ms))
            logger.info("SpecAug's widths along time are scaled from 20 ms to %.1f ms a frame", period_ms)
        return options

    def open_cache(self, runner: Any) -> None:
        """Lets the upstream of a runner of S3PRL's use the feature cache, where one was asked for."""
        if self.cache_gb is not None:
            cache = cache_for(runner, self.cache_folder or default_folder(), self.cache_gb)
            runner.upstream.model.cache = cache and self.lock.enter_context(cache)

    @contextlib.contextmanager
    def folders(self) -> Iterator[None]:
        """Lets go of the experiment folder at the end, and takes away the folders that S3PRL made for nothing."""
        try:
            with self.lock:
                yield
        finally:
            for folder in self.made:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only if empty


def option_name(name: str) -> str:
    return name.replace("_", "-")


def take(args: argparse.Namespace, name: str) -> Any:
    value = getattr(args, name)
    delattr(args, name)
    return value


def write_yaml(path: pathlib.Path, config: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


@contextlib.contextmanager
def once(source: logging.Logger) -> Iterator[None]:
    """Lets through each message of a logger once: what holds for a batch holds for thousands of them."""
    seen = set()

    def is_new(record: logging.LogRecord) -> bool:
        known = record.msg in seen
        seen.add(record.msg)
        return not known

    source.addFilter(is_new)
    try:
        yield
    finally:
        source.removeFilter(is_new)
