"""A trained experiment of run_downstream, opened without its corpus: waves in, predictions out."""

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
from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.audio import SAMPLE_RATE, AudioError, load_audio
from s3prl_ofa.superb.compat.missing_packages import import_expert
from s3prl_ofa.superb.compat.sox_effects import TO_SPEECH, apply_effects_tensor
from s3prl_ofa.superb.compat.task_names import S3PRL_DOWNSTREAM
from s3prl_ofa.superb.downstream import experiment
from s3prl_ofa.superb.downstream.parser import divide
from s3prl_ofa.superb.predict.predictors import PREDICTORS
from s3prl_ofa.superb.tasks.labels import store_vocabulary
from s3prl_ofa.superb.tasks.spoken_queries import FOUND_TERMS


class Experiment:
    """An experiment at its rate, or at another. rate: in words."""

    def __init__(self, runner: Any, rate: str) -> None:
        self.runner, self.rate = runner, rate
        self.task = runner.args.downstream
        self.effects: list[list[str]] = []
        if PREDICTORS[self.task].effects:
            self.effects = sys.modules[f"s3prl.downstream.{self.task}.dataset"].EFFECTS[len(TO_SPEECH) :]
        self.checkpoint = pathlib.Path(runner.args.past_exp)

    def load(self, path: pathlib.Path) -> Tensor:
        """The wave (samples,), 16 kHz mono, of a file of any format as the task takes it. Raises AudioError."""
        loaded = torch.from_numpy(load_audio(path))
        wave = apply_effects_tensor(loaded[None], SAMPLE_RATE, self.effects)[0][0]
        shortest = self.runner.upstream.model.model.config.receptive_field
        if len(wave) < shortest:
            found = f"{len(wave)} samples at {SAMPLE_RATE} Hz{' without silence' * (len(wave) < len(loaded))}"
            raise AudioError(f"too short: {found}, at least {shortest} are needed")
        return wave

    @torch.no_grad()
    def predict(self, waves: list[Tensor]) -> list[dict[str, Any]]:
        """The row that the task's model predicts for each wave, as ``load`` gives it."""
        waves = [wave.to(self.runner.args.device) for wave in waves]
        return PREDICTORS[self.task].predict(self.runner.downstream.model, self.features, waves)

    def features(self, waves: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The features (frames, dim) that the task's model gets of each wave, and their times (frames, 2) in seconds,
        on the CPU."""
        found = self.runner.upstream.model(waves)
        features = self.runner.featurizer.model(waves, found)
        return features, [row[: len(feature)].cpu() for row, feature in zip(found["times"], features, strict=True)]


@contextlib.contextmanager
def open_experiment(path: pathlib.Path, rate: dict[str, Any], ckpt: str | None, device: str) -> Iterator[Experiment]:
    """The experiment in a folder, or of one of its checkpoints; closed after the block, as S3PRL is patched until then.

    rate: options of run_downstream that replace the experiment's, such as {"lambd": 0.5}. ckpt: where its upstream is
    now. Raises UsageError and CheckpointError as run_downstream does, and UsageError for tasks without a predictor.
    """
    from s3prl_ofa.superb.downstream.runner import DownstreamRunner

    if (path / FOUND_TERMS).is_file():
        raise UsageError(
            f"{path}: qbe trains no model to predict with; `s3prl-ofa run_downstream -m evaluate -d qbe` searches "
            f"recordings for queries"
        )
    parser = Parser()
    add_arguments(parser)
    options = [text for name, value in rate.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    options += [] if ckpt is None else ["-k", ckpt]
    given, ours = divide(parser.parse_args(["-m", "inference", "-e", os.fspath(path), "--device", device, *options]))
    with contextlib.ExitStack() as stack:
        stack.enter_context(experiment.s3prl_set_up())
        with contextlib.redirect_stdout(sys.stderr):  # S3PRL's messages
            args, config, trained = experiment.read(given, ours)
            if args.downstream not in PREDICTORS:
                known = ", ".join(task for task, name in S3PRL_DOWNSTREAM.items() if name in PREDICTORS)
                raise UsageError(f"{path}: predict knows the tasks {known}; found {args.downstream}")
            if not experiment.is_ours(args):
                raise UsageError(f"{path}: predict needs the upstream ofa_wav2vec2, found {args.upstream}")
            experiment.settle_device(args)
            args.expdir = stack.enter_context(tempfile.TemporaryDirectory())
            settled = experiment.settle_rate(args, ours, trained)
            args.upstream_model_config = settled.to_yaml()
            store_vocabulary(args.downstream, config, pathlib.Path(args.expdir), trained)
            expert, weights = import_expert(args.downstream), (trained or {}).get("Downstream", {})
            with PREDICTORS[args.downstream].without_corpus(expert, config, weights):
                runner = DownstreamRunner(args, config, trained or {}, stack)
        for entry in runner.all_entries:
            entry.model.eval()
        yield Experiment(runner, str(settled))
