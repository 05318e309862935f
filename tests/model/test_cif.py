"""Continuous integrate-and-fire against a slow exact loop, on sums that are integers, in every dtype, at any length."""

import math

import pytest
import torch
from models import slow_cif

from s3prl_ofa.model import cif
from s3prl_ofa.model.cif import crossing_times, frame_index, plan_cif
from s3prl_ofa.model.compressor import Compressor
from s3prl_ofa.model.packing import unpad
from s3prl_ofa.model.rate import mix

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HOUR = 180_000  # frames of 20 ms

torch.set_num_threads(1)


def random_case(seed: int, batch: int, longest: int, dim: int, dtype: torch.dtype = torch.float64):
    """Frames, weights and lengths (at least 1, one of them the longest); garbage in the padding."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(batch, longest, dim, generator=generator)
    power = torch.randint(1, 7, (batch, 1), generator=generator)
    weights = torch.rand(batch, longest, generator=generator) ** power
    lengths = torch.randint(1, longest + 1, (batch,), generator=generator)
    lengths[seed % batch] = longest
    padding = torch.arange(longest) >= lengths[:, None]
    frames[padding] = 1e4
    weights[padding] = 0.9
    return frames.to(dtype), weights.to(dtype), lengths


def expected_frames(frames: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What one utterance must give: the fired frames, or one of all where none fires."""
    if float(weights.double().sum()) >= 1:
        return slow_cif(frames, weights)[0]
    weights = weights.double()
    return (weights[:, None] * frames.double()).sum(0, keepdim=True) / weights.sum()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch,longest,dim", [(1, 1, 3), (1, 2, 1), (4, 7, 2), (3, 40, 5), (8, 90, 4), (2, 300, 3)])
def test_equals_a_slow_exact_loop(batch, longest, dim, dtype):
    """Promise: one vectorised CIF, the same as integrating frame by frame; padding is ignored, and zeros come out."""
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    for seed in range(6):
        frames, weights, lengths = random_case(seed, batch, longest, dim, dtype)
        found, out_lengths = cif(frames, weights, lengths)
        assert found.dtype == dtype and out_lengths.dtype == torch.int64
        assert found.shape == (batch, int(out_lengths.max()), dim)
        for row, (length, out_length) in enumerate(zip(lengths.tolist(), out_lengths.tolist(), strict=True)):
            expected = expected_frames(frames[row, :length], weights[row, :length])
            assert out_length == len(expected)
            torch.testing.assert_close(found[row, :out_length].double(), expected, rtol=tolerance, atol=3 * tolerance)
            assert not found[row, out_length:].any()


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_frames_in_half_precision_take_weights_of_any_precision(dtype):
    """Promise: the result has the frames' dtype, and only the weights decide on the lengths."""
    frames, weights, lengths = random_case(3, 4, 60, 3)
    expected, expected_lengths = cif(frames, weights, lengths)
    found, found_lengths = cif(frames.to(dtype), weights, lengths)
    assert found.dtype == dtype and torch.equal(found_lengths, expected_lengths)
    torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=0.03)


@pytest.mark.parametrize("dtype", DTYPES[2:])
def test_many_small_weights_add_up_in_half_precision(dtype):
    """Promise: half precision loses nothing in the sum: a frame of a thousand others is as accurate as one of two."""
    frames = torch.ones(1, 10_000, 1, dtype=dtype)
    found, lengths = cif(frames, torch.full((1, 10_000), 1e-3, dtype=torch.float64))
    assert lengths.tolist() == [10]
    torch.testing.assert_close(found, torch.ones(1, 10, 1, dtype=dtype), rtol=0, atol=2e-3)
    frames, weights, _ = random_case(0, 1, 400, 8)
    expected, _ = cif(frames.to(dtype).double(), weights / 8)
    found, _ = cif(frames.to(dtype), weights / 8)
    assert (found == expected.to(dtype)).double().mean() > 0.95  # rounded once, at the end


