"""S3PRL assumes one constant frame rate in two places; here are their counterparts that read the true lengths."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from s3prl.upstream.interfaces import Featurizer
from torch import Tensor, nn

from s3prl_ofa.superb.learned_rate.adaptive import AdaptiveRate
from s3prl_ofa.superb.upstream.expert import Measured

MIN_SAMPLES = 800  # S3PRL pads waves to 0.05 s before an upstream sees them


class LengthAwareFeaturizer(Featurizer):
    """S3PRL's Featurizer, which cuts each utterance at the upstream's ``hidden_states_len`` where there is one.

    Without it, it is the original: lengths from the number of samples and a constant rate. ``rate`` is the adaptive
    rate of an upstream that asks for one, to be trained and saved with the featurizer.
    """

    def __init__(self, upstream: nn.Module, *args: Any, **kwargs: Any) -> None:
        rate = AdaptiveRate.asked_for(upstream)
        super().__init__(upstream, *args, **kwargs)
        self.rate = rate
        # The original runs a second of noise through the upstream to learn its width, which is no speech to measure.
        measured_upstream = getattr(upstream, "module", upstream)
        if hasattr(measured_upstream, "measured"):
            measured_upstream.measured = Measured()

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """A rate that was learnt counts for nothing where another is given."""
        if self.rate is None:
            state_dict = {name: value for name, value in state_dict.items() if not name.startswith("rate.")}
        return super().load_state_dict(state_dict, *args, **kwargs)

    def forward(self, paired_wavs: list[Tensor], paired_features: dict[str, Any]) -> list[Tensor]:
        """The selected or weighted features, one (frames, dim) an utterance."""
        lengths = paired_features.get("hidden_states_len")
        if lengths is None:
            return super().forward(paired_wavs, paired_features)
        feature = self._select_feature(paired_features)
        if isinstance(feature, list | tuple):
            feature = self._weighted_sum(feature)
        found = [row[:length] for row, length in zip(feature, lengths.tolist(), strict=True)]
        return found if self.rate is None else self.rate.seen(found)


def with_native_lengths(forward: Callable) -> Callable:
    """Wraps ``S3PRLUpstream.forward`` so that an upstream with native frames keeps its own lengths.

    The original stretches or cuts hidden states to the length that a constant rate would give; it still serves every
    upstream that has one, ours with upsampled frames among them.
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

    native.wraps_native_lengths = True
    return native
