"""The checks of ``s3prl-ofa verify``: what a checkpoint holds, its alpha and rates on speech, and its arithmetic."""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from s3prl_ofa.checkpoint import Checkpoint
from s3prl_ofa.errors import CheckpointError, UsageError
from s3prl_ofa.info import measure
from s3prl_ofa.model import SAMPLE_RATE, ExtractOutput, ModelConfig, OFAWav2Vec2
from s3prl_ofa.model.config import MIN_FRAME_PERIOD_MS

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
PUBLISHED_MS = (20.0, 90.0)  # frame periods of arXiv 2211.02332, at lambd 0 and 1
PERIOD_FACTOR = 2.0  # by which the longest period may differ from the published one
FORMULA_ERROR = 0.05  # relative, of the measured periods: an utterance's last frame is dropped
MEAN_ALPHA = (0.05, 0.95)
MIN_DEVIATION = 0.02  # standard deviation of alpha over frames; alpha that ignores the speech is constant
ROUNDING = 1e-4  # largest relative error of float32: padding, other batches, float64
FAIRSEQ = 1e-3  # the same for fairseq's float32, which rounds more
BFLOAT16 = 0.1  # the same for bfloat16; good checkpoints have 0.01 to 0.04
CROPS_S = (3.0, 1.7, 2.3)  # seconds of speech that the arithmetic is checked on
SIZES = {"Base": ModelConfig(), "Large": ModelConfig(dim=1024, ffn_dim=4096, heads=16, layers=24, pre_norm=True)}


