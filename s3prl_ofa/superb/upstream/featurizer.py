"""S3PRL assumes a constant frame rate in two classes; here are their counterparts that read the true lengths."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from s3prl.upstream.interfaces import Featurizer
from torch import Tensor, nn

MIN_SAMPLES = 800  # S3PRL pads waves to 0.05 s before an upstream sees them


class LengthAwareFeaturizer(Featurizer):
    """S3PRL's Featurizer, but an utterance has the length that the upstream gives as ``hidden_states_len``, if any."""

    def forward(self, paired_wavs: list[Tensor], paired_features: dict[str, Any]) -> list[Tensor]:
        """The selected or weighted features, (frames, dim) per utterance."""
        lengths = paired_features.get("hidden_states_len")
        if lengths is None:
            return super().forward(paired_wavs, paired_features)
        feature = self._select_feature(paired_features)
        if isinstance(feature, list | tuple):
            feature = self._weighted_sum(feature)
        return [row[:length] for row, length in zip(feature, lengths.tolist(), strict=True)]


def with_native_lengths(forward: Callable) -> Callable:
    """Wraps ``S3PRLUpstream.forward`` so that an upstream with native frames keeps its own lengths.

    The original, which stretches or cuts hidden states to the length at a constant rate, still serves all others.
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
