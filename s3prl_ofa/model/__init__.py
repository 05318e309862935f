"""The model: front end, rate (alpha, lambd, period), continuous integrate-and-fire, encoder. Needs only torch."""

from .cif import cif
from .config import SAMPLE_RATE, ModelConfig
from .ofa import ExtractOutput, OFAWav2Vec2

__all__ = ["SAMPLE_RATE", "ExtractOutput", "ModelConfig", "OFAWav2Vec2", "cif"]
