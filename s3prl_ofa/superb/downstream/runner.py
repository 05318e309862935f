"""S3PRL's Runner with lengths from the upstream, a learned rate, a feature cache, safe checkpoints and measurement.

The loops of training and evaluation are S3PRL's; only the way their parts are built is changed here.
"""

import argparse
import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from s3prl.downstream import runner as s3prl_runner
from s3prl.utility.helper import is_leader_process
from torch import nn

from s3prl_ofa.checkpoint.safe_loading import patched_attributes
from s3prl_ofa.errors import CheckpointError, UsageError
from s3prl_ofa.superb.compat import shims
from s3prl_ofa.superb.compat.packed_lstm import packed_lstm_in_asr
from s3prl_ofa.superb.downstream import processes
from s3prl_ofa.superb.downstream.caches import open_caches
from s3prl_ofa.superb.downstream.checkpoints import SafeSaves, bounded_weights
from s3prl_ofa.superb.downstream.fine_tuning import FineTuning
from s3prl_ofa.superb.downstream.metrics import Meter, keeping_scores
from s3prl_ofa.superb.downstream.resume import KEY as POSITION
from s3prl_ofa.superb.downstream.resume import Position
from s3prl_ofa.superb.learned_rate.rate import AdaptiveRate
from s3prl_ofa.superb.learned_rate.training import train_rate
from s3prl_ofa.superb.upstream.expert import UpstreamExpert, unwrapped
from s3prl_ofa.superb.upstream.featurizer import LengthAwareFeaturizer

LONGEST_REASON = 300  # characters


