"""The upstream: waves in, hidden states with their lengths out, in the form that S3PRL expects.

A plain ``nn.Module``: S3PRL's ``UpstreamBase`` would add forward hooks, which are not needed, and import S3PRL.
"""

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ofa.checkpoint import load
from s3prl_ofa.errors import UsageError
from s3prl_ofa.model.config import SAMPLE_RATE, ModelConfig
from s3prl_ofa.model.cost import macs
from s3prl_ofa.model.ofa import ExtractOutput
from s3prl_ofa.superb.upstream.rate_options import FLOAT32, NATIVE, RateOptions, read_model_config

DOWNSAMPLE_RATE = 320  # samples per 20 ms frame; S3PRL asks for one constant, whatever the rate


@dataclasses.dataclass
class Measured:
    """What an upstream has processed. frames: after compression, before any repetition. macs: multiply-accumulates."""

    utterances: int = 0
    seconds: float = 0.0
    frames: int = 0
    macs: int = 0

    def add(self, samples: int, frames: int, macs: int) -> None:
        """Adds one utterance."""
        self.utterances += 1
        self.seconds += samples / SAMPLE_RATE
        self.frames += frames
        self.macs += macs

    @property
    def frame_period_ms(self) -> float:
        """The mean frame period; NaN before the first utterance."""
        return 1000 * self.seconds / self.frames if self.frames else math.nan

    def __str__(self) -> str:
        total = f"{self.utterances} utterances ({self.seconds:.1f} s, {self.frames} frames)"
        return f"{self.frame_period_ms:.2f} ms over {total}"


class UpstreamExpert(nn.Module):
    """An S3PRL upstream.

    ckpt: a checkpoint of any known format.
    model_config: a YAML file, inline YAML or a mapping with the fields of RateOptions.
    refresh: ignored here; S3PRL passes it to every upstream, and it only matters for downloads.
    options: the same options as keyword arguments; they override ``model_config``.

    Raises CheckpointError for the checkpoint and UsageError for the options. The parameters require gradients, because
    S3PRL's own runner freezes an upstream by ``torch.no_grad`` alone unless it is fine-tuned (``-f``). With an adaptive
    lambd they require none, as only the rate is trained, nor in a dtype other than float32, in which the model is not
    trained.
    """

    built = False  # whether this process has built one

    def __init__(
        self,
        ckpt: str | os.PathLike,
        model_config: str | os.PathLike | Mapping[str, Any] | None = None,
        refresh: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.options = RateOptions.layered(read_model_config(model_config), options)
        trainable = self.options.dtype == FLOAT32 and not self.options.adaptive
        self.model = load(ckpt, dtype=self.options.dtype).requires_grad_(trainable)
        self.rate: Any = None  # an AdaptiveRate
        self.cache: Any = None  # a FeatureCache
        self.front_end_cache: Any = None  # a FrontEndCache
        self.frozen = False  # during the first updates of fine-tuning
        check_options(ckpt, self.model.config, self.options)
        layers = self.options.layers or self.model.config.layers
        self.config = dataclasses.replace(self.model.config, layers=layers)  # of the part that runs
        self.measured = Measured()
        UpstreamExpert.built = True
        adapt_s3prl()

    @property
    def native_frames(self) -> bool:
        """Whether frames have no constant rate, so that their lengths must be read from the output."""
        return self.options.output_frames == NATIVE

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Samples per frame: always 320 (20 ms). With native frames read ``hidden_states_len`` instead."""
        return DOWNSAMPLE_RATE

    def follow(self, rate: nn.Module) -> None:
        """Runs at an AdaptiveRate from now on, which does not become a submodule: the upstream stays frozen."""
        object.__setattr__(self, "rate", rate)

    def extract(self, waves: list[Tensor]) -> ExtractOutput:
        if self.rate is not None:
            return self.rate.extract(self.model, waves)
        if self.options.adaptive:
            raise UsageError("lambd adaptive is learned in S3PRL's run_downstream; elsewhere lambd must be a number")
        compute = functools.partial(self.model.extract, **self.options.extract_rate)
        return compute(waves) if self.cache is None else self.cache.extract(waves, compute)

    def forward(self, waves: list[Tensor]) -> dict[str, Any]:
        """Hidden states of a batch of waves, each (samples,) at 16 kHz, in float32 whatever the model's dtype.

        Returns ``hidden_states`` (layers + 1 tensors (batch, frames, dim)), ``hidden_states_len`` (batch,) int64,
        ``last_hidden_state``, each layer again as ``hidden_state_0``, ... for S3PRL's ``-s``, and ``times`` (batch,
        frames, 2), start and end of each frame in seconds.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            out = self.extract(waves)
        if self.options.dtype != FLOAT32:
            out = dataclasses.replace(out, hidden_states=tuple(state.float() for state in out.hidden_states))
        encoded = out.lengths.tolist()
        if self.options.pool:
            out = pooled(out, self.options.pool)
        if self.rate is None or self.rate.probe_lambd is None:
            for wave, before, frames in zip(waves, encoded, out.lengths.tolist(), strict=True):
                self.measured.add(len(wave), frames, macs(self.config, len(wave), before))
        if self.native_frames:
            repeat = self.options.repeat
            states = [state.repeat_interleave(repeat, dim=1) if repeat > 1 else state for state in out.hidden_states]
            lengths, times = out.lengths * repeat, out.times.repeat_interleave(repeat, dim=1)
        else:
            states, lengths = upsample(out), out.input_lengths
            starts = torch.arange(out.frame_index.shape[1], device=lengths.device) * DOWNSAMPLE_RATE / SAMPLE_RATE
            times = torch.stack([starts, starts + DOWNSAMPLE_RATE / SAMPLE_RATE], 1).expand(len(lengths), -1, -1)
        layers = {f"hidden_state_{index}": state for index, state in enumerate(states)}
        return {
            "hidden_states": states,
            "hidden_states_len": lengths,
            "last_hidden_state": states[-1],
            "times": times,
            **layers,
        }


