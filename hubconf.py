"""torch.hub entries: torch.hub.load(REPO, "ofa_wav2vec2", source="local", ckpt=..., frame_period_ms=40.0)."""

from s3prl_ofa.superb.registration import (
    ofa_wav2vec2,
    ofa_wav2vec2_custom,
    ofa_wav2vec2_local,
    ofa_wav2vec2_tiny,
    ofa_wav2vec2_url,
)

__all__ = ["ofa_wav2vec2", "ofa_wav2vec2_custom", "ofa_wav2vec2_local", "ofa_wav2vec2_tiny", "ofa_wav2vec2_url"]
dependencies = ["torch", "numpy", "safetensors", "soundfile", "wrapt", "yaml"]
