"""What identifies an entry: the model that made it, and the samples of the utterance."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from s3prl_ofa.model.ofa import OFAWav2Vec2
from s3prl_ofa.model.products import is_int8, largest_level
from s3prl_ofa.version import __version__

FORMAT = 1  # increase when the same weights give other features


def model_key(model: OFAWav2Vec2) -> dict[str, Any]:
    """The weights, and because they affect rounding also dtype, versions and the type of the device. Integers of 8 bits
    are not the same on all processors."""
    dtype = str(next(model.parameters()).dtype)
    return {
        "format": FORMAT,
        "weights": model.fingerprint(),
        "dtype": f"{dtype} and int8 up to {largest_level()}" if is_int8(model) else dtype,
        "device": model.device.type,
        "versions": {"s3prl_ofa": __version__, "torch": torch.__version__},
    }


def digest_of(wave: Tensor, device: torch.device) -> str:
    """The SHA-256 of the samples, and of the dtype of autocast, which can change from run to run (S3PRL's fp16)."""
    samples = hashlib.sha256(wave.detach().to("cpu", torch.float32).contiguous().numpy())
    if torch.is_autocast_enabled(device.type):
        samples.update(str(torch.get_autocast_dtype(device.type)).encode())
    return samples.hexdigest()
