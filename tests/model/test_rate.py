"""The rate: what lambd and frame_period_ms accept, and that a wanted frame period is met exactly."""

import dataclasses
import logging
import math
import random

import numpy as np
import pytest
import torch
from models import BASE, LARGE, SlowModel, golden_model, golden_wave, noise_waves, random_model, random_weights

from s3prl_ofa.model import SAMPLE_RATE, OFAWav2Vec2
from s3prl_ofa.model.rate import mix, solve_lambd, wanted_frames

LENGTHS = [400, 719, 1040, 4000, 9999, 16000, 23456, 40001]

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    return random_model(BASE)


@pytest.fixture(scope="module")
def waves():
    return noise_waves(LENGTHS, seed=3)


@pytest.mark.parametrize("lambd", [-1e-9, -1, 2.0, 2, 2.5, math.nan, math.inf, -math.inf, [0.5, 2.0], [0.5, math.nan]])
def test_lambd_out_of_range_is_refused(model, waves, lambd):
    """Promise: lambd outside [0, 2) or NaN is a ValueError that names the range, also with one per utterance."""
    with pytest.raises(ValueError, match=r"lambd.*\[0, 2\)"):
        model.extract(waves[:2], lambd=lambd)


def bad_rates(good):
    """Wrong counts for two utterances, then values that are not numbers, from a rate that would be valid."""
    counts = [[], [good], [good] * 3, [[good, good]], [[good], [good]], torch.full((2, 1), good), np.full(3, good)]
    return counts + [str(good), "fast", b"1", {}, object(), [str(good)] * 2, ["a", "b"], [good, None], [good, 1j]]


@pytest.mark.parametrize(
    "name,value",
    [("lambd", value) for value in bad_rates(0.5)] + [("frame_period_ms", value) for value in bad_rates(40)],
)
def test_a_rate_that_is_no_number_or_of_another_count_is_refused(model, waves, name, value):
    """Promise: the rate is a number or one per utterance; anything else is a ValueError that names the option."""
    with pytest.raises(ValueError, match=name):
        model.extract(waves[:2], **{name: value})


@pytest.mark.parametrize("period", [19.99, 0, -40, math.nan, math.inf, [40.0, 5.0]])
def test_frame_periods_that_cannot_be_are_refused(model, waves, period):
    """Promise: a frame period below the front end's 20 ms, or none at all, is a ValueError that names the bound."""
    with pytest.raises(ValueError, match="frame_period_ms.*20"):
        model.extract(waves[:2], frame_period_ms=period)


def test_both_rates_together_are_refused(model, waves):
    """Promise: lambd or frame_period_ms; both is a ValueError that names both, even where they agree."""
    with pytest.raises(ValueError, match="(?s)lambd.*frame_period_ms|frame_period_ms.*lambd"):
        model.extract(waves, lambd=0.0, frame_period_ms=20.0)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["float", "int", "list", "tuple", "array", "float32 array", "tensor", "0-d tensor"])
def test_numbers_lists_arrays_and_tensors_are_taken(model, waves, kind, count):
    """Promise: lambd is a number or one per utterance, in any numeric type; out.lambd is what was used."""
    value = {
        "float": 1.0,
        "int": 1,
        "list": [1.0] * count,
        "tuple": (1,) * count,
        "array": np.ones(count),
        "float32 array": np.ones(count, dtype=np.float32),
        "tensor": torch.ones(count),
        "0-d tensor": torch.tensor(1.0),
    }[kind]
    out = model.extract(waves[-count:], lambd=value)
    expected = model.extract(waves[-count:], lambd=1.0)
    assert out.lambd.dtype == torch.float64 and out.lambd.tolist() == [1.0] * count
    assert torch.equal(out.lengths, expected.lengths)
    assert torch.equal(out.hidden_states[-1], expected.hidden_states[-1])


def test_the_end_of_the_range_is_open(model, waves):
    """Promise: lambd in [0, 2): just below 2 works and gives one frame, a finite one."""
    out = model.extract(waves, lambd=math.nextafter(2.0, 0.0))
    assert out.lengths.tolist() == [1] * len(waves)
    assert out.hidden_states[-1].isfinite().all()


