"""Where S3PRL looks for the upstream's entries; the code is in the package s3prl_ofa, which must be installed."""

from s3prl_ofa.superb.registration import ofa_wav2vec2, ofa_wav2vec2_custom, ofa_wav2vec2_local, ofa_wav2vec2_url

__all__ = ["ofa_wav2vec2", "ofa_wav2vec2_custom", "ofa_wav2vec2_local", "ofa_wav2vec2_url"]
