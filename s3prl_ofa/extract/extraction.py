"""The work of ``extract``: runs batches of audio through the model and writes its output to files."""

import contextlib
import dataclasses
import errno
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.contrib.logging import logging_redirect_tqdm

from s3prl_ofa.extract.inputs import Utterance
from s3prl_ofa.extract.pipeline import loaded_batches, write_behind
from s3prl_ofa.extract.tally import Tally
from s3prl_ofa.extract.writers import FEATURES, Format
from s3prl_ofa.io.audio import SAMPLE_RATE, AudioError, load_audio

if TYPE_CHECKING:
    from torch import Tensor

    from s3prl_ofa.model import OFAWav2Vec2

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Extraction:
    """The work of one process: what to compute, where to write it, and a tally of the results.

    layer_weights: write the weighted sum of the hidden states, each layer-normalized first if normalize_layers is set.
    """

    model: "OFAWav2Vec2"
    options: dict[str, Any]  # of the model's extract
    output_format: Format
    tally: Tally
    layer_weights: list[float] | None = None
    normalize_layers: bool = False

    def run(self, utterances: list[tuple[Utterance, float]], batch_seconds: float) -> None:
        """Extracts (utterance, seconds) pairs."""
        batches = loaded_batches(utterances, batch_seconds, self.load, self.tally.fail, "extract")
        # The model would warn about unreachable periods in every batch; one count at the end is clearer.
        logging.getLogger("s3prl_ofa.model").setLevel(logging.ERROR)
        try:
            with logging_redirect_tqdm(), contextlib.closing(batches), write_behind() as behind:
                for loaded in batches:
                    self.extract(loaded, behind)
        finally:
            logging.getLogger("s3prl_ofa.model").setLevel(logging.NOTSET)

    def load(self, utterance: Utterance) -> np.ndarray:
        """The wave of a file, read in a thread. Raises AudioError."""
        wave, shortest = load_audio(utterance.path), self.model.config.receptive_field
        if len(wave) < shortest:
            raise AudioError(f"too short: {len(wave)} samples at {SAMPLE_RATE} Hz, at least {shortest} are needed")
        return wave

    def extract(self, loaded: list[tuple[Utterance, np.ndarray]], behind: Callable[..., None]) -> None:
        """Runs the model on a batch; ``behind`` writes the output. The utterances of a failed batch are retried one by
        one."""
        if not loaded:
            return
        out = None
        try:
            out = self.model.extract([wave for _, wave in loaded], **self.options)
        except (ValueError, RuntimeError, MemoryError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
        if out is None and len(loaded) == 1:
            self.tally.fail(loaded[0][0], reason)
            return
        if out is None:
            # Outside the except block, because the exception keeps the failed batch's activations in memory.
            logger.info("a batch of %d failed (%s); retrying one by one", len(loaded), reason)
            for pair in loaded:
                self.extract([pair], behind)
            return
        sources = [(utterance, len(wave) / SAMPLE_RATE) for utterance, wave in loaded]
        states = [as_array(state) for state in self.mixed(out.hidden_states)]
        behind(self.write_batch, sources, states, out.lengths.tolist(), out.times.cpu().numpy(), out.lambd.tolist())

    def mixed(self, states: Sequence["Tensor"]) -> Sequence["Tensor"]:
        """The hidden states (batch, frames, dim), or their weighted sum, as S3PRL's Featurizer computes it."""
        import torch
        import torch.nn.functional as F

        if self.layer_weights is None:
            return states
        if self.normalize_layers:
            states = [F.layer_norm(state, state.shape[-1:]) for state in states]
        parts = [weight * state for weight, state in zip(self.layer_weights, states, strict=True)]
        return [torch.stack(parts).sum(0)]

    def write_batch(
        self,
        sources: list[tuple[Utterance, float]],
        states: list[np.ndarray],
        lengths: list[int],
        times: np.ndarray,
        lambds: list[float],
    ) -> None:
        """Writes the output of a batch: states (batch, frames, dim) by layer, times (batch, frames, 2)."""
        for index, ((utterance, seconds), frames, lambd) in enumerate(zip(sources, lengths, lambds, strict=True)):
            layers = [state[index, :frames] for state in states]
            features = np.stack(layers) if len(layers) > 1 else layers[0]
            if np.isfinite(features).all():
                self.write(utterance, features, times[index, :frames], seconds, lambd)
            else:
                self.tally.fail(
                    utterance, "its features hold NaN or infinite values; are the weights too large for --dtype?"
                )

    def write(
        self, utterance: Utterance, features: np.ndarray, times: np.ndarray, seconds: float, lambd: float
    ) -> None:
        name = f"{utterance.name}{self.output_format.suffix}"
        try:
            self.output_format.write(self.tally.store.folder, f"{FEATURES}/{name}", features, times)
        except OSError as error:
            # Of the errors of writing, only these concern a single file.
            if error.errno == errno.ENAMETOOLONG:
                self.tally.fail(utterance, "its name is too long for an output file")
            elif error.errno in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
                self.tally.fail(utterance, f"its output cannot be named {name}: {error.strerror}")
            else:
                raise
            return
        frames = len(times)
        self.tally.finish(
            {
                "name": utterance.name,
                "file": f"{FEATURES}/{name}",
                "frames": frames,
                "seconds": seconds,
                "lambd": lambd,
                "frame_period_ms": 1000 * seconds / frames,
                "audio": str(utterance.path),
                "size": utterance.size,
                "mtime_ns": utterance.mtime_ns,
            }
        )


def as_array(state: Any) -> np.ndarray:
    """A hidden state (batch, frames, dim) as float32 or float16; numpy has no bfloat16."""
    import torch

    state = state.float() if state.dtype == torch.bfloat16 else state
    return state.cpu().numpy()
