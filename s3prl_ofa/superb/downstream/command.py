"""``s3prl-ofa run_downstream``: S3PRL's run_downstream with our upstream, whose rate is stored with the experiment."""

import argparse
import contextlib
import logging
import os
import pathlib
import random
import warnings
from collections.abc import Iterator

import numpy as np
import torch

from s3prl_ofa.io.files import writing
from s3prl_ofa.io.output_folder import locked_folder
from s3prl_ofa.output import is_quiet
from s3prl_ofa.superb.downstream import processes
from s3prl_ofa.superb.downstream.checkpoints import TEMPORARIES, check_free, made_folder
from s3prl_ofa.superb.downstream.parser import OurOptions, divide
from s3prl_ofa.superb.learned_rate.rate import AdaptiveRate
from s3prl_ofa.superb.upstream.expert import Measured, unwrapped

logger = logging.getLogger(__name__)

ESPNET = "s3prl.upstream.espnet_hubert.expert"


def run(args: argparse.Namespace) -> int:
    """The command. Raises UsageError for bad use; errors while S3PRL runs are raised unchanged."""
    if not is_quiet():
        logging.getLogger("s3prl_ofa").setLevel(logging.INFO)  # shows the settings that were chosen for the user
    logging.getLogger(ESPNET).setLevel(logging.ERROR)  # warns that ESPnet is missing, even for other upstreams
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"s3prl\.")  # users cannot act on them
        if is_quiet():  # S3PRL prints its bars and settings there; the log is not redirected
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        run_downstream(*divide(args))
    return 0


def run_downstream(args: argparse.Namespace, ours: OurOptions) -> Measured | None:
    """Runs S3PRL's training, evaluation or inference with its arguments and ours.

    Returns what went through the upstream (utterances, seconds, frames), None for an upstream that is not ours.
    """
    from s3prl.utility.helper import backup, is_leader_process

    from s3prl_ofa.superb.downstream import experiment
    from s3prl_ofa.superb.downstream.runner import DownstreamRunner

    logging.basicConfig(level=logging.INFO)
    torch.multiprocessing.set_sharing_strategy("file_system")
    with contextlib.ExitStack() as stack:
        stack.enter_context(experiment.s3prl_set_up())
        stack.enter_context(logged_once(logging.getLogger("s3prl_ofa.model.ofa")))
        args, config, trained = experiment.read(args, ours)
        model_config_file = args.upstream_model_config
        experiment.settle_device(args)
        stack.enter_context(made_folder(args.expdir))
        stack.enter_context(writing(args.expdir))  # names the folder if S3PRL has no room for a file
        if args.mode == "train":
            stack.enter_context(processes.joined(args))
            processes.check_resumed(trained if args.past_exp else None)
        if not is_leader_process():  # the leader logs all
            logging.getLogger("s3prl_ofa").setLevel(logging.ERROR if is_quiet() else logging.WARNING)
        elif args.mode == "train":
            stack.enter_context(locked_folder(pathlib.Path(args.expdir), args.expdir, TEMPORARIES))
            if args.past_exp is None and not args.auto_resume:
                check_free(args.expdir)
        experiment.settle(args, ours, config, trained)
        if args.cache_dir is not None:
            torch.hub.set_dir(args.cache_dir)
        if is_leader_process():
            experiment.save_settings(args, config)
            if args.past_exp is None and model_config_file and os.path.isfile(model_config_file):
                backup(model_config_file, args.expdir)
        make_deterministic(args)
        runner = DownstreamRunner(args, config, trained or {}, stack, ours.cache)
        getattr(runner, args.mode)()
        if is_leader_process():
            runner.meter.write()
    measured = getattr(unwrapped(runner.upstream.model), "measured", None)
    log_rate(measured, runner.learned_rate)
    return measured


def log_rate(measured: Measured | None, rate: AdaptiveRate | None) -> None:
    """Logs the measured frame period and a learned lambd."""
    at_other_rates = rate is not None and rate.recent  # as an adaptive rate is trained
    if measured is not None and measured.utterances and not at_other_rates:
        logger.info("measured frame period: %s", measured)
    if rate is not None:
        logger.info("learnt lambd: %.4f", rate.value)


def make_deterministic(args: argparse.Namespace) -> None:
    """Seeds and backend flags as S3PRL sets them."""
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)  # of all devices
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.deterministic, cudnn.benchmark = not args.disable_cudnn, True, False


@contextlib.contextmanager
def logged_once(source: logging.Logger) -> Iterator[None]:
    """Lets each message of a logger through once, rather than for every batch."""
    logged: dict[str, logging.LogRecord] = {}

    def is_new(record: logging.LogRecord) -> bool:
        return logged.setdefault(record.msg, record) is record

    source.addFilter(is_new)
    try:
        yield
    finally:
        source.removeFilter(is_new)
