"""A grid for the tests of sweeps."""

import pytest
from paths import CKPT


@pytest.fixture
def good(corpora) -> dict:
    """A grid in which everything is right."""
    data = {"librispeech": "LibriSpeech", "voxceleb1": "VoxCeleb1", "prepared": "prepared"}
    return {
        "checkpoints": {"tiny": CKPT},
        "tasks": {"sid": {"steps": 6}, "asr": {"repeat": 2}},
        "rates": {"lambd": [0, 0.5], "frame_period_ms": 40, "pool": 3},
        "learning_rates": [0.01, 0.001],
        "seeds": [1, 2],
        "mini": True,
        "data": {key: str(corpora / name) for key, name in data.items()},
    }