class DownstreamRunner(s3prl_runner.Runner):
    """One run of S3PRL's ``run_downstream``; call ``train``, ``evaluate`` or ``inference``, as ``args.mode`` says.

    args, config: as for S3PRL's Runner. states: the checkpoint to start from, or an empty dictionary. stack: is closed
    after the run; until then names in S3PRL's module are replaced, and the cache is locked. cache: the folder of the
    feature cache and its limit in GB, if one is wanted.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        config: dict[str, Any],
        states: dict[str, Any],
        stack: contextlib.ExitStack,
        cache: tuple[str, float] | None = None,
    ) -> None:
        self.args, self.config, self.init_ckpt = args, config, states
        self.saves, self.scores, self.updates = SafeSaves(), {}, processes.UpdateCounter()
        self.rate: s3prl_runner.ModelEntry | None = None
        self.fine_tuning = FineTuning.of(config)
        stack.enter_context(self.patches())
        if not args.device.startswith("cuda"):  # some tasks move their masks to the GPU
            stack.enter_context(patched_attributes(torch.Tensor, cuda=lambda tensor, *_, **__: tensor))
        self.upstream = self._get_upstream()
        self.featurizer = self._get_featurizer()
        self.downstream = self._get_downstream()
        # the order of the optimizer's parameters, in which checkpoints store its state
        self.all_entries = [self.upstream, self.featurizer, *([self.rate] if self.rate else []), self.downstream]
        if self.learned_rate:
            train_rate(self, self.learned_rate)
        if cache is not None:
            open_caches(args, config, self.upstream.model, *cache, stack)
        self.meter = Meter(self, self.scores)
        if args.local_rank is not None:
            self.intercept_training_loader(functools.partial(processes.divided_loader, args.downstream))
        elif args.mode == "train":  # with several processes, each has a position of its own
            self.saves.position = Position(states.get(POSITION) if args.past_exp else None)
            self.intercept_training_loader(self.saves.position.watched_loader)

    def patches(self) -> contextlib.AbstractContextManager:
        """Replaces the names in the module of S3PRL's Runner that a subclass cannot override."""
        return patched_attributes(
            s3prl_runner,
            # A checkpoint is written completely before it gets its name, and older ones are removed only afterwards.
            torch=shims.ModuleOverlay(s3prl_runner.torch, save=self.saves.save),
            os=shims.ModuleOverlay(s3prl_runner.os, remove=self.saves.remove),
            # What a task logs is also kept, for measured_<split>.json.
            SummaryWriter=keeping_scores(s3prl_runner.SummaryWriter, self.scores),
            # Processes on CPUs train together too, and the leader evaluates alone.
            DDP=processes.data_parallel,
            # S3PRL counts the updates only of the leader, so the others would never stop training.
            tqdm=processes.CountingBar if is_leader_process() else self.updates.progress_bar,
            # Utterances have the lengths that the upstream returns.
            Featurizer=LengthAwareFeaturizer,
        )

    def intercept_training_loader(self, load: Callable[[Callable[[], Any]], Any]) -> None:
        """Makes ``load(make_loader)`` the loader of training batches that the downstream model returns."""
        model = self.downstream.model
        get_dataloader = model.get_dataloader
        train_split = self.config["runner"].get("train_dataloader", "train")

        def intercepted(split: str, *args: Any, **kwargs: Any) -> Any:
            make_loader = functools.partial(get_dataloader, split, *args, **kwargs)
            if split != train_split or not model.training:
                return make_loader()
            loader = load(make_loader)
            if not len(loader):  # S3PRL would look for a first batch forever
                raise UsageError(
                    "there are fewer training utterances than one batch: give more, or a smaller batch size"
                )
            return loader

        model.get_dataloader = intercepted

    @property
    def learned_rate(self) -> AdaptiveRate | None:
        return unwrapped(self.rate.model) if self.rate else None

    def _load_weight(self, model: Any, name: str) -> None:
        """Raises CheckpointError for a state that does not fit, that is not finite, or that is missing and that S3PRL
        would replace by random weights."""
        # the downstream model of query by example has no weights, so it is evaluated without a checkpoint
        is_trained = name == "Downstream" or self.init_ckpt and (name != "Upstream" or self.args.upstream_trainable)
        is_needed = is_trained and (self.args.mode != "train" or self.args.past_exp) and model.state_dict()
        if is_needed and not self.init_ckpt.get(name):
            raise CheckpointError(f"the trained {name} is needed and missing; give a complete checkpoint (-e or -i)")
        try:
            super()._load_weight(model, name)
        except Exception as error:  # the states of models and optimizers are refused in many ways
            reason = " ".join(str(error).split())[:LONGEST_REASON]
            raise CheckpointError(f"the checkpoint's {name} does not fit: {reason}") from error
        for key, weight in model.named_parameters() if isinstance(model, nn.Module) else ():
            if not weight.isfinite().all():
                raise CheckpointError(
                    f"the weight {key} of {name} holds NaN or infinite values; give another checkpoint"
                )

    def _get_upstream(self) -> s3prl_runner.ModelEntry:
        entry = super()._get_upstream()
        expert = unwrapped(entry.model)
        if isinstance(expert, UpstreamExpert):
            self.saves.upstream_config, options = expert.model.config.to_dict(), expert.options
            if options.adaptive:
                rate = AdaptiveRate(options.lambd_start, options.rate_weight, options.lambd_max).to(self.args.device)
                expert.follow(rate)
                self.rate = self._init_model(rate, "Rate", trainable=True)
        return entry

    def _init_model(self, model: nn.Module, name: str, trainable: bool, *args: Any, **kwargs: Any) -> Any:
        if name == "Upstream" and isinstance(model, UpstreamExpert):
            if trainable and self.args.mode == "train":
                self.fine_tuning.freeze(model.model)
            else:  # so that its weights are packed once, not for every batch
                model.requires_grad_(False)
        return super()._init_model(model, name, trainable, *args, **kwargs)

    def _get_downstream(self) -> s3prl_runner.ModelEntry:
        try:
            with packed_lstm_in_asr(), bounded_weights(self.init_ckpt.get("Downstream")):
                return super()._get_downstream()
        except (TypeError, NameError, AttributeError, LookupError, RuntimeError, AssertionError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_REASON]
            raise UsageError(f"S3PRL cannot make this task from the config's downstream_expert ({reason})") from error

    def _get_optimizer(self, models: list[nn.Module]) -> torch.optim.Optimizer:
        optimizer = s3prl_runner.get_optimizer(models, self.config["runner"]["total_steps"], self.config["optimizer"])
        expert = unwrapped(self.upstream.model)
        if self.upstream.trainable and isinstance(expert, UpstreamExpert):
            self.fine_tuning.follow(optimizer, self.upstream.model, expert, self.init_ckpt.get("Step", 0))
        self._load_weight(optimizer, "Optimizer")  # now that its groups are those that were saved
        return optimizer if is_leader_process() else self.updates.counting(optimizer)
