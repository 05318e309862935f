"""Checks before CTC training that the utterances have enough frames for their labels at the chosen rate.

CTC needs a frame for every label, and one more for a blank between two equal labels. An utterance with fewer frames
has no alignment; S3PRL's ``zero_infinity`` then gives it a loss of zero, and nothing reports that it was ignored.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.audio import load_speech
from s3prl_ofa.io.verified import verify_audio
from s3prl_ofa.model.cif import plan_cif
from s3prl_ofa.model.compressor import Compressor
from s3prl_ofa.model.config import SAMPLE_RATE
from s3prl_ofa.model.ofa import OFAWav2Vec2
from s3prl_ofa.model.rate import mix, solve_lambd, wanted_frames
from s3prl_ofa.progress import Progress
from s3prl_ofa.superb.compat.task_names import S3PRL_DOWNSTREAM
from s3prl_ofa.superb.tasks.configs import CORPUS
from s3prl_ofa.superb.tasks.labels import labeled
from s3prl_ofa.superb.upstream.rate_options import NATIVE, RateOptions

MAX_INFEASIBLE = 0.01  # of the training utterances
# A large corpus is sampled in strata by labels per second. Labels do not fit in the utterances with the most labels per
# second, so the first strata are thin, and sampling the last one sparsely loses little.
STRATA = (0.005, 0.02, 0.1, 1.0)  # where each stratum ends, as a share of the corpus, densest first
SAMPLES_PER_STRATUM = 32


@dataclasses.dataclass(frozen=True)
class Utterance:
    """path: its audio. samples: its length. needed: the frames that CTC needs for its labels."""

    path: str
    samples: int
    needed: int


@dataclasses.dataclass(frozen=True)
class CtcCheck:
    """The result of the check.

    utterances: of the training set. checked: those whose frames were counted; the rest is estimated from them.
    infeasible: utterances with fewer frames than CTC needs, with the given ``repeat``. needed_repeat: the smallest
    repeat that leaves at most 1% of them. largest_lambd: the largest lambd, in hundredths, that leaves at most 1% of
    them with the given repeat, of lambds up to the one of the check; None where none does, and where that one was 0,
    above 1 or not given. frame_period_ms: the mean period of the frames that CTC sees.
    """

    utterances: int
    checked: int
    infeasible: int
    repeat: int
    needed_repeat: int
    frame_period_ms: float
    largest_lambd: float | None = None

    @property
    def too_many(self) -> bool:
        return self.needed_repeat > self.repeat

    def __str__(self) -> str:
        sampled = f" (estimated from {self.checked})" if self.checked < self.utterances else ""
        found = (
            f"{self.infeasible} of {self.utterances} training utterances{sampled}, "
            f"{self.infeasible / self.utterances:.1%}, have fewer frames than CTC needs for their labels "
            f"at {self.frame_period_ms:.1f} ms per frame"
        )
        remedy = f"; --repeat {self.needed_repeat} would do, --repeat auto chooses it"
        return found + remedy * self.too_many


def has_ctc(downstream: str) -> bool:
    """Whether ``check_ctc`` has something to check."""
    return S3PRL_DOWNSTREAM.get(downstream, downstream) in CORPUS


def check_ctc(downstream: str, config: dict[str, Any], upstream: Any) -> CtcCheck | None:
    """Checks the training set of asr or pr; None for another task.

    config: as ``resolve_config`` gives it. upstream: an ``UpstreamExpert``, of which ``model`` and ``options`` are
    used. At lambd 0 and for upsampled frames the audio itself is not needed.
    """
    if not has_ctc(downstream):
        return None
    labels = labeled(S3PRL_DOWNSTREAM.get(downstream, downstream), config, "train")
    if not labels:
        raise UsageError("the training set is empty; expected utterances in the train split")
    # the dataset has verified them, so nothing is decoded here
    samples = verify_audio((pathlib.Path(path) for path, _ in labels), None, "training set").samples
    utterances = [Utterance(path, samples[pathlib.Path(path)], frames_needed(ids)) for path, ids in labels]
    sample, weights = choose(utterances)
    frames = count_frames(upstream.model, upstream.options, sample)
    check = judge(sample, weights, frames, upstream.options.repeat)
    if upstream.options.output_frames != NATIVE or not 0 < (upstream.options.lambd or 0) <= 1:
        return check
    fine = [upstream.model.config.num_frames(utterance.samples) for utterance in sample]
    needed = [-(-utterance.needed // upstream.options.repeat) for utterance in sample]
    found = largest_lambd(np.array(needed), weights, np.array(frames), np.array(fine), upstream.options.lambd)
    return dataclasses.replace(check, largest_lambd=found)


def largest_lambd(
    needed: np.ndarray, weights: list[float], frames: np.ndarray, fine: np.ndarray, lambd: float
) -> float | None:
    """See CtcCheck. needed: frames of each utterance, without repetition; frames: those at ``lambd``; fine: at 20 ms.

    Of T fine frames T - lambd (T - A) are left, rounded down, where A is the sum of alpha. T - A is at most
    (T - frames) / lambd, so an utterance has the frames it needs up to the lambd that is found with that.
    """
    limits = lambd * np.minimum(1.0, (fine - needed) / np.maximum(fine - frames, 1e-9))
    order = np.argsort(limits)
    below = np.cumsum(np.array(weights)[order])
    first = int(np.searchsorted(below, MAX_INFEASIBLE * below[-1], side="right"))  # that must have its frames
    hundredths = math.floor(100 * limits[order[first]] + 1e-9)
    return hundredths / 100 if hundredths > 0 else None


def frames_needed(labels: Sequence[int]) -> int:
    """Labels, and a blank between each two equal neighbors."""
    return len(labels) + sum(first == second for first, second in zip(labels, labels[1:], strict=False))


def choose(utterances: list[Utterance]) -> tuple[list[Utterance], list[float]]:
    """A sample of utterances, and how many of the corpus each represents; all of a small corpus."""
    if len(utterances) <= SAMPLES_PER_STRATUM * len(STRATA):
        return utterances, [1.0] * len(utterances)
    ranked = sorted(utterances, key=lambda utterance: -utterance.needed / max(utterance.samples, 1))
    ends = [round(share * len(ranked)) for share in STRATA]
    sample, weights = [], []
    for start, end in zip([0, *ends], ends, strict=False):
        step = (end - start) / min(SAMPLES_PER_STRATUM, end - start)
        places = np.arange(start + step / 2, end, step).astype(int)  # evenly spaced
        sample += [ranked[place] for place in places]
        weights += [step] * len(places)
    return sample, weights


@torch.no_grad()
def count_frames(model: OFAWav2Vec2, options: RateOptions, utterances: list[Utterance]) -> list[int]:
    """The frames that the upstream will give for each utterance, before any repetition.

    Only the front end and the predictor of the model are run, and not even these where the number is known: at 20 ms,
    and for a frame period that leaves enough frames (if it cannot be reached, there are more of them).
    """
    counts = [model.config.num_frames(utterance.samples) for utterance in utterances]
    if options.output_frames != NATIVE:
        return counts
    counts = [model.config.pooled(count) for count in counts]
    if options.pool:
        return [-(-count // options.pool) for count in counts]
    if not (options.lambd or options.frame_period_ms):
        return counts
    unknown = list(range(len(utterances)))
    if options.frame_period_ms is not None:
        seconds = torch.tensor([utterance.samples / SAMPLE_RATE for utterance in utterances], dtype=torch.float64)
        periods = torch.full_like(seconds, options.frame_period_ms)
        counts = wanted_frames(seconds, periods, torch.tensor(counts)).tolist()
        unknown = [index for index in unknown if utterances[index].needed > options.repeat * counts[index]]
    for index in Progress(unknown, desc="frames", unit="utterance", leave=False):
        alpha, lengths = model.alpha([torch.from_numpy(load_speech(utterances[index].path))])
        if options.frame_period_ms is None:
            lambd = torch.full_like(alpha[:, 0], options.lambd)
        else:
            lambd, _ = solve_lambd(torch.tensor([counts[index]]).to(lengths), alpha.sum(1), lengths)
        alpha = Compressor.uniform(alpha, lengths) if options.uniform else alpha
        counts[index] = plan_cif(mix(alpha, lambd), lengths).lengths.item()
    return counts


def judge(sample: list[Utterance], weights: list[float], frames: list[int], repeat: int) -> CtcCheck:
    """The result for the corpus: each utterance of the sample counts for as many as it represents."""
    total = sum(weights)
    repeats = [-(-utterance.needed // count) for utterance, count in zip(sample, frames, strict=True)]

    def infeasible(times: int) -> float:
        return sum(weight for weight, needed in zip(weights, repeats, strict=True) if needed > times)

    enough = next(times for times in range(1, max(repeats) + 1) if infeasible(times) <= MAX_INFEASIBLE * total)
    seconds = sum(weight * item.samples for weight, item in zip(weights, sample, strict=True)) / SAMPLE_RATE
    seen = sum(weight * count * repeat for weight, count in zip(weights, frames, strict=True))
    return CtcCheck(round(total), len(sample), round(infeasible(repeat)), repeat, enough, 1000 * seconds / seen)
