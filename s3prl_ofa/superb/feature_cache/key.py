"""What cached features depend on besides the audio."""

from collections.abc import Sequence
from typing import Any

import torch

from s3prl_ofa.model.ofa import OFAWav2Vec2
from s3prl_ofa.version import __version__

FORMAT = 1  # increase when the model gives other features for the same weights


def key_of(model: OFAWav2Vec2, rate: dict[str, float | None], layers: Sequence[int]) -> dict[str, Any]:
    """Weights, rate and layers; versions and the type of device too, because they decide how sums are rounded."""
    return {
        "format": FORMAT,
        "weights": model.fingerprint(),
        "rate": {name: value for name, value in rate.items() if value is not None} or {"lambd": 0.0},
        "layers": list(layers),
        "dtype": str(next(model.parameters()).dtype),
        "device": model.device.type,
        "versions": {"s3prl_ofa": __version__, "torch": torch.__version__},
    }


def wanted_layers(selection: str, layer: int | None, last: int) -> tuple[int, ...]:
    """The layers, from 0 to ``last``, that S3PRL's ``-s`` and ``-l`` read; all of them for an unknown selection."""
    layers = tuple(range(last + 1))
    if selection == "last_hidden_state":
        return layers[-1:]
    named = tuple(index for index in layers if selection == f"hidden_state_{index}")
    if named:
        return named
    return layers if layer is None or not -len(layers) <= layer <= last else (layers[layer],)
