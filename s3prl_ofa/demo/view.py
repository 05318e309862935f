"""The data behind the page and the notebook: an utterance's alpha, and its frames and their cost at a given rate."""

import dataclasses
import pathlib
import time
from typing import TYPE_CHECKING

import numpy as np

from s3prl_ofa.demo.figures import Interval, draw
from s3prl_ofa.guidance.alignments import read_ctm
from s3prl_ofa.io.audio import SAMPLE_RATE
from s3prl_ofa.resources import AUDIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from s3prl_ofa.model import OFAWav2Vec2

TIMED_SECONDS, MOST_RUNS = 0.5, 5  # the fastest of several runs counts; the first is often slower


@dataclasses.dataclass(frozen=True)
class Utterance:
    """wave: (samples,), 16 kHz. alpha: (20 ms frames,), None without a compressor. phones: empty if unknown."""

    wave: np.ndarray
    alpha: np.ndarray | None
    phones: list[Interval]

    @property
    def seconds(self) -> float:
        return len(self.wave) / SAMPLE_RATE


@dataclasses.dataclass(frozen=True)
class View:
    """An utterance at one rate.

    times: (frames, 2), start and end of every frame in seconds. weights: (20 ms frames,), what integrate-and-fire sums.
    milliseconds: wall time of the model. megabytes: size of all hidden states. mmacs: millions of multiply-accumulates.
    """

    utterance: Utterance
    times: np.ndarray
    weights: np.ndarray | None
    lambd: float
    frame_period_ms: float
    milliseconds: float
    megabytes: float
    mmacs: float

    def draw(self, highlight: int | None = None) -> "Figure":
        """The utterance and its frame boundaries; ``highlight`` is the index of a frame to mark."""
        utterance = self.utterance
        return draw(utterance.wave, self.times, utterance.alpha, self.weights, utterance.phones, highlight)

    def frame_audio(self, frame: int) -> np.ndarray:
        """The samples (samples,) between a frame's boundaries."""
        start, end = (round(second * SAMPLE_RATE) for second in self.times[frame])
        return self.utterance.wave[start:end]


def analyse(model: "OFAWav2Vec2", wave: np.ndarray, phones: list[Interval] | None = None) -> Utterance:
    """An utterance and its alpha. Raises ValueError for a wave (samples,) that the model does not accept."""
    from s3prl_ofa.model.waves import check_waves

    check_waves([wave], model.config.receptive_field, model.device)
    alpha = None if model.compressor is None else model.alpha([wave])[0][0].cpu().numpy()
    return Utterance(wave, alpha, phones or [])


def view_at(model: "OFAWav2Vec2", utterance: Utterance, frame_period_ms: float) -> View:
    """Runs the model at a frame period, with lambd above 1 where lambd 1 is not enough."""
    import torch

    from s3prl_ofa.model.cost import macs
    from s3prl_ofa.model.rate import mix

    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < MOST_RUNS and sum(seconds) < TIMED_SECONDS):
        start = time.perf_counter()
        out = model.extract([utterance.wave], frame_period_ms=frame_period_ms, allow_beyond_one=True)
        frames = int(out.lengths[0])  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    alpha = utterance.alpha
    return View(
        utterance=utterance,
        times=out.times[0].cpu().numpy(),
        weights=None if alpha is None else mix(torch.from_numpy(alpha)[None], out.lambd.cpu())[0].numpy(),
        lambd=float(out.lambd[0]),
        frame_period_ms=float(out.frame_period_ms[0]),
        milliseconds=1000 * min(seconds),
        megabytes=sum(state.nbytes for state in out.hidden_states) / 1e6,
        mmacs=macs(model.config, len(utterance.wave), frames) / 1e6,
    )


def examples(split: str = "test") -> dict[str, str]:
    """The transcripts of the bundled utterances of a split (train, dev, test), by name."""
    lines = (line.split("\t") for line in (AUDIO / "transcripts.tsv").read_text("utf-8").splitlines())
    return {name: text for name, text in lines if name.split("/")[1] == split}


def example_path(name: str) -> pathlib.Path:
    return next(AUDIO.glob(f"*/wav/{name}"))


def example_phones(name: str) -> list[Interval]:
    """The phone alignment of a bundled utterance."""
    name = name.removesuffix(".opus")
    return [tuple(interval) for interval in read_ctm(AUDIO / "phones.ctm.gz", [name])[name]]
