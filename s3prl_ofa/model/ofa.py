"""The whole model: from waves to hidden states at any frame period from 20 to about 90 ms.

    waves -> front end (20 ms frames) -> LayerNorm -> compressor -> projection -> encoder -> hidden states

Every step works on rows, the frames of all utterances laid end to end (see packing.py), so the features of an utterance
depend neither on the others in its batch nor on padding.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ofa.model.cif import apply_cif, crossing_times, fixed_plan, frame_index
from s3prl_ofa.model.compressor import Compressor
from s3prl_ofa.model.config import SAMPLE_RATE, ModelConfig
from s3prl_ofa.model.encoder import Encoder
from s3prl_ofa.model.frontend import FrontEnd
from s3prl_ofa.model.kernels import check_kernels
from s3prl_ofa.model.names import from_fairseq, to_fairseq
from s3prl_ofa.model.packing import pad_all
from s3prl_ofa.model.padded import export_forward, is_exporting
from s3prl_ofa.model.products import apply_linear
from s3prl_ofa.model.rate import check_frame_period, check_lambd, solve_lambd, wanted_frames
from s3prl_ofa.model.storage import write_safetensors
from s3prl_ofa.model.waves import check_waves, normalize_wave, without_padding
from s3prl_ofa.model.windows import MOST_FRAMES, OVERLAP_S, check_window, encode_in_windows

logger = logging.getLogger(__name__)

Waves = Sequence[Tensor | np.ndarray]
PerUtterance = float | Sequence[float] | Tensor


@dataclasses.dataclass(frozen=True)
class ExtractOutput:
    """Hidden states of a batch, padded with zeros, and the times of their frames.

    hidden_states: layers + 1 tensors (batch, frames, dim): the input of each layer, then the encoder's output; or only
        the requested ones.
    lengths: (batch,) int64, valid frames.
    times: (batch, frames, 2) float64, start and end of each frame in seconds.
    lambd: (batch,) float64, the lambd that was used.
    frame_period_ms: (batch,) float64, the resulting mean frame period: 1000 * seconds / frames.
    input_lengths: (batch,) int64, 20 ms frames before compression.
    frame_index: (batch, 20 ms frames) int64, the frame that holds the middle of each 20 ms frame.
    alpha_sum: (batch,) float64, the sum of the predictor's alpha; None if it was not needed (all lambd 0).
    """

    hidden_states: tuple[Tensor, ...]
    lengths: Tensor
    times: Tensor
    lambd: Tensor
    frame_period_ms: Tensor
    input_lengths: Tensor
    frame_index: Tensor
    alpha_sum: Tensor | None


class ForwardOutput(NamedTuple):
    """Hidden states of a padded batch and their lengths; ``hidden_states, lengths = model(waves)`` unpacks it.

    hidden_states: layers + 1 tensors (batch, frames, dim), zeros after each utterance's end: the input of each layer,
        then the encoder's output.
    lengths: (batch,) int64, valid frames.
    """

    hidden_states: tuple[Tensor, ...]
    lengths: Tensor


class OFAWav2Vec2(nn.Module):
    """wav2vec 2.0 (arXiv 2006.11477) with once-for-all sequence compression (arXiv 2211.02332), for inference.

    Created in eval mode with frozen parameters; ``requires_grad_(True)`` makes them trainable (there is no dropout).
    ``s3prl_ofa.load`` creates it from a checkpoint.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.front_end = FrontEnd(config)
        self.feature_norm = nn.LayerNorm(config.conv_dim)
        self.compressor = Compressor(config.conv_dim) if config.compressor == "cif" else None
        self.projection = nn.Linear(config.conv_dim, config.dim) if config.projection else nn.Identity()
        self.encoder = Encoder(config)
        self.checked_kernels: set[tuple[torch.device, torch.dtype]] = set()  # passed by check_kernels
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        return self.feature_norm.weight.device

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Loads weights under fairseq's names, ignoring those of pretraining only (quantizer, mask_emb, ...).

        Raises ValueError naming the weights that are missing, unknown, of another shape or not finite in this model's
        dtype.
        """
        self.load_state_dict(from_fairseq(weights, self.config, self.state_dict(), self.feature_norm.weight.dtype))

    def weights(self) -> dict[str, Tensor]:
        """A copy of all weights under fairseq's names, on the CPU, in the model's dtype."""
        state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.state_dict().items()}
        return to_fairseq(state, self.config)

    def fingerprint(self) -> str:
        """SHA-256 of config and weights: the same whatever file and format the model came from, and on any device."""
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
        for name, tensor in sorted(self.weights().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, path: str | os.PathLike) -> None:
        """Writes safetensors with the config in its metadata; ``s3prl_ofa.load`` reads it back bit for bit."""
        write_safetensors(path, self.config, self.weights())

    def front_end_rows(self, waves: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The front end's normalized output: rows (frames of the batch, conv dim), and lengths (batch,) on the CPU.

        Raises RuntimeError if a 16-bit kernel of this machine gives wrong results.
        """
        check_kernels(self)
        if self.config.normalize:
            waves = [normalize_wave(wave) for wave in waves]
        rows, lengths = self.front_end(waves)
        return self.feature_norm(rows), lengths

    def alpha(self, waves: Waves) -> tuple[Tensor, Tensor]:
        """The predictor's alpha (batch, 20 ms frames), float64, padded with zeros, and the lengths (batch,).

        Raises ValueError for bad waves and for a checkpoint without a compressor.
        """
        if self.compressor is None:
            raise ValueError("this checkpoint has no compressor, so it has no alpha")
        rows, lengths = self.front_end_rows(check_waves(waves, self.config.receptive_field, self.device))
        return self.compressor.alpha(rows, lengths), lengths.to(rows.device)

    def forward(
        self,
        waves: Tensor,
        lengths: Tensor | None = None,
        lambd: PerUtterance | None = None,
        frame_period_ms: PerUtterance | None = None,
    ) -> ForwardOutput:
        """Hidden states of a padded batch: ``extract`` for hooks, data parallelism, ``torch.compile`` and ``export``.

        waves: (batch, samples) float, 16 kHz mono. What lies beyond an utterance's length is never read.
        lengths: (batch,) samples of each utterance, at least 400; all of them by default.
        lambd, frame_period_ms: as in ``extract``. DataParallel divides a tensor among its devices, but not a list.

        Hidden states and lengths are those that ``extract`` gives for the same waves without their padding. Under
        DataParallel hidden states are padded to the number of frames at 20 ms, so that they can be gathered. Raises
        ValueError for bad waves, lengths and rates; what ``torch.export`` records (padded.py) checks none of them.
        """
        if is_exporting():
            # a plain tuple, because torch.export.save knows no other kind
            return export_forward(self, waves, lengths, lambd, frame_period_ms)  # type: ignore[return-value]
        out = self.extract(without_padding(waves, lengths), lambd, frame_period_ms)
        hidden_states = out.hidden_states
        if getattr(self, "_is_replica", False):  # set by DataParallel
            padding = self.config.num_frames(waves.shape[1]) - hidden_states[0].shape[1]
            hidden_states = tuple(F.pad(state, (0, 0, 0, padding)) for state in hidden_states)
        return ForwardOutput(hidden_states, out.lengths)

    def extract(
        self,
        waves: Waves,
        lambd: PerUtterance | None = None,
        frame_period_ms: PerUtterance | None = None,
        layers: int | Sequence[int] | None = None,
        allow_beyond_one: bool = False,
        window_s: float | None = None,
        overlap_s: float = OVERLAP_S,
        uniform: bool = False,
    ) -> ExtractOutput:
        """Hidden states of a batch at a chosen rate.

        waves: list of 1-D float tensors or arrays (samples,), 16 kHz mono, at least 400 samples each.
        lambd: a number in [0, 2), or one per utterance; 0 is no compression (20 ms), 1 the model's alpha alone.
        frame_period_ms: the mean frame period, 20 or more, or one per utterance, instead of lambd. For each utterance,
            lambd is solved so that it has exactly the nearest number of frames.
        layers: number of encoder layers to run (0: only the encoder's input); all by default. A sequence, such as [12]
            or [0, 6], names the hidden states to return, which takes less memory than all of them.
        allow_beyond_one: let a frame period use lambd above 1 where lambd 1 gives too many frames. Otherwise the
            nearest reachable rate is used, with a warning in the log.
        window_s, overlap_s: for long utterances. Attention sees windows of ``window_s`` seconds of which neighbors
            share ``overlap_s``, so time is linear in the length and memory bounded. Frames, lengths and times stay the
            same, hidden states are close to those without windows (docs/how-to/long-audio.md). Utterances shorter than
            a window are processed whole.
        uniform: for comparison, replace each utterance's alpha by its mean: the same number of frames, of equal
            length.

        Without lambd and frame_period_ms, lambd is 0. Raises ValueError for bad waves, rates, layers and windows.
        """
        if lambd is not None and frame_period_ms is not None:
            raise ValueError("give lambd or frame_period_ms, not both")
        states = check_layers(layers, self.config.layers)
        check_window(window_s, overlap_s)
        waves = check_waves(waves, self.config.receptive_field, self.device)
        # Rates and lengths stay on the CPU as long as possible, so that nothing waits for a GPU.
        seconds = torch.tensor([len(wave) for wave in waves], dtype=torch.float64) / SAMPLE_RATE
        # The rate is checked before any work is done.
        if frame_period_ms is not None:
            rate = check_frame_period(frame_period_ms, len(waves)).cpu()
        else:
            rate = check_lambd(0.0 if lambd is None else lambd, len(waves)).cpu()

        rows, lengths = self.front_end_rows(waves)
        input_lengths = lengths.to(self.device, non_blocking=True)
        frames = None if frame_period_ms is None else wanted_frames(seconds, rate, lengths)
        if frames is None:
            compressed = bool((rate != 0).any())
        elif self.config.pooling > 1:
            compressed = bool((rate != self.config.frame_period_ms).any())
        else:
            compressed = bool((frames != lengths).any())
        compressed = compressed or (rate.requires_grad and self.compressor is not None)
        alpha_sum = None
        if not compressed:
            rate = torch.zeros_like(rate)
            plan = fixed_plan(input_lengths, int(lengths.max()), self.config.pooling)
            if self.config.pooling > 1:
                rows, lengths = apply_cif(rows, plan), self.config.pooled(lengths)
        elif self.compressor is None:
            raise ValueError(
                "this checkpoint has no compressor: only lambd 0 (a frame period of "
                f"{self.config.frame_period_ms:g} ms) is possible"
            )
        else:
            alpha = self.compressor.alpha(rows, lengths)
            alpha_sum = alpha.detach().sum(1)
            sums = alpha_sum.cpu()
            if not bool(torch.isfinite(sums).all()):
                raise ValueError(
                    f"the frames are not finite in {self.feature_norm.weight.dtype}; expected waves in [-1, 1], or a "
                    "model in bfloat16 or float32"
                )
            if frames is not None:
                rate = self.lambd_for(frames, sums, lengths, rate, allow_beyond_one)
            alpha = self.compressor.uniform(alpha, input_lengths) if uniform else alpha
            plan = self.compressor.plan(alpha, rate.to(self.device), input_lengths)
            rows = self.compressor.compress(rows, plan)
            lengths = plan.lengths.cpu()

        times = crossing_times(plan, int(lengths.max())) * (self.config.hop / SAMPLE_RATE)
        periods_s = seconds / lengths
        rows = apply_linear(self.projection, rows)
        if window_s is None:
            hidden_states = self.encoder(rows, lengths, states)
        else:
            counts = (torch.round(value / periods_s) for value in (window_s, overlap_s))
            window, overlap = (count.clamp(max=MOST_FRAMES).long() for count in counts)
            window = window.clamp(min=1)
            hidden_states = encode_in_windows(
                self.encoder, rows, lengths, states, window, torch.minimum(overlap, window - 1)
            )
        return ExtractOutput(
            hidden_states=tuple(pad_all(hidden_states, lengths)),
            lengths=plan.lengths,
            times=times,
            lambd=rate.to(self.device),
            frame_period_ms=(1000.0 * periods_s).to(self.device),
            input_lengths=input_lengths,
            frame_index=frame_index(plan),
            alpha_sum=alpha_sum,
        )

    @staticmethod
    def lambd_for(
        frames: Tensor, alpha_sum: Tensor, input_lengths: Tensor, periods_ms: Tensor, allow_beyond_one: bool
    ) -> Tensor:
        """The lambd (batch,) for the wanted ``frames`` (batch,); warns in the log where they cannot be reached."""
        solved, reached = solve_lambd(frames, alpha_sum, input_lengths, allow_beyond_one)
        if not bool(reached.all()):
            unreached = (~reached).nonzero()[:, 0].tolist()
            logger.warning(
                "frame period of %s ms is longer than lambd 1 gives for utterance(s) %s; lambd 1 is used "
                "(allow_beyond_one=True goes further)",
                ", ".join(f"{value:g}" for value in sorted(set(periods_ms[unreached].tolist()))),
                ", ".join(map(str, unreached)),
            )
        return solved


def check_layers(layers: int | Sequence[int] | None, all_layers: int) -> Sequence[int]:
    """The numbers of the hidden states that ``layers`` of ``extract`` asks for. Raises ValueError."""
    if isinstance(layers, Sequence) and not isinstance(layers, str):
        states: Sequence[int] = layers
    else:
        layers = all_layers if layers is None else layers
        states = range(layers + 1) if isinstance(layers, int) and not isinstance(layers, bool) else ()
    if not states or not all(isinstance(state, int) and 0 <= state <= all_layers for state in states):
        raise ValueError(f"layers must be a whole number from 0 to {all_layers} or a list of them, found {layers!r}")
    return states