@pytest.mark.parametrize(
    "weight,count,frames",
    [(0.1, 100, 10), (0.7, 1000, 700), (0.25, 4, 1), (1 / 3, 3, 1), (0.9, 10, 9), (0.1, HOUR, 18_000)]
    + [(0.7, HOUR, 126_000), (1.0, HOUR, HOUR), (0.3, HOUR, 54_000), (1 / 3, HOUR, 60_000)],
)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_sums_that_are_integers_are_not_off_by_one(weight, count, frames, dtype):
    """Promise: 0.1 x 100 is 10 frames, and so on, up to an hour; every output frame has a weight of one."""
    found, lengths = cif(torch.ones(1, count, 1), torch.full((1, count), weight, dtype=dtype))
    assert lengths.tolist() == [frames]
    torch.testing.assert_close(found[0, :-1, 0], torch.ones(frames - 1), rtol=0, atol=1e-5)
    # What the rounding of the weights took away is missing in the last frame: below a 64th, as the slack.
    torch.testing.assert_close(found[0, -1], torch.ones(1), rtol=0, atol=2**-6)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_fractions_that_sum_to_integers_are_not_off_by_one(dtype):
    """Promise: lengths never go off by one: j/q repeated to an integer sum, for every j/q with q up to 10, and beside
    each of them the sums one part in a thousand of a frame too low."""
    fractions = [(j, q) for q in range(1, 11) for j in range(1, q + 1) if math.gcd(j, q) == 1]
    weights = torch.tensor([[j / q] for j, q in fractions], dtype=torch.float64).repeat(1, 2520)
    expected = [j * 2520 // q for j, q in fractions]
    _, lengths = cif(torch.zeros(len(weights), 2520, 1), weights.to(dtype))
    assert lengths.tolist() == expected
    below = weights.clone()
    below[:, 1000] -= 1e-3
    _, lengths = cif(torch.zeros(len(weights), 2520, 1), below)
    assert lengths.tolist() == [frames - 1 for frames in expected]


def test_integer_crossings_inside_an_utterance_are_not_off_by_one():
    """Promise: the same holds for every crossing, not only for the last: output frame k is made of the inputs
    10 k ... 10 k + 9, the next ones have no part in it."""
    frames = torch.repeat_interleave(torch.arange(100.0), 10)[None, :, None]
    found, _ = cif(frames, torch.full((1, 1000), 0.1))
    torch.testing.assert_close(found[0, :, 0], torch.arange(100.0), rtol=0, atol=1e-3)
    starts = crossing_times(plan_cif(torch.full((1, 1000), 0.1), torch.tensor([1000])))[0, :, 0]
    torch.testing.assert_close(starts, torch.arange(0, 1000, 10).double(), rtol=0, atol=1e-3)
    covering = frame_index(plan_cif(torch.full((1, 1000), 0.1), torch.tensor([1000])))
    assert torch.equal(covering[0], torch.arange(1000) // 10)


def test_a_sum_clearly_below_an_integer_is_not_rounded_up():
    """Promise: output length is the floor of the sum; the slack for rounding is no more than that, at an hour and
    beyond too."""
    for count, missing in ((100, 1e-4), (1000, 1e-3), (HOUR, 0.05), (12 * HOUR, 0.05)):
        weights = torch.full((1, count), 0.5, dtype=torch.float64)
        weights[0, count // 2] -= missing
        assert cif(torch.zeros(1, count, 1), weights)[1].tolist() == [count // 2 - 1]
        weights[0, count // 2] += 2 * missing
        assert cif(torch.zeros(1, count, 1), weights)[1].tolist() == [count // 2]


def test_lengths_do_not_depend_on_the_batch_s_padding():
    """Promise: padding never reaches CIF: an exact sum is exact beside a much longer utterance too."""
    weights = torch.ones(3, 5000)
    weights[0, :100] = 0.1
    weights[1, :1000] = 0.7
    frames = torch.randn(3, 5000, 2, generator=torch.Generator().manual_seed(0))
    found, lengths = cif(frames, weights, torch.tensor([100, 1000, 5000]))
    assert lengths.tolist() == [10, 700, 5000]
    for row, count in enumerate((100, 1000, 5000)):
        alone, _ = cif(frames[row : row + 1, :count], weights[row : row + 1, :count])
        assert torch.equal(found[row, : alone.shape[1]], alone[0])


@pytest.mark.parametrize("garbage", [-3.0, 7.0, 1e4])
def test_garbage_in_the_padding_is_ignored(garbage):
    """Promise: weights and frames after an utterance's end are ignored, whatever they are."""
    frames, weights, lengths = random_case(4, 4, 25, 2)
    padding = torch.arange(25) >= lengths[:, None]
    expected, expected_lengths = cif(frames, weights, lengths)
    weights[padding] = garbage
    frames[padding] = -garbage
    found, out_lengths = cif(frames, weights, lengths)
    assert torch.equal(found, expected) and torch.equal(out_lengths, expected_lengths)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 499, HOUR])
def test_lambd_0_is_the_identity_bit_for_bit(count, dtype):
    """Promise: lambd 0 is the exact identity, at any length, in every dtype."""
    generator = torch.Generator().manual_seed(count)
    frames = (torch.randn(1, count, 2, generator=generator) * 10).to(dtype)
    alpha = torch.rand(1, count, generator=generator, dtype=torch.float64)
    weights = mix(alpha, torch.zeros(1))
    assert torch.equal(weights, torch.ones_like(weights))
    for one in (weights, weights.to(dtype)):
        found, lengths = cif(frames, one)
        assert lengths.tolist() == [count]
        assert torch.equal(found, frames)


def test_mixing_is_the_reference_s_on_both_branches():
    """Promise: relu(1 - lambd) + (relu(lambd) - 2 relu(lambd - 1)) alpha, for lambd in [0, 2), one per utterance."""
    alpha = torch.rand(9, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lambd = torch.tensor([0, 0.1, 0.5, 0.999, 1, 1.001, 1.5, 1.9, 1.999], dtype=torch.float64)
    column = lambd[:, None]
    expected = (1 - column).relu() + (column.relu() - 2 * (column - 1).relu()) * alpha
    found = mix(alpha.float(), lambd)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    assert torch.equal(mix(alpha, lambd)[0], torch.ones(30, dtype=torch.float64))
    assert torch.equal(mix(alpha, lambd)[4], alpha[4])


@pytest.mark.parametrize("dtype", DTYPES)
def test_at_least_one_frame(dtype):
    """Promise: at least one frame per utterance: the weighted mean if the weights sum to less than one."""
    frames = torch.tensor([[[1.0], [3.0]], [[1.0], [3.0]], [[5.0], [9.0]]], dtype=dtype)
    weights = torch.tensor([[0.125, 0.375], [0.0, 0.0], [0.25, 1.0]], dtype=dtype)
    found, lengths = cif(frames, weights, torch.tensor([2, 2, 1]))
    assert lengths.tolist() == [1, 1, 1]
    assert found[0].item() == 2.5
    assert 1 <= found[1].item() <= 3
    assert found[2].item() == 5


def test_zero_weights_are_harmless():
    """Promise: no NaN, in outputs or gradients, however many weights are zero."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        frames = torch.randn(3, 12, 2, generator=generator).requires_grad_()
        weights = torch.randint(0, 2, (3, 12), generator=generator).float()
        weights[0] = 0
        weights.requires_grad_()
        lengths = torch.tensor([12, 5, 12])
        found, out_lengths = cif(frames, weights, lengths)
        ones = [int(weights[row, :length].sum()) for row, length in enumerate(lengths)]
        assert out_lengths.tolist() == [max(1, count) for count in ones]
        assert found.isfinite().all()
        found.square().sum().backward()
        assert frames.grad.isfinite().all() and weights.grad.isfinite().all()
        plan = plan_cif(weights, lengths)
        assert crossing_times(plan).isfinite().all()


def test_gradients_are_those_of_the_function():
    """Promise: differentiable in the frames and in the weights (gradcheck in float64), short utterances included."""
    frames, weights, lengths = random_case(5, 4, 14, 3)
    weights[1] = 0.01 + 0.03 * weights[1]  # one whose sum is below one
    weights = weights.clamp(0.01, 0.99)
    frames[frames == 1e4] = 0.5
    inputs = (frames.requires_grad_(), weights.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, a: cif(x, a, lengths)[0], inputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("lambd", [0.3, 0.8, 1.2, 1.7])
def test_gradients_in_alpha_and_lambd_are_those_of_the_function(lambd):
    """Promise: differentiable in the frames, in alpha and in lambd, on both branches."""
    frames, alpha, lengths = random_case(7, 3, 12, 2)
    frames[frames == 1e4] = 0.5
    lambds = torch.tensor([lambd, lambd / 2, lambd], dtype=torch.float64)
    inputs = (frames.requires_grad_(), alpha.clamp(0.05, 0.95).requires_grad_(), lambds.requires_grad_())

    def compressed(x, a, rate):
        return Compressor.compress(unpad(x, lengths), Compressor.plan(a, rate, lengths))

    assert torch.autograd.gradcheck(compressed, inputs, eps=1e-6, atol=1e-6)


def test_padding_has_no_gradient():
    """Promise: padding never reaches CIF: neither the padded frames nor their weights have a gradient."""
    frames, weights, lengths = random_case(1, 5, 30, 2, torch.float32)
    found, _ = cif(frames.requires_grad_(), weights.requires_grad_(), lengths)
    found.sin().sum().backward()
    padding = torch.arange(30) >= lengths[:, None]
    assert padding.any() and not frames.grad[padding].any() and not weights.grad[padding].any()
    assert frames.grad[~padding].any() and weights.grad[~padding].any()


@pytest.mark.parametrize("value", [-0.1, 1.1, -1e-3, math.nan, math.inf, -math.inf, 2.0])
def test_weights_outside_0_to_1_are_refused(value):
    """Promise: a weight outside [0, 1] is a ValueError that names the range."""
    weights = torch.full((2, 8), 0.5)
    weights[1, 3] = value
    with pytest.raises(ValueError, match=r"\[0, 1\]|0.*1"):
        cif(torch.zeros(2, 8, 1), weights)


@pytest.mark.parametrize(
    "frames,weights,lengths",
    [
        (torch.zeros(2, 8, 1), torch.zeros(2, 7), None),
        (torch.zeros(2, 8, 1), torch.zeros(3, 8), None),
        (torch.zeros(2, 8), torch.zeros(2, 8), None),
        (torch.zeros(2, 8, 1), torch.zeros(2, 8, 1), None),
        (torch.zeros(2, 8, 1), torch.zeros(2, 8), torch.tensor([8])),
        (torch.zeros(2, 8, 1), torch.zeros(2, 8), torch.tensor([8, 9])),
        (torch.zeros(2, 8, 1), torch.zeros(2, 8), torch.tensor([8, 0])),
        (torch.zeros(2, 8, 1), torch.zeros(2, 8), torch.tensor([8, -1])),
    ],
)
def test_shapes_that_do_not_fit_are_refused(frames, weights, lengths):
    """Promise: shapes and lengths that do not match are a ValueError, not a wrong result."""
    with pytest.raises(ValueError):
        cif(frames, weights, lengths)


def test_shorter_lengths_than_the_padded_width():
    """Promise: a batch may be padded wider than its longest utterance."""
    frames, weights, _ = random_case(2, 3, 50, 2)
    lengths = torch.tensor([10, 30, 20])
    wide, wide_lengths = cif(frames, weights, lengths)
    narrow, narrow_lengths = cif(frames[:, :30], weights[:, :30], lengths)
    assert torch.equal(wide, narrow) and torch.equal(wide_lengths, narrow_lengths)


def test_crossings_and_frame_index_are_the_slow_loop_s():
    """Promise: frames start and end where the running sum crosses integers; a 20 ms frame belongs to the output frame
    on which its middle falls, the tail to the last; each output frame covers at least one 20 ms frame."""
    for seed in range(30):
        frames, weights, lengths = random_case(seed, 3, 40, 1)
        weights = weights.clamp(min=1e-6)
        plan = plan_cif(weights, lengths)
        places, covering = crossing_times(plan), frame_index(plan)
        assert places.shape == (3, int(plan.lengths.max()), 2) and covering.shape == (3, 40)
        for row, length in enumerate(lengths.tolist()):
            _, crossings, expected_owners = slow_cif(frames[row, :length], weights[row, :length])
            out_length = int(plan.lengths[row])
            if len(crossings) == 1:
                crossings = [0.0, float(length)]
            expected = torch.tensor(crossings, dtype=torch.float64)
            torch.testing.assert_close(places[row, :out_length, 0], expected[:-1], rtol=0, atol=1e-6)
            torch.testing.assert_close(places[row, :out_length, 1], expected[1:], rtol=0, atol=1e-6)
            assert covering[row, :length].tolist() == expected_owners
            assert sorted(set(expected_owners)) == list(range(out_length))
            assert not places[row, out_length:].any() and not covering[row, length:].any()
