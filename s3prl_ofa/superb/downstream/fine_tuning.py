"""How ``-f`` trains the upstream: its learning rate, which layers stay frozen, and when its training begins.

The settings are a section of the experiment's config, so that its checkpoints hold them.
"""

import dataclasses
import itertools
import math
from typing import Any

import torch
from torch import nn

from s3prl_ofa.errors import UsageError
from s3prl_ofa.model import OFAWav2Vec2
from s3prl_ofa.model.config import ModelConfig
from s3prl_ofa.superb.upstream.expert import UpstreamExpert

SECTION = "fine_tuning"  # of the config


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """The settings of ``-f``. Raises UsageError naming the option whose value is not valid.

    upstream_lr: the upstream's learning rate; if None the config's, as for the task's model. A schedule scales both.
    freeze_layers: the front end, the compressor and this many layers are frozen; None trains everything.
    unfreeze_after: the number of updates before the upstream is trained too.
    """

    upstream_lr: float | None = None
    freeze_layers: int | None = None
    unfreeze_after: int | None = None

    def __post_init__(self) -> None:
        lr = self.upstream_lr
        if lr is not None and not (isinstance(lr, int | float) and 0 < lr < math.inf):
            raise UsageError(f"--upstream-lr must be a number above 0, found {lr}")
        for name in ("freeze_layers", "unfreeze_after"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 0):
                raise UsageError(f"--{name.replace('_', '-')} must be a whole number from 0, found {value}")

    @classmethod
    def of(cls, config: dict[str, Any]) -> "FineTuning":
        """The settings in an experiment's config."""
        section = config.get(SECTION) or {}
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(section, dict) or not section.keys() <= names:
            raise UsageError(f"the config's {SECTION} must be a mapping with some of {', '.join(sorted(names))}")
        return cls(**section)

    def check_layers(self, config: ModelConfig) -> None:
        if (self.freeze_layers or 0) > config.layers:
            raise UsageError(f"--freeze-layers must be at most {config.layers}, found {self.freeze_layers}")

    def freeze(self, model: OFAWav2Vec2) -> None:
        """Call this before several processes share the gradients of what is trained."""
        if self.freeze_layers is not None:
            parts = [*model.children(), *model.encoder.layers[: self.freeze_layers], model.encoder.pos_conv]
            frozen = [part for part in parts if part is not model.encoder]
            frozen += [] if model.encoder.pre_norm else [model.encoder.norm]  # else it follows the last layer
            for part in frozen:
                part.requires_grad_(False)

    def follow(self, optimizer: torch.optim.Optimizer, upstream: nn.Module, expert: UpstreamExpert, step: int) -> None:
        """Sets the upstream's learning rate, and freezes it for the first updates, of which ``step`` are done."""
        if self.upstream_lr is not None:
            ours = set(map(id, upstream.parameters()))
            for group in list(optimizer.param_groups):
                settings = {**group, "lr": self.upstream_lr}
                settings["params"] = [weight for weight in group["params"] if id(weight) in ours]
                group["params"] = [weight for weight in group["params"] if id(weight) not in ours]
                if settings["params"]:
                    optimizer.add_param_group(settings)
        if self.unfreeze_after:
            done = itertools.count(step)

            def freeze(*_: Any) -> None:
                expert.frozen = next(done) < self.unfreeze_after

            freeze()
            optimizer.register_step_post_hook(freeze)
