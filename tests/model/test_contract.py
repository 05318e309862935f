"""What extract promises besides the numbers: times, layers, refusals, determinism, gradients, weights."""

import math

import numpy as np
import pytest
import torch
from models import BASE, CONFIGS, LARGE, noise_waves, random_model, random_weights

from s3prl_ofa.model import SAMPLE_RATE, ExtractOutput, OFAWav2Vec2

LENGTHS = [16_000, 400, 1_040, 7_777, 12_345]

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    return random_model(BASE)


@pytest.fixture(scope="module")
def waves():
    return noise_waves(LENGTHS, seed=5)


RATES = (
    {},
    {"lambd": 0.4},
    {"lambd": 1.0},
    {"lambd": 1.9},
    {"lambd": [0.0, 0.5, 1.0, 1.5, 0.2]},
    {"frame_period_ms": 40.0},
    {"frame_period_ms": [20.0, 90.0, 61.0, 33.0, 47.0]},
    {"frame_period_ms": 200.0, "allow_beyond_one": True},
)


@pytest.mark.parametrize("rate", RATES, ids=str)
def test_times_lie_in_order_without_gaps_within_the_audio(model, waves, rate):
    """Promise: times are monotone and contiguous, the first start is 0, the last end is within the audio; frame_index
    is the frame in whose time the middle of each 20 ms frame lies; frame_period_ms is 1000 seconds / frames."""
    out = model.extract(waves, **rate)
    longest, total = int(out.lengths.max()), int(out.input_lengths.max())
    assert out.times.shape == (5, longest, 2) and out.times.dtype == torch.float64
    assert out.frame_index.shape == (5, total) and out.frame_index.dtype == torch.int64
    for row, samples in enumerate(LENGTHS):
        length, inputs = int(out.lengths[row]), int(out.input_lengths[row])
        assert 1 <= length <= inputs == (samples - 400) // 320 + 1
        start, end = out.times[row, :length].T
        assert start[0] == 0 and end[-1] <= samples / SAMPLE_RATE
        assert torch.equal(start[1:], end[:-1])
        assert (end > start).all()
        assert not out.times[row, length:].any()
        assert out.frame_period_ms[row] == pytest.approx(1000 * samples / SAMPLE_RATE / length, rel=1e-12)
        middle = 0.02 * (torch.arange(inputs, dtype=torch.float64) + 0.5)
        index = out.frame_index[row, :inputs]
        assert sorted(set(index.tolist())) == list(range(length))
        assert (index[1:] >= index[:-1]).all()
        assert (start[index] <= middle + 1e-6).all()
        inside = index < length - 1  # what follows the last crossing belongs to the last frame
        assert (middle[inside] <= end[index[inside]] + 1e-6).all()
        assert not out.frame_index[row, inputs:].any()


def test_frames_are_20_ms_each_without_compression(model, waves):
    """Promise: at lambd 0 every frame is 20 ms, one after the other, and stands for itself."""
    out = model.extract(waves, lambd=0)
    for row, length in enumerate(out.lengths.tolist()):
        assert length == out.input_lengths[row]
        starts = 0.02 * torch.arange(length + 1, dtype=torch.float64)
        torch.testing.assert_close(out.times[row, :length, 0], starts[:-1], rtol=0, atol=1e-12)
        torch.testing.assert_close(out.times[row, :length, 1], starts[1:], rtol=0, atol=1e-12)
        assert out.frame_index[row, :length].tolist() == list(range(length))


def test_times_of_a_whole_number_of_frames_reach_the_end(model, waves):
    """Promise: with a frame period the summed weights are a whole number, so that the frames cover all 20 ms frames."""
    out = model.extract(waves, frame_period_ms=30.0)
    for row, (length, inputs) in enumerate(zip(out.lengths.tolist(), out.input_lengths.tolist(), strict=True)):
        assert out.lambd[row] < 1
        assert out.times[row, length - 1, 1] == pytest.approx(0.02 * inputs, abs=1e-6)


def test_lambd_0_is_the_default_and_never_random(model, waves):
    """Promise: without lambd or frame_period_ms the rate is lambd 0, deterministic, whatever the generator's state."""
    torch.manual_seed(1)
    first = model.extract(waves)
    state = torch.get_rng_state()
    second, third = model.extract(waves), model.extract(waves, lambd=0.0)
    assert torch.equal(torch.get_rng_state(), state)
    for out in (second, third):
        assert torch.equal(out.lengths, first.lengths) and out.lambd.tolist() == [0.0] * 5
        assert all(torch.equal(one, two) for one, two in zip(out.hidden_states, first.hidden_states, strict=True))
    compressed = [model.extract(waves, lambd=0.7) for _ in range(2)]
    assert torch.equal(compressed[0].hidden_states[-1], compressed[1].hidden_states[-1])