class Check(NamedTuple):
    """state: PASSED, FAILED or SKIPPED. text: what was found and expected. found: its numbers."""

    name: str
    state: str
    text: str
    found: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is checked: the model in float32, and speech (samples,) at 16 kHz."""

    checkpoint: Checkpoint
    model: OFAWav2Vec2
    waves: list[np.ndarray]

    @property
    def lambds(self) -> tuple[float, ...]:
        return (0.0,) if self.model.compressor is None else (0.0, 0.5, 1.0)

    @property
    def crops(self) -> list[Tensor]:
        """Short utterances of unequal lengths, the longest first."""
        lengths = [round(seconds * SAMPLE_RATE) for seconds in CROPS_S]
        chosen = sorted(self.waves, key=len, reverse=True)[: len(lengths)]
        return [torch.from_numpy(wave[:length].copy()) for wave, length in zip(chosen, lengths, strict=False)]


def run_checks(subject: Subject) -> Iterator[Check]:
    """Runs the checks one after the other; a check that raises an error has failed."""
    measured = measure(subject.model, subject.waves)
    checks: dict[str, Callable[[], Check]] = {
        "size": lambda: check_size(subject),
        "alpha": lambda: check_alpha(subject),
        "rates": lambda: check_rates(measured),
        "padding": lambda: check_padding(subject),
        "float64": lambda: check_dtype(subject, torch.float64, ROUNDING),
        "bfloat16": lambda: check_dtype(subject, torch.bfloat16, BFLOAT16),
        "fairseq": lambda: check_fairseq(subject),
    }
    for name, check in checks.items():
        try:
            yield check()
        except (ValueError, RuntimeError) as error:
            yield Check(name, FAILED, str(error), {})


def check_size(subject: Subject) -> Check:
    config, model = subject.model.config, subject.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shape = {"dim": config.dim, "ffn_dim": config.ffn_dim, "heads": config.heads, "layers": config.layers}
    name = next((name for name, size in SIZES.items() if shape.items() <= dataclasses.asdict(size).items()), "neither")
    text = (
        f"{config.layers} layers of {config.dim}, {parameters / 1e6:.1f} million parameters"
        f" ({f'the size of {name}' if name != 'neither' else 'neither Base nor Large'})"
    )
    return Check("size", PASSED, text, {"parameters": parameters, **shape, "published_size": name})


def check_alpha(subject: Subject) -> Check:
    if subject.model.compressor is None:
        return Check("alpha", SKIPPED, no_compressor(subject.model.config), {})
    alpha = torch.cat([subject.model.alpha([wave])[0][0] for wave in subject.waves])
    found = {"mean": float(alpha.mean()), "deviation": float(alpha.std())}
    found |= {"smallest": float(alpha.min()), "largest": float(alpha.max())}
    low, high = MEAN_ALPHA
    good = low <= found["mean"] <= high and found["deviation"] >= MIN_DEVIATION
    text = (
        f"mean {found['mean']:.3f} over {len(alpha)} frames (expected {low} to {high}), deviation "
        f"{found['deviation']:.3f} (at least {MIN_DEVIATION}), from {found['smallest']:.3f} to {found['largest']:.3f}"
    )
    return Check("alpha", PASSED if good else FAILED, text, found)


def check_rates(measured: dict[str, Any]) -> Check:
    """measured: the result of ``info.measure``."""
    table, mean = measured["table"], measured["mean_alpha"]
    if mean is None:
        return Check("rates", SKIPPED, "no compressor", {"table": table})
    periods = np.array([row["frame_period_ms"] for row in table])
    formula = MIN_FRAME_PERIOD_MS / (1 - np.array([row["lambd"] for row in table]) * (1 - mean))
    error = float(np.abs(periods / formula - 1).max())
    reached = PUBLISHED_MS[1] / PERIOD_FACTOR <= periods[-1] <= PUBLISHED_MS[1] * PERIOD_FACTOR
    good = reached and error <= FORMULA_ERROR and bool((np.diff(periods) > 0).all())
    text = (
        f"{periods[0]:.1f} to {periods[-1]:.1f} ms (published: {PUBLISHED_MS[0]:g} to {PUBLISHED_MS[1]:g} ms), "
        f"{error:.1%} from the formula at most (expected {FORMULA_ERROR:.0%})"
    )
    return Check("rates", PASSED if good else FAILED, text, {"formula_error": error, "table": table})


def check_padding(subject: Subject) -> Check:
    """An utterance alone, in a batch, and in a batch that is padded with noise."""
    model, crops = subject.model, subject.crops
    lengths = torch.tensor([len(crop) for crop in crops])
    noise = torch.randn(len(crops), int(lengths.max()), generator=torch.Generator().manual_seed(0))
    for row, crop in zip(noise, crops, strict=True):
        row[: len(crop)] = crop
    worst = 0.0
    for lambd in subject.lambds:
        padded = model(noise, lengths, lambd=lambd)
        for index, crop in enumerate(crops):
            alone = model.extract([crop], lambd=lambd)
            states = [state[index : index + 1, : padded.lengths[index]] for state in padded.hidden_states]
            worst = max(worst, relative_error(states, alone.hidden_states))
    return compared("padding", "features in a batch padded with noise against alone", worst, ROUNDING)


def check_dtype(subject: Subject, dtype: torch.dtype, allowed: float) -> Check:
    """In another dtype: the same number of frames, and the features of float32."""
    name = str(dtype).removeprefix("torch.")
    other = OFAWav2Vec2(subject.model.config).to(dtype)
    other.load_weights(subject.checkpoint.weights)
    worst = max(
        (
            relative_error(*(states_of(model, crop, lambd) for model in (other, subject.model)))
            for crop in subject.crops
            for lambd in subject.lambds
        ),
        default=0.0,
    )
    return compared(name, f"features in {name} against float32", worst, allowed)


def check_fairseq(subject: Subject) -> Check:
    if importlib.util.find_spec("fairseq") is None:
        return Check("fairseq", SKIPPED, "fairseq is not installed", {})
    from s3prl_ofa.verify.fairseq_path import fairseq_features

    try:
        theirs = fairseq_features(subject.checkpoint, subject.crops, subject.lambds)
    except (CheckpointError, UsageError) as error:
        return Check("fairseq", SKIPPED, str(error), {})
    worst = max(
        relative_error(states_of(subject.model, crop, lambd)[-1:], [theirs[lambd][index]])
        for index, crop in enumerate(subject.crops)
        for lambd in subject.lambds
    )
    return compared("fairseq", "last hidden state against that of fairseq's model", worst, FAIRSEQ)


def states_of(model: OFAWav2Vec2, wave: Tensor, lambd: float) -> Sequence[Tensor]:
    out: ExtractOutput = model.extract([wave], lambd=lambd)
    return out.hidden_states


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest RMS error of a hidden state relative to its RMS; infinity if the number of frames differs or a value
    is not finite."""
    errors = []
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            return math.inf
        one, other = one.double(), other.double()
        errors.append(float((one - other).norm() / other.norm()))
    return max(errors) if all(map(math.isfinite, errors)) else math.inf


def compared(name: str, what: str, error: float, allowed: float) -> Check:
    unlike = "another number of frames, or values that are not finite"
    found = unlike if error == math.inf else f"relative error {error:.1e}"
    text = f"{what}: {found} (at most {allowed:g})"
    finite = error if np.isfinite(error) else None  # JSON has no infinity
    return Check(name, PASSED if error <= allowed else FAILED, text, {"relative_error": finite, "allowed": allowed})


def no_compressor(config: ModelConfig) -> str:
    return f"no compressor: {config.frame_period_ms:g} ms only"
