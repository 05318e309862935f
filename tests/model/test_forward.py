"""Calling the model on a padded batch: what extract gives, through hooks, DataParallel and torch.compile."""

import pytest
import torch
from models import BASE, CONFIGS, noise_waves, random_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_ofa.model import ForwardOutput, OFAWav2Vec2

LENGTHS = [12_345, 400, 16_000, 7_777]
RATES = (
    {},
    {"lambd": 0.7},
    {"lambd": torch.tensor([0.0, 0.5, 1.0, 1.5])},
    {"frame_period_ms": 40.0},
    {"frame_period_ms": [20.0, 90.0, 61.0, 33.0]},
)


@pytest.fixture(scope="module")
def model() -> OFAWav2Vec2:
    return random_model(BASE)


@pytest.fixture(scope="module")
def waves() -> list[Tensor]:
    return noise_waves(LENGTHS, seed=7)


@pytest.fixture
def padded(waves) -> tuple[Tensor, Tensor]:
    """The waves as (batch, samples), longer than the longest of them, with padding that must not be read."""
    batch = pad_sequence([*waves, torch.zeros(20_000)], batch_first=True, padding_value=torch.nan)
    return batch[:-1].contiguous(), torch.tensor(LENGTHS)


def assert_same(found: ForwardOutput, expected) -> None:
    assert torch.equal(found.lengths, expected.lengths)
    for state, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(state, other)


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_extract(name, rate, waves, padded):
    """Promise: bit for bit what extract gives for the same waves, whatever the padding holds."""
    model = random_model(CONFIGS[name])
    assert_same(model(*padded, **rate), model.extract(waves, **rate))


def test_lengths_are_all_samples_by_default(model, waves):
    """Promise: without lengths nothing is padding; the result unpacks into hidden states and lengths."""
    hidden_states, lengths = model(torch.stack([waves[0], waves[0]]), lambd=0.5)
    expected = model.extract([waves[0], waves[0]], lambd=0.5)
    assert_same(ForwardOutput(hidden_states, lengths), expected)


def test_hooks_are_called(model, padded):
    """Promise: forward hooks see the batch and the output."""
    seen = []
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0], output)))
    out = model(*padded, lambd=0.5)
    handle.remove()
    ((module, batch, output),) = seen
    assert module is model and batch is padded[0] and output is out


def test_gradients_are_those_of_extract(waves, padded):
    """Promise: gradients of waves, weights and rate are those of extract; that of padding is 0."""
    model = random_model(BASE).requires_grad_(True)

    def gradients(run, audio: list[Tensor]) -> list[Tensor]:
        lambd = torch.full((4,), 0.6, requires_grad=True)
        model.zero_grad()
        run(lambd).hidden_states[-1].square().sum().backward()
        return [*(wave.grad for wave in audio), lambd.grad, *(weight.grad for weight in model.parameters())]

    audio = [wave.clone().requires_grad_(True) for wave in waves]
    expected = gradients(lambda lambd: model.extract(audio, lambd), audio)
    batch = padded[0].clone().requires_grad_(True)
    of_batch, *found = gradients(lambda lambd: model(batch, padded[1], lambd), [batch])
    for index, samples in enumerate(LENGTHS):
        assert torch.equal(of_batch[index, :samples], expected[index]) and not of_batch[index, samples:].any()
    assert all(torch.equal(one, other) for one, other in zip(found, expected[4:], strict=True))
    assert all(gradient.any() for gradient in found)


def test_data_parallel(model, waves, padded):
    """Promise: DataParallel gives what extract gives, and where it has several devices their outputs fit together."""
    expected = model.extract(waves, lambd=0.5)
    assert_same(torch.nn.DataParallel(model)(*padded, lambd=0.5), expected)

    batch, lengths = padded
    replica = model._replicate_for_data_parallel()  # as DataParallel makes one for each device
    parts = [replica(batch[part], lengths[part], lambd=0.5) for part in (slice(2), slice(2, 4))]
    assert all(part.hidden_states[0].shape[1] == model.config.num_frames(20_000) for part in parts)
    assert torch.equal(torch.cat([part.lengths for part in parts]), expected.lengths)
    for *pieces, state in zip(*(part.hidden_states for part in parts), expected.hidden_states, strict=True):
        whole, frames = torch.cat(pieces), state.shape[1]
        torch.testing.assert_close(whole[:, :frames], state, rtol=0, atol=1e-5)
        assert not whole[:, frames:].any()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(golden_model, backend):
    """Promise: torch.compile, which breaks the graph where sizes depend on the data, changes nothing."""
    lengths = [5_000, 400, 3_210]
    batch, lambd = pad_sequence(noise_waves(lengths), batch_first=True), torch.tensor([0.0, 0.5, 1.0])
    torch._dynamo.reset()
    found = torch.compile(golden_model, backend=backend)(batch, torch.tensor(lengths), lambd)
    torch._dynamo.reset()
    assert_same(found, golden_model(batch, torch.tensor(lengths), lambd))


@pytest.mark.parametrize(
    ("waves", "lengths", "said"),
    [
        ([torch.zeros(800)], None, "found a list; extract takes a list"),
        (torch.zeros(800), None, r"found shape \(800,\)"),
        (torch.zeros(2, 1, 800), None, r"found shape \(2, 1, 800\)"),
        (torch.zeros(2, 800), torch.tensor([800]), "lengths must be 2 whole numbers"),
        (torch.zeros(2, 800), torch.tensor([800, 801]), "of at most 800 samples"),
        (torch.zeros(2, 800), torch.tensor([800, -1]), "lengths must be 2 whole numbers"),
        (torch.zeros(2, 800), torch.tensor([1.0, 0.5]), "lengths must be 2 whole numbers"),
        (torch.zeros(2, 800), torch.tensor([800, 399]), "utterance 1 has 399 samples; at least 400 are needed"),
        (torch.zeros(2, 800, dtype=torch.int16), None, "utterance 0 must be a 1-D float tensor"),
        (torch.full((2, 800), torch.nan), None, "utterance 0 holds NaN"),
    ],
)
def test_bad_batches(model, waves, lengths, said):
    """Promise: a batch or lengths that do not fit are a ValueError that says what was expected."""
    with pytest.raises(ValueError, match=said):
        model(waves, lengths)
