"""torch.hub entries: torch.hub.load(REPO, "ofa_wav2vec2", source="local", ckpt=..., frame_period_ms=40.0)."""

from typing import Any

from s3prl_ofa.superb.registration import ofa_wav2vec2, ofa_wav2vec2_custom, ofa_wav2vec2_local, ofa_wav2vec2_url
from s3prl_ofa.superb.upstream.expert import UpstreamExpert

__all__ = ["ofa_wav2vec2", "ofa_wav2vec2_custom", "ofa_wav2vec2_local", "ofa_wav2vec2_tiny", "ofa_wav2vec2_url"]
dependencies = ["torch", "numpy", "safetensors", "soundfile", "yaml"]


def ofa_wav2vec2_tiny(**options: Any) -> UpstreamExpert:
    """The upstream from the bundled checkpoint of 5.8 million parameters. options: as in ``ofa_wav2vec2``."""
    return ofa_wav2vec2_local("tiny", **options)