def test_train_mode_changes_nothing(model, waves):
    """Promise: inference has no dropout; .train() draws nothing either."""
    other = random_model(BASE).train()
    assert torch.equal(
        other.extract(waves, lambd=0.5).hidden_states[-1], model.extract(waves, lambd=0.5).hidden_states[-1]
    )


def test_output_has_the_promised_types(model, waves):
    """Promise: hidden states are layers + 1 tensors (batch, frames, dim); lengths int64, the rest float64, one each."""
    out = model.extract(waves, lambd=0.5)
    assert isinstance(out, ExtractOutput) and isinstance(out.hidden_states, tuple)
    longest = int(out.lengths.max())
    assert [state.shape for state in out.hidden_states] == [(5, longest, 32)] * 4
    assert all(state.dtype == torch.float32 for state in out.hidden_states)
    assert out.lengths.dtype == out.input_lengths.dtype == torch.int64
    assert out.lambd.shape == out.frame_period_ms.shape == out.alpha_sum.shape == (5,)
    assert out.lambd.dtype == out.frame_period_ms.dtype == out.alpha_sum.dtype == torch.float64
    assert model.extract(waves, lambd=0).alpha_sum is None


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_stops_after_that_layer(waves, name):
    """Promise: layers=k stops after layer k: k + 1 hidden states, the first of a full run; 0 is the input alone."""
    model = random_model(CONFIGS[name])
    for rate in ({"lambd": 0}, {"lambd": 0.6}):
        full = model.extract(waves, **rate)
        for layers in range(CONFIGS[name].layers):
            out = model.extract(waves, layers=layers, **rate)
            assert len(out.hidden_states) == layers + 1
            for found, expected in zip(out.hidden_states, full.hidden_states, strict=False):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        out = model.extract(waves, layers=CONFIGS[name].layers, **rate)
        assert torch.equal(out.hidden_states[-1], full.hidden_states[-1])


@pytest.mark.parametrize("layers", [-1, 4, 100, 1.5, "2", math.nan])
def test_layers_out_of_range_are_refused(model, waves, layers):
    """Promise: a layer that does not exist is a ValueError that names the option and the choices."""
    with pytest.raises(ValueError, match="layers.*3"):
        model.extract(waves, layers=layers)


GOOD = np.zeros(800, dtype=np.float32)


@pytest.mark.parametrize(
    "bad,says",
    [
        (torch.zeros(0), "400"),
        (torch.zeros(399), "400"),
        (torch.zeros(1, 800), "1-D"),
        (torch.zeros(()), "1-D"),
        (torch.zeros(800, dtype=torch.int16), "float"),
        (np.zeros(800, dtype=np.int16), "float"),
        (torch.zeros(800, dtype=torch.bool), "float"),
        (torch.zeros(800, dtype=torch.complex64), "float"),
        (torch.tensor([0.0] * 500 + [math.nan] + [0.0] * 300), "finite|NaN"),
        (torch.tensor([0.0] * 500 + [-math.inf] + [0.0] * 300), "finite|inf"),
        (np.array([0.0] * 799 + [math.inf]), "finite|inf"),
        ([0.0] * 800, "tensor|array"),
        ("wave.wav", "tensor|array"),
        (None, "tensor|array"),
    ],
    ids=lambda value: str(value)[:20],
)
@pytest.mark.parametrize("index", [0, 2])
def test_bad_waves_are_refused_by_number(model, bad, says, index):
    """Promise: too short, empty, NaN, not 1-D, wrong dtype: a ValueError that says which utterance and what was
    expected, in one line, from extract and alpha alike."""
    batch = [GOOD, GOOD, GOOD]
    batch[index] = bad
    for ask in (lambda: model.extract(batch, lambd=0.5), lambda: model.alpha(batch)):
        with pytest.raises(ValueError, match=says) as caught:
            ask()
        assert str(index) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "batch", [[], (), torch.zeros(2, 800), np.zeros((2, 800), np.float32), torch.zeros(800), None, "a", 3]
)
def test_what_is_no_list_of_waves_is_refused(model, batch):
    """Promise: waves is a list; a padded tensor (without lengths), an empty list or a path is a ValueError."""
    with pytest.raises(ValueError, match="list|empty|wave"):
        model.extract(batch)


