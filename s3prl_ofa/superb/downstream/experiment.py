"""Settles S3PRL's arguments and config for a run, new or from a stored experiment, with its data and rate."""

import argparse
import builtins
import contextlib
import copy
import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import torch
import yaml
from s3prl.utility.helper import get_time_tag, hack_isinstance, is_leader_process, override

from s3prl_ofa.arguments.run_downstream import option
from s3prl_ofa.checkpoint import checkpoint_path, is_remote
from s3prl_ofa.checkpoint.safe_loading import patched_attributes
from s3prl_ofa.device import AUTO, resolve_device
from s3prl_ofa.errors import UsageError, shown
from s3prl_ofa.io.files import atomic_write
from s3prl_ofa.output import tell
from s3prl_ofa.superb.compat import plain_names
from s3prl_ofa.superb.compat.caches import secure_caches
from s3prl_ofa.superb.compat.task_names import S3PRL_DOWNSTREAM
from s3prl_ofa.superb.downstream import fine_tuning, processes
from s3prl_ofa.superb.downstream.caches import open_caches
from s3prl_ofa.superb.downstream.checkpoints import initial_states, newest_readable, past_checkpoints
from s3prl_ofa.superb.downstream.parser import OurOptions
from s3prl_ofa.superb.learned_rate.training import at_max_lambd, check_change, initial_frame_period
from s3prl_ofa.superb.registration import ENTRIES
from s3prl_ofa.superb.tasks import configs, experiment_data, speakers
from s3prl_ofa.superb.tasks.ctc_feasibility import check_ctc, has_ctc
from s3prl_ofa.superb.tasks.labels import settle_labels
from s3prl_ofa.superb.upstream.output_frames import check_trained, options_for
from s3prl_ofa.superb.upstream.rate_options import FLOAT32, NATIVE, RateOptions, read_model_config

logger = logging.getLogger(__name__)

Config = dict[str, Any]
States = dict[str, Any]  # of a checkpoint of S3PRL

# arguments that come from the current run; all others come from the stored experiment
OF_THIS_RUN = ("mode", "evaluate_split", "override", "backend", "local_rank", "past_exp", "device")
# settings of a stored experiment, and the options that a command line may repeat them with
STORED = {
    "upstream": "-u",
    "downstream": "-d",
    "config": "-c",
    "upstream_model_config": "-g",
    "downstream_variant": "-v",
    "upstream_layer_selection": "-l",
    "expdir": "-n or -p",
}


@contextlib.contextmanager
def s3prl_set_up() -> Iterator[None]:
    """Lets S3PRL read checkpoints without running code, and replace the builtin isinstance, until the block ends."""
    with plain_names.reading_safely(), patched_attributes(builtins, isinstance=isinstance):
        hack_isinstance()
        yield


def read(args: argparse.Namespace, ours: OurOptions) -> tuple[argparse.Namespace, Config, States | None]:
    """The arguments and the config of a run, and the checkpoint whose weights it uses, if any; writes nothing.

    ``past_exp`` is None in the arguments of a new experiment. Raises UsageError and CheckpointError.
    """
    args.override = plain_names.literal_override(args.override)
    task = args.downstream
    args.downstream = S3PRL_DOWNSTREAM.get(task, task)
    if args.expdir is None and args.expname is not None:
        args.expdir = f"result/downstream/{args.expname}"
    # absolute, because the experiment may be resumed from another folder
    args.expdir = args.expdir and os.path.abspath(args.expdir)
    local = args.upstream_ckpt is not None and not is_remote(args.upstream_ckpt)
    if local and (ckpt := checkpoint_path(args.upstream_ckpt)).exists():
        args.upstream_ckpt = os.path.realpath(ckpt)
    paths = past_checkpoints(args.past_exp, args.auto_resume, args.expdir)
    if paths:
        path, trained = newest_readable(paths)
        tell(f"[Runner] - Resume from {path}")
        args, config = resumed(args, ours, path, trained)
    else:
        trained = initial_states(args.init_ckpt) if args.init_ckpt else None
        tell("[Runner] - Start a new experiment")
        config = new_config(args, ours, task)
    if args.override is not None and args.override.lower() != "none":
        override(args.override, args, config)
    plain_names.check(args, config)
    if args.mode != "inference" and not plain_names.is_split(args.evaluate_split):  # there -t is a file
        raise UsageError(f"-t {shown(args.evaluate_split)}: the name of a split is expected")
    args.expdir = os.path.abspath(args.expdir)  # -o may have changed it
    return args, config, trained


def settle_device(args: argparse.Namespace) -> None:
    """Sets the device and the settings of several processes. Raises UsageError for a device that cannot be used."""
    args.device = "cuda" if args.device == AUTO else args.device
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        logger.info("there is no CUDA here: --device %s becomes cpu", args.device)
        args.device = "cpu"
    processes.settle(args)
    args.device = str(resolve_device(args.device))


