"""fairseq's wav2vec criterion with every loss under its own name."""

import math
from typing import Any

from fairseq.criterions.wav2vec_criterion import Wav2vecCriterion
from fairseq.logging import metrics
from torch import nn

from s3prl_ofa.errors import UsageError
from s3prl_ofa.model.config import SAMPLE_RATE

BITS = 1 / math.log(2)
# What the model counts over a batch, and the losses it gives; logged as sums over micro-batches and ranks.
SUMS = ("samples", "input_frames", "frames", "utterances", "alpha_sum", "lambd_sum")
LOSSES = ("diversity", "features_pen", "card", "seg", "frame")
MEANS = ("code_perplexity", "prob_perplexity", "temp")


class OFAPretrainingCriterion(Wav2vecCriterion):
    """InfoNCE and the model's other losses; logs what each is, the frame period, mean alpha, mean lambd, accuracy."""

    def __init__(self, task, infonce=False, loss_weights=None, log_keys=None) -> None:
        super().__init__(task, infonce, loss_weights, log_keys)
        # fairseq logs these of what the model gives
        self.log_keys = [*dict.fromkeys([*self.log_keys, *SUMS, *LOSSES, *MEANS])]

    def forward(self, model: nn.Module, sample: dict[str, Any], reduce: bool = True):
        """Loss summed over masked frames, their number, and sums for the log. Raises UsageError for loss_weights."""
        self.fit_loss_weights(model.extra_loss_names)
        loss, sample_size, log = super().forward(model, sample, reduce)
        infonce = log.pop("loss_0", log["loss"])
        log = {key: value for key, value in log.items() if not key.startswith("loss_")}
        # Ranks are added up by position: the same names whatever the batch has (targets, guidance).
        for key in (*LOSSES, *MEANS):
            log[f"{key}_parts"] = int(key in log)
            log[f"{key}_sum"] = log.pop(key, 0.0)
        return loss, sample_size, {**log, "infonce": infonce}

    def fit_loss_weights(self, names: tuple[str, ...]) -> None:
        """Gives the losses of the compressor the weight 1 where the configuration has none for them."""
        if self.loss_weights is None:
            return
        weights = list(self.loss_weights)
        if len(weights) == 2:
            weights += [1.0] * (len(names) - 2)
        if len(weights) != len(names):
            raise UsageError(
                f"criterion.loss_weights has {len(weights)} numbers, expected {len(names)}: {', '.join(names)}"
            )
        self.loss_weights = weights

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Logs the totals over micro-batches and ranks; of validation at several rates, each rate's own too."""
        keys = dict.fromkeys(key for log in logging_outputs for key in log)
        total = {key: float(sum(log.get(key, 0) for log in logging_outputs)) for key in keys}
        for key in ("ntokens", "nsentences"):
            metrics.log_scalar(key, total.get(key, 0.0))
        size = total.get("sample_size", 0.0)
        metrics.log_scalar("loss", total.get("loss", 0.0) / (size or 1) * BITS, size, round=3)
        for suffix in [key.removeprefix("infonce") for key in keys if key.startswith("infonce")]:
            log_rate(total, suffix)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """All are sums, so ranks are added up without pickling, which on CPUs asks for CUDA."""
        return True


def log_rate(total: dict[str, float], suffix: str) -> None:
    """Logs one rate: the totals whose names end in ``suffix``."""

    def value(name: str) -> float:
        return total.get(name + suffix, 0.0)

    size = value("sample_size")
    metrics.log_scalar("loss_infonce" + suffix, value("infonce") / (size or 1) * BITS, size, round=3)
    for name in LOSSES + MEANS:
        if parts := value(f"{name}_parts"):
            shown = f"loss_{name}" if name in LOSSES else name
            metrics.log_scalar(shown + suffix, value(f"{name}_sum") / parts, parts, round=5)
    log_ratio("accuracy" + suffix, value("correct"), value("count"), 5)
    log_ratio("frame_period_ms" + suffix, 1000 * value("samples") / SAMPLE_RATE, value("frames"), 2)
    if "alpha_sum" + suffix in total:
        log_ratio("alpha" + suffix, value("alpha_sum"), value("input_frames"), 4)
        log_ratio("lambd" + suffix, value("lambd_sum"), value("utterances"), 3)


def log_ratio(name: str, above: float, below: float, digits: int) -> None:
    """Logs a ratio of sums, so that the mean over many batches is the ratio of their totals."""
    metrics.log_scalar(f"_{name}_above", above)
    metrics.log_scalar(f"_{name}_below", below)

    def ratio(meters) -> float:
        denominator = meters[f"_{name}_below"].sum
        return round(float(meters[f"_{name}_above"].sum / denominator), digits) if denominator else float("nan")

    metrics.log_derived(name, ratio)