def test_the_shortest_wave_gives_one_frame(model):
    """Promise: 400 samples, the receptive field, are enough, at any rate: one finite frame."""
    wave = noise_waves([400])
    for rate in ({}, {"lambd": 0.5}, {"lambd": 1.0}, {"lambd": 1.99}, {"frame_period_ms": 20}, {"frame_period_ms": 90}):
        out = model.extract(wave, **rate)
        assert out.lengths.tolist() == [1] and out.hidden_states[-1].shape == (1, 1, 32)
        assert out.hidden_states[-1].isfinite().all()
        torch.testing.assert_close(out.times, torch.tensor([[[0, 0.02]]], dtype=torch.float64), rtol=0, atol=1e-9)
        assert out.frame_period_ms.tolist() == [25.0]
    with pytest.raises(ValueError, match="400"):
        model.extract([wave[0][:399]])


def test_an_utterance_with_little_alpha_still_gives_a_frame(waves):
    """Promise: at least one frame per utterance with alphas near 0, where the reference gave none and crashed."""
    weights = random_weights(BASE)
    weights["cif_subsampler.alpha_fn.layer.2.bias"] = torch.tensor([-60.0])
    model = OFAWav2Vec2(BASE)
    model.load_weights(weights)
    out = model.extract(waves, lambd=1.0)
    assert out.lengths.tolist() == [1] * 5 and out.hidden_states[-1].isfinite().all()
    weights["cif_subsampler.alpha_fn.layer.2.bias"] = torch.tensor([60.0])
    model.load_weights(weights)
    out = model.extract(waves, lambd=1.0)
    assert torch.equal(out.lengths, out.input_lengths) and out.hidden_states[-1].isfinite().all()
    assert model.extract(waves, frame_period_ms=40.0, allow_beyond_one=True).lengths[0] == 25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_sum_to_integers_are_not_off_by_one_in_any_model(dtype):
    """Promise: lengths never go off by one: with every alpha 0.5, 0.1 x 100 is 10 frames and 0.7 x 1000 is 700, in
    float32, float16 and bfloat16 models alike."""
    weights = random_weights(BASE)
    weights["cif_subsampler.alpha_fn.layer.2.weight"].zero_()
    weights["cif_subsampler.alpha_fn.layer.2.bias"].zero_()
    model = OFAWav2Vec2(BASE)
    model.load_weights(weights)
    frames = (100, 1000, 4, 3, 30, 7)
    waves = noise_waves([400 + 320 * (count - 1) for count in frames])
    out = model.to(dtype).extract(waves, lambd=[1.8, 0.6, 1.5, 4 / 3, 0.2, 0.0], layers=0)
    assert out.input_lengths.tolist() == list(frames)
    assert out.lengths.tolist() == [10, 700, 1, 1, 27, 7]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda wave: wave.numpy(),
        lambda wave: wave.double(),
        lambda wave: wave.double().numpy(),
        lambda wave: torch.stack([wave, -wave], 1)[:, 0],
        lambda wave: wave.numpy()[::-1][::-1],
        lambda wave: wave.clone().requires_grad_(),
        lambda wave: wave.to(torch.float64).numpy().astype(">f4"),
    ],
    ids=["array", "double", "double array", "strided", "negative strides", "with gradient", "big endian"],
)
def test_waves_in_any_float_form_are_taken(model, waves, wrap):
    """Promise: waves holds 1-D float tensors or arrays of any float dtype, strides and byte order."""
    expected = model.extract(waves, lambd=0.5).hidden_states[-1]
    found = model.extract([wrap(wave) for wave in waves], lambd=0.5).hidden_states[-1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_half_precision_waves_and_tuples_are_taken(model, waves):
    """Promise: float16 and bfloat16 waves are floats too; a tuple of waves is a list."""
    for dtype in (torch.float16, torch.bfloat16):
        rounded = [wave.to(dtype) for wave in waves]
        expected = model.extract([wave.float() for wave in rounded], lambd=0.5)
        found = model.extract(tuple(rounded), lambd=0.5)
        assert torch.equal(found.hidden_states[-1], expected.hidden_states[-1])


def test_waves_are_left_as_they_were(waves):
    """Promise: a model reads its input and does not write to it, normalizing or not."""
    for config in (BASE, LARGE):
        copies = [wave.clone() for wave in waves]
        random_model(config).extract(waves, lambd=0.5)
        assert all(torch.equal(wave, copy) for wave, copy in zip(waves, copies, strict=True))
