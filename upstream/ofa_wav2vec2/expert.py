"""Where S3PRL looks for the upstream's model; the code is in the package s3prl_ofa, which must be installed."""

from s3prl_ofa.superb.upstream.expert import UpstreamExpert

__all__ = ["UpstreamExpert"]
