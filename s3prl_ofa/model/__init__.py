"""The model: front end, rate (alpha, lambd, frame period), continuous integrate-and-fire and encoder."""

from s3prl_ofa.model.cif import cif
from s3prl_ofa.model.config import SAMPLE_RATE, ModelConfig
from s3prl_ofa.model.ofa import ExtractOutput, ForwardOutput, OFAWav2Vec2

__all__ = ["SAMPLE_RATE", "ExtractOutput", "ForwardOutput", "ModelConfig", "OFAWav2Vec2", "cif"]