def test_number_of_frames_is_the_floor_of_the_summed_weights(model, waves):
    """Promise: output length is the floor of the sum of the weights, at least one, with one lambd per utterance; more
    lambd is never more frames."""
    alpha, input_lengths = model.alpha(waves)
    valid = torch.arange(alpha.shape[1]) < input_lengths[:, None]
    assert not alpha[~valid].any() and ((alpha[valid] > 0) & (alpha[valid] < 1)).all()
    assert input_lengths.tolist() == [(samples - 400) // 320 + 1 for samples in LENGTHS]
    previous = None
    for step in range(20):
        lambd = torch.linspace(0.1 * step, 0.1 * step + 0.09, len(waves), dtype=torch.float64)
        out = model.extract(waves, lambd=lambd)
        sums = (mix(alpha, lambd) * valid).sum(1)
        assert out.lengths.tolist() == [max(1, math.floor(total + 1e-6)) for total in sums.tolist()]
        assert torch.equal(out.lambd, lambd)
        assert torch.equal(out.input_lengths, input_lengths)
        if step:
            torch.testing.assert_close(out.alpha_sum, alpha.sum(1), rtol=0, atol=1e-5)
            assert (out.lengths <= previous).all()
        previous = out.lengths


def check_period(model, waves, periods, caplog, allow_beyond_one=False):
    """Asserts the promise on frame periods for one call; returns how many utterances could not reach theirs."""
    periods = [float(period) for period in periods]
    alpha, input_lengths = model.alpha(waves)
    sums = alpha.sum(1).tolist()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        out = model.extract(waves, frame_period_ms=periods, allow_beyond_one=allow_beyond_one)
    missed = 0
    for index, (wave, period) in enumerate(zip(waves, periods, strict=True)):
        seconds, total = len(wave) / SAMPLE_RATE, int(input_lengths[index])
        wanted = min(max(round(1000 * seconds / period), 1), total)
        length, lambd = int(out.lengths[index]), float(out.lambd[index])
        if wanted >= max(1, math.floor(sums[index])):
            assert length == wanted
            if wanted >= sums[index]:
                assert lambd == pytest.approx((total - wanted) / (total - sums[index]), abs=1e-6)
        elif allow_beyond_one:
            assert length == wanted
            assert 1 < lambd < 2
            assert lambd == pytest.approx(2 - wanted / sums[index], abs=1e-6)
        else:
            missed += 1
            assert length == math.floor(sums[index]) and lambd == 1
        assert 0 <= lambd < 2
        assert out.frame_period_ms[index] == pytest.approx(1000 * seconds / length, rel=1e-12)
    assert bool(caplog.records) == bool(missed)
    return missed


def test_frame_periods_are_met_exactly(model, waves, caplog):
    """Promise: the number of frames is round(1000 seconds / period) for every utterance that can reach it, over the
    whole range of periods; where it cannot, lambd is 1 and a warning says so."""
    missed = [
        check_period(model, waves, [period] * len(waves), caplog)
        for period in [*np.linspace(20, 90, 36), 110, 150, 400]
    ]
    assert missed[0] == 0 and missed[-1] > 0


def test_frame_periods_beyond_lambd_one_are_met_exactly_when_asked(model, waves, caplog):
    """Promise: with allow_beyond_one lambd continues in [1, 2), and the period is met exactly there too."""
    for period in np.linspace(60, 400, 20):
        assert check_period(model, waves, [period] * len(waves), caplog, allow_beyond_one=True) == 0


@pytest.mark.parametrize("beyond", [False, True])
def test_random_frame_periods_one_an_utterance(beyond, caplog):
    """Promise: the period is met utterance by utterance, for random waves, periods and models of both forms."""
    chance = random.Random(0)
    for trial in range(12):
        model = random_model(LARGE if trial % 2 else BASE, seed=trial)
        waves = noise_waves([chance.randint(400, 30_000) for _ in range(6)], seed=trial)
        check_period(model, waves, [chance.uniform(20, 160) for _ in waves], caplog, beyond)


def test_golden_model_meets_every_period_it_can_reach(caplog):
    """Promise: the same for a trained model on the golden waves, from 20 to 90 ms in steps of one."""
    model = golden_model()
    waves = [golden_wave("1s"), golden_wave("2.37s"), golden_wave("5s")]
    for period in range(20, 91, 2):
        check_period(model, waves, [period] * 3, caplog, allow_beyond_one=period % 4 == 0)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_meet_frame_periods_exactly(waves, dtype, caplog):
    """Promise: lengths are exact in float16 and bfloat16 models alike."""
    model = random_model(BASE).to(dtype)
    for period in (20, 27.3, 40, 55.5, 61):
        check_period(model, waves, [period] * len(waves), caplog, allow_beyond_one=True)


def test_the_warning_names_what_was_asked_and_what_is_used(model, caplog):
    """Promise: where a period cannot be reached the nearest reachable rate is used, with one warning that has the
    wanted period, none when it is reached."""
    wave = noise_waves([32_000])
    with caplog.at_level(logging.WARNING):
        model.extract(wave, frame_period_ms=40.0)
        assert not caplog.records
        model.extract(wave, frame_period_ms=500.0)
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.records[0].name.startswith("s3prl_ofa")
    assert "500" in caplog.records[0].getMessage() and "allow_beyond_one" in caplog.records[0].getMessage()


def test_a_frame_period_of_20_ms_is_no_compression(model, waves):
    """Promise: 20 ms is the front end's own period: all frames, lambd 0."""
    out = model.extract(waves, frame_period_ms=20)
    expected = model.extract(waves)
    assert out.lambd.tolist() == [0.0] * len(waves)
    assert torch.equal(out.lengths, expected.lengths)
    assert torch.equal(out.hidden_states[-1], expected.hidden_states[-1])


def test_frame_period_gives_what_its_lambd_gives(model, waves):
    """Promise: frame_period_ms is another way to say lambd: out.lambd, given back, yields the same features. The last
    frame may be lost to rounding, for its sum is an exact integer."""
    periods = [20, 21, 22, 35.0, 40.0, 50.0, 61.8, 33.3]
    out = model.extract(waves, frame_period_ms=periods)
    again = model.extract(waves, lambd=out.lambd)
    assert torch.equal(out.lengths, again.lengths)
    torch.testing.assert_close(out.hidden_states[-1], again.hidden_states[-1], rtol=0, atol=1e-6)


def test_solve_lambd_is_the_closed_form():
    """Promise: lambd = (T - N) / (T - sum(alpha)), 2 - N / sum(alpha) beyond 1, and the sum it gives is N exactly."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        lengths = torch.randint(1, 900, (64,), generator=generator)
        sums = lengths * (0.02 + 0.95 * torch.rand(64, generator=generator, dtype=torch.float64))
        frames = (1 + (lengths - 1) * torch.rand(64, generator=generator, dtype=torch.float64)).round().long()
        frames = frames.clamp(min=1)
        for beyond in (False, True):
            lambd, reached = solve_lambd(frames, sums, lengths, beyond)
            assert ((lambd >= 0) & (lambd < 2)).all()
            within = frames >= sums
            closed = (lengths - frames) / (lengths - sums)
            torch.testing.assert_close(lambd[within], closed[within], rtol=1e-12, atol=0)
            assert reached[within].all()
            short = frames < torch.floor(sums)
            between = ~within & ~short  # sum(alpha) has a fraction: lambd 1 fires as many
            assert (lambd[between] == 1).all() and reached[between].all()
            if beyond:
                torch.testing.assert_close(lambd[short], 2 - frames[short] / sums[short], rtol=1e-12, atol=0)
                assert reached[short].all()
            else:
                assert (lambd[short] == 1).all() and not reached[short].any()
            total = torch.where(lambd <= 1, lengths - lambd * (lengths - sums), (2 - lambd) * sums)
            torch.testing.assert_close(total[within], frames[within].double(), rtol=1e-12, atol=0)


def test_solve_lambd_where_every_frame_fires_anyway():
    """Promise: no NaN where alpha is 1 throughout, and none where alpha is 0 throughout."""
    frames, lengths = torch.tensor([10, 10, 4, 1]), torch.tensor([10, 10, 10, 1])
    lambd, _ = solve_lambd(frames, torch.tensor([10.0, 0.0, 0.0, 1.0]).double(), lengths)
    assert lambd.isfinite().all() and lambd[:2].tolist() == [0, 0]
    assert lambd[2] == pytest.approx(0.6)
    lambd, reached = solve_lambd(frames[2:3], torch.tensor([10.0]).double(), lengths[:1], True)
    assert lambd[0] == pytest.approx(1.6) and reached.all()


def test_wanted_frames_is_the_rounded_quotient():
    """Promise: round(1000 seconds / period), from one to as many as there are."""
    generator = torch.Generator().manual_seed(1)
    samples = torch.randint(400, 500_000, (2000,), generator=generator)
    periods = 20 + 100 * torch.rand(2000, generator=generator, dtype=torch.float64)
    total = (samples - 400) // 320 + 1
    found = wanted_frames(samples / SAMPLE_RATE, periods, total)
    expected = [
        min(max(round(1000 * count / SAMPLE_RATE / period), 1), most)
        for count, period, most in zip(samples.tolist(), periods.tolist(), total.tolist(), strict=True)
    ]
    assert found.dtype == torch.int64
    assert (found - torch.tensor(expected)).abs().max() <= 1
    assert (found == torch.tensor(expected)).double().mean() > 0.999
    exact = wanted_frames(
        torch.tensor([1.0, 5.0, 0.025]).double(), torch.tensor([40.0, 50, 90]).double(), total[:3] + 99
    )
    assert exact.tolist() == [25, 100, 1]


def test_alpha_is_the_slow_model_s():
    """Promise: the predictor's own alpha, in float64, for utterances of a batch, both forms."""
    for config in (BASE, LARGE):
        weights = random_weights(config)
        model = random_model(config)
        slow = SlowModel(config, weights)
        waves = noise_waves([400, 720, 5000, 12_345], seed=8)
        alpha, lengths = model.alpha(waves)
        for row, wave in enumerate(waves):
            expected = slow.alpha(slow.conv_frames(wave))
            torch.testing.assert_close(alpha[row, : lengths[row]], expected, rtol=0, atol=2e-5)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_alpha_is_not_rounded_to_half_precision(waves, dtype):
    """Promise: lengths never go off by one in half precision models: what comes after the predictor's convolution is
    computed in full, from the same (rounded) weights."""
    name = "cif_subsampler.alpha_fn"
    weights = {key: weight.to(dtype).float() for key, weight in random_weights(BASE).items()}
    weights[f"{name}.cnn.weight"].zero_()  # the convolution gives its bias alone, which half precision holds exactly
    model = OFAWav2Vec2(BASE)
    model.load_weights(weights)
    slow = SlowModel(BASE, weights)
    expected = slow.alpha(torch.zeros(1, 24, dtype=torch.float64))
    alpha, lengths = model.to(dtype).alpha(waves[-1:])
    torch.testing.assert_close(alpha, expected.expand_as(alpha), rtol=0, atol=1e-6)


def test_a_plain_model_has_lambd_0_only(waves):
    """Promise: a plain wav2vec 2.0 runs at lambd 0 (or 20 ms) only; another rate, or alpha, is a clear error."""
    plain = random_model(dataclasses.replace(BASE, compressor="none"))
    assert not any(name.startswith("cif_subsampler") for name in plain.weights())
    weights = {name: value for name, value in random_weights(BASE).items() if not name.startswith("cif_subsampler")}
    plain = OFAWav2Vec2(dataclasses.replace(BASE, compressor="none"))
    plain.load_weights(weights)
    expected = random_model(BASE).extract(waves)
    for rate in ({}, {"lambd": 0}, {"lambd": [0.0] * len(waves)}, {"frame_period_ms": 20}):
        out = plain.extract(waves, **rate)
        assert out.alpha_sum is None
        assert torch.equal(out.hidden_states[-1], expected.hidden_states[-1])
    for rate in ({"lambd": 0.5}, {"lambd": [0.0] * 7 + [0.1]}, {"frame_period_ms": 40.0}, {"lambd": 1.5}):
        with pytest.raises(ValueError, match="compressor"):
            plain.extract(waves, **rate)
    with pytest.raises(ValueError, match="compressor"):
        plain.alpha(waves)
