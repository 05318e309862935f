"""A trained experiment of run_downstream, opened without its corpus: waves in, predictions out."""

import builtins
import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from s3prl_ofa.arguments.parser import Parser
from s3prl_ofa.arguments.run_downstream import add_arguments
from s3prl_ofa.checkpoint.safe_loading import patched_attributes
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.compat import plain_names
from s3prl_ofa.superb.downstream import experiment
from s3prl_ofa.superb.downstream.command import settle_device
from s3prl_ofa.superb.downstream.parser import divide
from s3prl_ofa.superb.predict.predictors import PREDICTORS
from s3prl_ofa.superb.tasks import configs
from s3prl_ofa.superb.tasks.labels import store_vocabulary


class Experiment:
    """An experiment at its rate, or at another. rate: in words."""

    def __init__(self, runner: Any, rate: str) -> None:
        self.runner, self.rate = runner, rate
        self.predictor = PREDICTORS[runner.args.downstream]
        self.checkpoint = pathlib.Path(runner.args.past_exp)

    @torch.no_grad()
    def predict(self, waves: list[Tensor]) -> list[dict[str, Any]]:
        """What the task's model says of each wave (samples,), 16 kHz mono."""
        device = self.runner.args.device
        waves = [torch.as_tensor(wave, dtype=torch.float32, device=device) for wave in waves]
        found = self.runner.upstream.model(waves)
        features = self.runner.featurizer.model(waves, found)
        times = [row[: len(feature)].cpu() for row, feature in zip(found["times"], features, strict=True)]
        return self.predictor.predict(self.runner.downstream.model, features, times)


@contextlib.contextmanager
def opened(path: pathlib.Path, rate: dict[str, Any], ckpt: str | None, device: str) -> Iterator[Experiment]:
    """The experiment in a folder, or of one of its checkpoints; closed after the block, as S3PRL is patched until then.

    rate: options of run_downstream that replace the experiment's, such as {"lambd": 0.5}. ckpt: where its upstream is
    now. Raises UsageError and CheckpointError as run_downstream does, and UsageError for tasks without a predictor.
    """
    from s3prl.utility.helper import hack_isinstance

    from s3prl_ofa.superb.downstream.runner import DownstreamRunner

    parser = Parser()
    add_arguments(parser)
    options = [text for name, value in rate.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    options += [] if ckpt is None else ["-k", ckpt]
    given, ours = divide(parser.parse_args(["-m", "inference", "-e", os.fspath(path), "--device", device, *options]))
    with contextlib.ExitStack() as stack:
        stack.enter_context(plain_names.reading_safely())
        stack.enter_context(patched_attributes(builtins, isinstance=isinstance))
        hack_isinstance()
        with contextlib.redirect_stdout(sys.stderr):  # S3PRL's messages
            args, config, trained = experiment.read(given, ours)
            if args.downstream not in PREDICTORS:
                known = ", ".join(configs.TASKS.get(name, name) for name in PREDICTORS)
                raise UsageError(f"{path}: predict knows the tasks {known}; found {args.downstream}")
            if not experiment.is_ours(args):
                raise UsageError(f"{path}: predict needs the upstream ofa_wav2vec2, found {args.upstream}")
            settle_device(args)
            args.expdir = stack.enter_context(tempfile.TemporaryDirectory())
            settled = experiment.settle_rate(args, ours, trained)
            args.upstream_model_config = settled.to_yaml()
            store_vocabulary(args.downstream, config, pathlib.Path(args.expdir), trained)
            PREDICTORS[args.downstream].prepare(config)
            runner = DownstreamRunner(args, config, trained or {}, stack)
        for entry in runner.all_entries:
            entry.model.eval()
        yield Experiment(runner, str(settled))