def new_config(args: argparse.Namespace, ours: OurOptions, task: str | None) -> Config:
    """The config of a new experiment; task: as ``-d`` names it.

    Raises UsageError for an experiment without a folder, an upstream and its checkpoint, a task or its config.
    """
    if args.expdir is None:
        raise UsageError("say where the experiment goes: -n NAME (result/downstream/NAME) or -p FOLDER")
    if args.upstream is None:
        raise UsageError("say which upstream: -u ofa_wav2vec2 -k CHECKPOINT")
    if task is None:
        raise UsageError(f"say which task: -d {', '.join(S3PRL_DOWNSTREAM)} or another S3PRL task")
    check_has_checkpoint(args)
    if args.config is None or args.downstream in S3PRL_DOWNSTREAM.values():
        config = configs.resolve_config(task, args.config, ours.mini, ours.roots)
    else:
        config = configs.read_config(pathlib.Path(args.config))
    if ours.fine_tuning:
        if not args.upstream_trainable:
            raise UsageError(f"{option(next(iter(ours.fine_tuning)))} is for training the upstream: give -f, too")
        config[fine_tuning.SECTION] = {**(config.get(fine_tuning.SECTION) or {}), **ours.fine_tuning}
    return config


def check_has_checkpoint(args: argparse.Namespace, where: str = "") -> None:
    if is_ours(args) and not args.upstream_ckpt:
        raise UsageError(
            f"{where}{args.upstream} needs a checkpoint: -k FILE, USER/NAME of the Hugging Face Hub or URL"
        )


def is_ours(args: argparse.Namespace) -> bool:
    return args.upstream in ENTRIES


def resumed(
    args: argparse.Namespace, ours: OurOptions, path: pathlib.Path, past: States
) -> tuple[argparse.Namespace, Config]:
    """The arguments and config of a checkpoint, for this run and for where its folder, upstream and data are now."""
    stored, config, roots = past["Args"], past["Config"], ours.roots
    if configs.task_of(stored.downstream, config):
        experiment_data.refill(stored.downstream, config, roots, args.override, args.mode != "inference")
        roots = {"vocabulary": roots["vocabulary"]}  # the trained one is used
    args.past_exp, args.auto_resume = os.path.abspath(path), False
    stored.expdir, stored.init_ckpt = os.path.dirname(args.past_exp), args.past_exp
    ignored = ["--mini"] * ours.mini + [option(name) for name in ours.fine_tuning]
    ignored += [option(name) for name, value in roots.items() if value]
    ignored += [flag for name, flag in STORED.items() if getattr(args, name) not in (None, getattr(stored, name, None))]
    if ignored:
        logger.warning(
            "the experiment has its own config and upstream: %s has no effect (-o changes its config, --lambd "
            "and --frame-period-ms its rate, -k the path of its checkpoint, --librispeech and others its data)",
            ", ".join(ignored),
        )
    if args.upstream_ckpt not in (None, stored.upstream_ckpt):
        logger.info("-k: %s in place of %s", args.upstream_ckpt, stored.upstream_ckpt)
        stored.upstream_ckpt = args.upstream_ckpt
    check_has_checkpoint(stored, f"-e {path}: ")
    ckpt = stored.upstream_ckpt
    if is_ours(stored) and not (is_remote(ckpt) or os.path.exists(ckpt)):
        raise UsageError(f"the experiment's upstream is no longer at {ckpt}; say with -k FILE where it is now")
    this_run = {name: getattr(args, name) for name in OF_THIS_RUN}
    return argparse.Namespace(**{**vars(args), **vars(stored), **this_run}), config


