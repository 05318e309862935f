"""Counterparts of the two S3PRL classes that assume a constant frame rate; they read the true lengths."""

import functools
from collections.abc import Callable, Sequence
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
        if isinstance(feature, list | tuple):
            if feature[0].device.type == "cpu" and len(feature) == self.layer_num:
                return list(WeightedSums.apply(self.shares(), lengths.tolist(), *self.normalized(feature)))
            feature = self._weighted_sum(feature)
        return [row[:length] for row, length in zip(feature, lengths.tolist(), strict=True)]

    def _weighted_sum(self, feature: Sequence[Tensor]) -> Tensor:
        """S3PRL's sum over layers, layer by layer; S3PRL first makes two copies of all layers together."""
        if len(feature) != self.layer_num:
            return super()._weighted_sum(feature)  # which says what is wrong
        first, *others = self.normalized(feature)
        weight, *weights = self.shares().split(1)  # not scalars, so that a sum of 16-bit states is in float32
        weighted = weight * first
        for weight, state in zip(weights, others, strict=True):
            weighted += weight * state
        return weighted

    def shares(self) -> Tensor:
        return F.softmax(self.weights, dim=-1)

    def normalized(self, feature: Sequence[Tensor]) -> Sequence[Tensor]:
        return [F.layer_norm(state, state.shape[-1:]) for state in feature] if self.normalize else feature


class WeightedSums(torch.autograd.Function):
    """The sum over layers of each utterance without its padding, for a CPU.

    Whole batches, and a product of each layer and the gradient, would come from fresh memory, which takes several times
    as long as the arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, lengths: list[int], *states: Tensor) -> tuple[Tensor, ...]:
        """weights: (layers,). lengths: frames per utterance. states: (batch, frames, dim) per layer."""
        ctx.save_for_backward(weights, *states)
        first, *others = weights.split(1)
        rows = []
        for index, length in enumerate(lengths):
            row = first * states[0][index, :length]
            for weight, state in zip(others, states[1:], strict=True):
                row += weight * state[index, :length]
            rows.append(row)
        return tuple(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights, *states = ctx.saved_tensors
        trained = any(ctx.needs_input_grad[2:])  # in fine-tuning
        of_weights = torch.zeros_like(weights)
        of_states = [torch.zeros_like(state) if trained else None for state in states]
        for index, gradient in enumerate(gradients):
            flat = gradient.flatten()
            for layer, state in enumerate(states):
                of_weights[layer] += torch.dot(flat, state[index, : len(gradient)].flatten().to(flat.dtype))
                if trained:
                    of_states[layer][index, : len(gradient)] = weights[layer] * gradient
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