def check_options(ckpt: str | os.PathLike, config: ModelConfig, options: RateOptions) -> None:
    """Raises UsageError for what the model of a checkpoint cannot do."""
    if config.compressor == "none" and options.compresses:
        raise UsageError(f"{ckpt} has no compressor, so its only rates are lambd 0, pool and layers; found {options}")
    if (options.layers or 0) > config.layers:
        raise UsageError(f"layers must be at most {config.layers}, as many as {ckpt} has, found {options.layers}")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, if it is wrapped."""
    return getattr(model, "module", model)


def adapt_s3prl() -> None:
    """Makes S3PRL's own Runner and S3PRLUpstream, where they are imported, read the lengths that our upstreams give.

    Both compute lengths from a constant frame rate. They are patched only when one of our upstreams is built, so that a
    process that uses only other upstreams keeps S3PRL's classes; for other upstreams the patches change nothing.
    """
    runner, upstream = sys.modules.get("s3prl.downstream.runner"), sys.modules.get("s3prl.nn.upstream")
    if not UpstreamExpert.built or (runner is None and upstream is None):
        return
    from s3prl_ofa.superb.upstream.featurizer import LengthAwareFeaturizer, with_native_lengths

    if runner is not None:
        runner.Featurizer = LengthAwareFeaturizer
    if upstream is not None and not hasattr(upstream.S3PRLUpstream.forward, "keeps_native_lengths"):
        upstream.S3PRLUpstream.forward = with_native_lengths(upstream.S3PRLUpstream.forward)


def pooled(out: ExtractOutput, size: int) -> ExtractOutput:
    """The output at lambd 0 with every ``size`` frames averaged into one: a fixed rate, at the encoder's full cost.

    The last frame of an utterance is the mean of the remaining ones.
    """
    lengths = -(-out.lengths // size)
    place = torch.arange(int(lengths.max()), device=lengths.device)
    counts = (out.lengths[:, None] - size * place).clamp(1, size)  # frames in each mean; for padding anything but 0

    def mean(state: Tensor) -> Tensor:
        batch, frames, dim = state.shape
        padded = F.pad(state, (0, 0, 0, len(place) * size - frames))  # zeros, as after the end of each utterance
        return padded.reshape(batch, len(place), size, dim).sum(2) / counts[:, :, None].to(state.dtype)

    first = (size * place).expand(len(lengths), -1)
    last = torch.minimum(first + size, out.lengths[:, None]).sub(1).clamp(min=0)
    valid = place < lengths[:, None]
    times = torch.stack([out.times[..., 0].gather(1, first), out.times[..., 1].gather(1, last)], 2)
    return dataclasses.replace(
        out,
        hidden_states=tuple(mean(state) for state in out.hidden_states),
        lengths=lengths,
        times=times * valid[:, :, None],
        frame_period_ms=out.frame_period_ms * out.lengths / lengths,
        frame_index=out.frame_index // size,
    )


def upsample(out: ExtractOutput) -> list[Tensor]:
    """Hidden states (batch, 20 ms frames, dim) with each compressed frame repeated over the 20 ms it came from.

    Utterances are padded with their last frame, not with zeros: S3PRLUpstream rounds lengths up, and itself repeats the
    last frame of the longest utterance.
    """
    frame = torch.arange(out.frame_index.shape[1], device=out.frame_index.device)
    last = (out.lengths - 1)[:, None]
    index = torch.where(frame < out.input_lengths[:, None], out.frame_index.minimum(last), last)
    return [state.gather(1, index[:, :, None].expand(-1, -1, state.shape[2])) for state in out.hidden_states]
