"""A model exported by ``torch.export`` gives the same hidden states and lengths, for other batches too."""

import dataclasses

import pytest
import torch
from models import CONFIGS, golden_model, noise_waves, random_model
from torch.export import Dim

pytestmark = pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch.export needs torch 2.7")
LENGTHS, OTHERS = (16_000, 12_345), (9_001, 400, 23_456, 719)
CLOSE = {"atol": 1e-4, "rtol": 0}


def padded(waves):
    """A batch, padded with what must not be heard, and its lengths."""
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True, padding_value=7.0)
    return batch, torch.tensor([len(wave) for wave in waves])


def exported(model, samples=Dim.DYNAMIC, **rate):
    """The recording of a model at a rate, for batches of any size; samples: whether of any length too."""
    given = {name: {0: Dim.DYNAMIC} if isinstance(value, torch.Tensor) else None for name, value in rate.items()}
    shapes = {"waves": {0: Dim.DYNAMIC, 1: samples}, "lengths": {0: Dim.DYNAMIC}, **given}
    return torch.export.export(model, padded(noise_waves(LENGTHS)), rate, dynamic_shapes=shapes)


def check(program, model, lengths=OTHERS, **rate):
    waves = noise_waves(lengths)
    states, frames = program.module()(*padded(waves), **rate)
    expected = model.extract(waves, **rate)
    assert torch.equal(frames, expected.lengths)
    for state, other in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(state, other, **CLOSE)


@torch.no_grad()
def test_batches_of_any_size():
    """At a fixed rate and up to a fixed length."""
    model = golden_model()
    check(exported(model, samples=None, lambd=0.5), model, (9_001, 400, 16_000, 719), lambd=0.5)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    "rate", [{"lambd": 0.5}, {"lambd": 1.0}, {"lambd": 1.6}, {"frame_period_ms": 40.0}, {}], ids=str
)
def test_batches_of_any_size_and_length(config, rate):
    """In every kind of network."""
    model = random_model(CONFIGS[config])
    check(exported(model, **rate), model, **rate)


@torch.no_grad()
@pytest.mark.slow
def test_rates_as_an_input(tmp_path):
    """One recording, saved and read back, runs at any lambd."""
    model = golden_model()
    torch.export.save(exported(model, lambd=torch.tensor([0.3, 0.6])), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    for rate in ([0.0, 0.4, 0.9, 1.3], [0.1] * 4, [1.0] * 4):
        check(program, model, lambd=torch.tensor(rate))


@pytest.mark.parametrize(
    ("dtype", "rate", "message"),
    [
        (torch.bfloat16, {}, "torch.export takes a model in float32, found torch.bfloat16"),
        (torch.float32, {"lambd": 2.0}, r"lambd must be in \[0, 2\), found 2"),
        (torch.float32, {"lambd": 0.5, "frame_period_ms": 40.0}, "give lambd or frame_period_ms, not both"),
        (torch.float32, {"frame_period_ms": 10.0}, "frame_period_ms must be a finite number of at least 20, found 10"),
    ],
)
def test_refused(dtype, rate, message):
    """What is known while it is recorded is checked then."""
    with pytest.raises(ValueError, match=message):
        torch.export.export(golden_model(dtype), padded(noise_waves(LENGTHS)), rate)


def test_without_a_compressor():
    model = random_model(dataclasses.replace(CONFIGS["base"], compressor="none"))
    with pytest.raises(ValueError, match="this checkpoint has no compressor: only lambd 0"):
        torch.export.export(model, padded(noise_waves(LENGTHS)), {"lambd": 0.5})
