"""Counterparts of the two S3PRL classes that assume a constant frame rate; they read the true lengths."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from s3prl.upstream.interfaces import Featurizer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MIN_SAMPLES = 800  # S3PRL pads waves to 0.05 s before an upstream sees them


class LengthAwareFeaturizer(Featurizer):
    """S3PRL's Featurizer with the lengths that the upstream returns as ``hidden_states_len``, if it does."""

    def forward(self, paired_wavs: list[Tensor], paired_features: dict[str, Any]) -> list[Tensor]:
        """The selected or weighted features, (frames, dim) per utterance."""
        lengths = paired_features.get("hidden_states_len")
        if lengths is None:
            return super().forward(paired_wavs, paired_features)
        feature = self._select_feature(paired_features)
        if not isinstance(feature, list | tuple):
            return [row[:length] for row, length in zip(feature, lengths.tolist(), strict=True)]
        if len(feature) != self.layer_num:
            self._weighted_sum(feature)  # which says what is wrong
        if self.normalize:
            feature = [F.layer_norm(state, state.shape[-1:]) for state in feature]
        return list(WeightedSums.apply(F.softmax(self.weights, dim=-1), lengths.tolist(), *feature))


class WeightedSums(torch.autograd.Function):
    """The sum over layers of each utterance without its padding.

    The same operations one after the other, and their gradients, write several copies of all layers to memory, which on
    a CPU takes longer than most downstream models.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, lengths: list[int], *states: Tensor) -> tuple[Tensor, ...]:
        """weights: (layers,). lengths: frames per utterance. states: (batch, frames, dim) per layer."""
        ctx.save_for_backward(weights, *states)
        first, *others = weights.split(1)  # not scalars, so that a sum of 16-bit states is in float32
        weighted = first * states[0]
        for weight, state in zip(others, states[1:], strict=True):
            weighted += weight * state
        return tuple(row[:length] for row, length in zip(weighted, lengths, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights, *states = ctx.saved_tensors
        padded = torch.zeros_like(states[0], dtype=gradients[0].dtype)
        for row, gradient in zip(padded, gradients, strict=True):
            row[: len(gradient)] = gradient
        flat = padded.flatten()
        of_weights = torch.stack([torch.dot(flat, state.flatten().to(flat.dtype)) for state in states])
        trained = ctx.needs_input_grad[2:]  # in fine-tuning
        of_states = (
            (weight * padded).to(state.dtype) if needed else None
            for weight, state, needed in zip(weights.split(1), states, trained, strict=True)
        )
        return of_weights, None, *of_states


def with_native_lengths(forward: Callable) -> Callable:
    """Wraps ``S3PRLUpstream.forward`` so that an upstream with native frames keeps its own lengths.

    All other upstreams still use the original, which stretches or cuts hidden states to the length at a constant rate.
    """

    @functools.wraps(forward)
    def native(self: nn.Module, wavs: Tensor, wavs_len: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        if not getattr(self.upstream, "native_frames", False):
            return forward(self, wavs, wavs_len)
        if wavs.dim() == 3:
            wavs = wavs.squeeze(-1)
        waves = [wave[:length] for wave, length in zip(wavs, wavs_len.tolist(), strict=True)]
        output = self.upstream([F.pad(wave, (0, max(0, MIN_SAMPLES - len(wave)))) for wave in waves])
        states = output["hidden_states"]
        if self.normalize:
            states = [F.layer_norm(state, state.shape[-1:]) for state in states]
        lengths = output["hidden_states_len"].to(device=wavs_len.device, dtype=torch.long)
        return list(states), [lengths] * len(states)

    native.keeps_native_lengths = True
    return native