def settle(args: argparse.Namespace, ours: OurOptions, config: Config, trained: States | None) -> None:
    """Settles and checks rate, labels and data in ``args`` and ``config`` before anything is trained.

    The experiment's folder exists; a new experiment's config is written to it.
    """
    trained_config = (trained or {}).get("Config", {})
    experiment_data.check_splits(args.downstream, config, args.mode, args.evaluate_split)
    if args.downstream in speakers.DOWNSTREAMS:
        speakers.feed_s3prl(args, config, None if trained is None else trained_config)
    resolved = copy.deepcopy(config)
    if is_ours(args):
        options = settle_rate(args, ours, trained)
        if options.adaptive and args.upstream_trainable:
            raise UsageError("lambd adaptive trains the rate of an upstream that itself stays as it is: leave out -f")
        if options.dtype != FLOAT32 and args.upstream_trainable:
            raise UsageError(f"an upstream that is trained (-f) runs in float32, found dtype {options.dtype}")
        if ours.cache_gb is not None and args.upstream_trainable:
            raise UsageError("--cache-gb needs features that do not change: leave it out with -f")
        if args.mode == "train" and args.past_exp is None:
            if is_leader_process():
                options = check_training(args, ours, config, options)
            options, specaug = processes.from_leader((options, config.get("specaug")))
            config.update({"specaug": specaug} if specaug else {})
            args.upstream_refresh = False  # done by the leader's check
        args.upstream_model_config = options.to_yaml()
        logger.info("%s runs at %s", args.upstream, options)
    elif ours.of_our_upstream:
        raise UsageError(f"{', '.join(ours.of_our_upstream)} needs the upstream ofa_wav2vec2, found {args.upstream}")
    if args.mode == "train" and "total_steps" not in config["runner"]:
        raise UsageError(
            f"-d {args.downstream} is not trained, as its config has no runner.total_steps: -m evaluate scores it"
        )
    settle_labels(args, config, trained)
    secure_caches(args.downstream, pathlib.Path(args.expdir))
    if args.past_exp is None:
        # an evaluation (-i) may go to the folder of a training, whose config stays
        name = "config.yaml" if args.mode == "train" else f"config_{args.mode}.yaml"
        target = pathlib.Path(args.expdir, name)
        if is_leader_process():
            text = yaml.safe_dump(resolved, sort_keys=False)
            if args.config and target.exists() and target.samefile(args.config) and text != target.read_text("utf-8"):
                raise UsageError(
                    f"-c {args.config} is where the experiment keeps its own config; give a copy elsewhere"
                )
            atomic_write(target, text)
        args.config = str(target)


def settle_rate(args: argparse.Namespace, ours: OurOptions, trained: States | None) -> RateOptions:
    """The rate: of the command line, else of ``-g`` (or what ``-o`` makes of it), else of the trained weights.

    A dtype of ``auto`` becomes that of the device, with which the experiment then stays.
    """
    given = args.upstream_model_config
    if trained is None:
        return options_for(args.downstream, read_model_config(given), ours.rate).on_device(args.device)
    stored = getattr(trained.get("Args"), "upstream_model_config", None)
    base = read_model_config(stored)
    changed = read_model_config(given) if given != stored else {}
    before, options = RateOptions.layered(base), RateOptions.layered(base, changed, ours.rate).on_device(args.device)
    check_trained(args.downstream, before, options)
    check_change(before, options, args.mode)
    if options != before:
        logger.info("the experiment was trained at %s; it now runs at %s", before, options)
    if ours.repeat_auto:
        logger.info("--repeat auto is for a new training: the experiment's own repeat, %d, is used", options.repeat)
    return options


def check_training(args: argparse.Namespace, ours: OurOptions, config: Config, options: RateOptions) -> RateOptions:
    """Loads the upstream once before the experiment is written, and for CTC compares the numbers of frames and labels.

    Returns the options with ``repeat`` settled; SpecAug's widths in ``config`` are scaled to the frame period.
    """
    entry = ENTRIES[args.upstream]
    upstream = entry(args.upstream_ckpt, refresh=args.upstream_refresh, model_config=options.to_yaml())
    if args.upstream_trainable:
        fine_tuning.FineTuning.of(config).check_layers(upstream.model.config)
    upstream.to(args.device)
    with contextlib.ExitStack() as stack:
        if ours.cache is not None and has_ctc(args.downstream):
            open_caches(args, config, upstream, *ours.cache, stack)
        upstream.options = at_max_lambd(options)
        check = check_ctc(args.downstream, config, upstream)
    if check is None:
        return options
    reached = f"at lambd {options.lambd_max:g}, which an adaptive rate may reach: " if options.adaptive else ""
    name = "--lambd-max" if options.adaptive else "--lambd"
    other = f"; so would {name} {check.largest_lambd:g}" if check.too_many and check.largest_lambd else ""
    if ours.repeat_auto and options.output_frames == NATIVE:
        options = dataclasses.replace(options, repeat=check.needed_repeat)
        logger.info("%s--repeat auto: CTC needs each frame %d times%s", reached, options.repeat, other)
    elif check.too_many:
        raise UsageError(f"{reached}{check}{other}")
    else:
        logger.info("%s%s", reached, check)
    if options.output_frames == NATIVE and config.get("specaug") and "config.specaug" not in (args.override or ""):
        period_ms = initial_frame_period(options, check.frame_period_ms * check.repeat) / options.repeat
        config.update(configs.scale_specaug(config, period_ms))
        logger.info("SpecAug's widths along time are scaled from 20 ms to %.1f ms per frame", period_ms)
    return options


def save_settings(args: argparse.Namespace, config: Config) -> None:
    """Saves the settings of this run to the experiment's folder, as S3PRL does."""
    for name, values in (("args", vars(args)), ("config", config)):
        atomic_write(os.path.join(args.expdir, f"{name}_{get_time_tag()}.yaml"), yaml.safe_dump(values))
