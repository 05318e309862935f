"""Shared by the tests of the feature cache."""

import contextlib
import pathlib

import torch

ALL = (0, 1, 2)  # the layers of the tiny model
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
RATES = [{"lambd": 0.0}, {"lambd": 0.5}, {"lambd": 1.3}, {"frame_period_ms": 21.0}, {"frame_period_ms": 40.0}]


def ask(cache, waves, model, **rate):
    return cache.extract(waves, lambda missing: model.extract(missing, **rate))


def on_disk(folder) -> int:
    """Bytes of all entries, including partial ones."""
    total = 0
    for path in pathlib.Path(folder).rglob("*.safetensors"):
        with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
            total += path.stat().st_size
    return total


def counted(folder) -> int:
    return int(pathlib.Path(folder, "bytes").read_text())


def assert_same(found, expected, layers=ALL):
    """Each field that the upstream uses is the same to 1e-5, padding and types too; other layers are NaN."""
    assert len(found.hidden_states) == len(expected.hidden_states)
    for layer, (state, plain) in enumerate(zip(found.hidden_states, expected.hidden_states, strict=True)):
        assert state.shape == plain.shape
        if layer in layers:
            torch.testing.assert_close(state, plain, **CLOSE)
        else:
            assert state.isnan().all()
    for name in ("lengths", "times", "lambd", "frame_period_ms", "input_lengths"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), **CLOSE)
    assert found.frame_index.dtype == expected.frame_index.dtype
    for row, length in enumerate(expected.input_lengths.tolist()):
        assert torch.equal(found.frame_index[row, :length], expected.frame_index[row, :length])
