"""fairseq's wav2vec criterion, which logs every loss by name."""

import math
from typing import Any

from fairseq.criterions.wav2vec_criterion import Wav2vecCriterion
from fairseq.logging import metrics
from torch import nn

from s3prl_ofa.errors import UsageError
from s3prl_ofa.model.config import SAMPLE_RATE

BITS = 1 / math.log(2)
# Counts and losses that the model returns per batch; logged as sums over micro-batches and ranks.
SUMS = ("samples", "input_frames", "frames", "utterances", "alpha_sum", "lambd_sum")
LOSSES = ("diversity", "features_pen", "card", "seg", "frame")
MEANS = ("code_perplexity", "prob_perplexity", "temp")


class OFAPretrainingCriterion(Wav2vecCriterion):
    """InfoNCE and the model's other losses; logs each loss, the frame period, mean alpha, mean lambd and accuracy."""

    def __init__(self, task, infonce=False, loss_weights=None, log_keys=None) -> None:
        super().__init__(task, infonce, loss_weights, log_keys)
        # fairseq logs these keys of the model's output
        self.log_keys = [*dict.fromkeys([*self.log_keys, *SUMS, *LOSSES, *MEANS])]

    def forward(self, model: nn.Module, sample: dict[str, Any], reduce: bool = True):
        """Loss summed over masked frames, their number, sums for the log. Raises UsageError for bad loss_weights."""
        self.fit_loss_weights(model.extra_loss_names)
        loss, sample_size, log = super().forward(model, sample, reduce)
        infonce = log.pop("loss_0", log["loss"])
        log = {key: value for key, value in log.items() if not key.startswith("loss_")}
        # Ranks are summed by position, so the names must not depend on the batch, which may lack guidance.
        for key in (*LOSSES, *MEANS):
            log[f"{key}_parts"] = int(key in log)
            log[f"{key}_sum"] = log.pop(key, 0.0)
        return loss, sample_size, {**log, "infonce": infonce}

    def fit_loss_weights(self, names: tuple[str, ...]) -> None:
        """Gives the compressor's losses the weight 1 if the configuration has no weights for them."""
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
        """Logs the totals over micro-batches and ranks; in validation at several rates also those of each rate."""
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
        """True, because all are sums; otherwise fairseq pickles them, which needs CUDA."""
        return True


def log_rate(total: dict[str, float], suffix: str) -> None:
    """Logs the totals of one rate, whose names end in ``suffix``."""

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


def log_ratio(name: str, numerator: float, denominator: float, digits: int) -> None:
    """Logs a ratio of sums: the mean over several batches is the ratio of their totals."""
    metrics.log_scalar(f"_{name}_numerator", numerator)
    metrics.log_scalar(f"_{name}_denominator", denominator)

    def ratio(meters) -> float:
        total = meters[f"_{name}_denominator"].sum
        return round(float(meters[f"_{name}_numerator"].sum / total), digits) if total else float("nan")

    metrics.log_derived(name, ratio)
