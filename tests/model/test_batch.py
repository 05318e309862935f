"""Features of an utterance do not depend on its neighbors, and are those of a plain model of torch's own layers."""

import dataclasses

import pytest
import torch
from models import BASE, CONFIGS, LARGE, SlowModel, noise_waves, random_model, random_weights

from s3prl_ofa.model import frontend

LENGTHS = [400, 16_001, 401, 719, 720, 9_999, 1_040, 5_003, 20_011]
LAMBDS = [0.0, 0.3, 0.5, 1.0, 0.7, 1.4, 0.9, 1.0, 0.55]
PERIODS = [20.0, 47.5, 90.0, 33.0, 25.0, 90.0, 61.0, 20.0, 38.0]
INVARIANCE = 1e-5

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture(scope="module")
def model(config):
    return random_model(config)


@pytest.fixture(scope="module")
def waves():
    return noise_waves(LENGTHS, seed=1)


def assert_same_utterance(out, row, alone):
    """Row ``row`` of a batch against the only row of another output."""
    length = int(alone.lengths[0])
    assert out.lengths[row] == length and out.input_lengths[row] == alone.input_lengths[0]
    for together, single in zip(out.hidden_states, alone.hidden_states, strict=True):
        torch.testing.assert_close(together[row, :length], single[0], rtol=0, atol=INVARIANCE)
        assert not together[row, length:].any()
    torch.testing.assert_close(out.times[row, :length], alone.times[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(out.lambd[row], alone.lambd[0], rtol=0, atol=1e-6)
    assert out.frame_period_ms[row] == alone.frame_period_ms[0]
    total = int(alone.input_lengths[0])
    assert torch.equal(out.frame_index[row, :total], alone.frame_index[0])
    assert not out.frame_index[row, total:].any()


@pytest.mark.parametrize("rate", ["lambd 0", "lambd", "one lambd", "frame_period_ms"])
def test_an_utterance_is_the_same_alone_and_in_a_batch(model, waves, rate):
    """Promise: features do not depend on what an utterance is batched with (1e-5 in float32), nor on padding, which is
    zero; one lambd or period per utterance, odd lengths, down to 400 samples."""
    rates = {
        "lambd 0": ("lambd", [0.0] * len(waves)),
        "lambd": ("lambd", LAMBDS),
        "one lambd": ("lambd", [0.6] * len(waves)),
        "frame_period_ms": ("frame_period_ms", PERIODS),
    }
    name, values = rates[rate]
    out = model.extract(waves, **{name: values})
    for row, (wave, value) in enumerate(zip(waves, values, strict=True)):
        assert_same_utterance(out, row, model.extract([wave], **{name: value}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [2, 3, 5])
def test_any_number_of_threads(threads, dtype):
    """Promise: lengths are the same, and features to 1e-4 in float32, to 2% in bfloat16."""
    model = random_model(BASE).to(dtype)
    waves = noise_waves([16_001, 80_003, 400], seed=1)  # some in several pieces
    expected = model.extract(waves, lambd=0.5)
    torch.set_num_threads(threads)
    try:
        out = model.extract(waves, lambd=0.5)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(out.lengths, expected.lengths)
    for state, alone in zip(out.hidden_states, expected.hidden_states, strict=True):
        if dtype == torch.float32:
            torch.testing.assert_close(state, alone, rtol=0, atol=1e-4)
        assert float((state - alone).norm() / alone.norm()) < 2e-2


def test_order_in_the_batch_does_not_matter(model, waves):
    """Promise: an utterance's features follow it through any order of the batch and any part of it."""
    out = model.extract(waves, lambd=LAMBDS)
    for seed in range(3):
        order = torch.randperm(len(waves), generator=torch.Generator().manual_seed(seed)).tolist()[: 9 - 3 * seed]
        other = model.extract([waves[index] for index in order], lambd=[LAMBDS[index] for index in order])
        for row, index in enumerate(order):
            length = int(out.lengths[index])
            assert other.lengths[row] == length
            for one, two in zip(out.hidden_states, other.hidden_states, strict=True):
                torch.testing.assert_close(two[row, :length], one[index, :length], rtol=0, atol=INVARIANCE)


def test_neighbors_of_any_loudness_do_not_leak(model, waves):
    """Promise: an utterance's neighbors never affect it, however loud they are and whatever their offset."""
    alone = model.extract([waves[5]], lambd=0.6)
    for neighbor in (1000 * waves[1], waves[1] + 50, torch.zeros(16_001), 1e-5 * waves[8]):
        for batch, row in (
            ([neighbor, waves[5]], 1),
            ([waves[5], neighbor], 0),
            ([neighbor, waves[5], neighbor], 1),
        ):
            out = model.extract(batch, lambd=0.6)
            assert all(state.isfinite().all() for state in out.hidden_states)
            assert_same_utterance(out, row, alone)


def test_equal_utterances_in_a_batch_are_equal(model, waves):
    """Promise: many copies of an utterance beside shorter ones all get the same features."""
    out = model.extract([waves[7]] * 7 + [waves[0]] * 6, lambd=0.8)
    alone, short = model.extract([waves[7]], lambd=0.8), model.extract([waves[0]], lambd=0.8)
    for row in range(13):
        assert_same_utterance(out, row, alone if row < 7 else short)


def test_alpha_is_the_same_alone_and_in_a_batch(model, waves):
    """Promise: padding does not reach the alpha predictor either: an utterance sees zeros beyond its ends."""
    alpha, lengths = model.alpha(waves)
    for row, wave in enumerate(waves):
        alone, total = model.alpha([wave])
        assert lengths[row] == total[0]
        torch.testing.assert_close(alpha[row, : lengths[row]], alone[0], rtol=0, atol=1e-6)
        assert not alpha[row, lengths[row] :].any()


@pytest.mark.parametrize("lambd", [0.0, 0.4, 1.0, 1.3])
def test_hidden_states_are_those_of_a_plain_model(config, model, waves, lambd):
    """Promise: wav2vec 2.0 in both forms, GroupNorm or LayerNorm front end, post-norm or pre-norm, as torch's own
    layers give it in float64 on the utterance alone, at any lambd."""
    slow = SlowModel(config, random_weights(config))
    out = model.extract(waves, lambd=lambd)
    for row, wave in enumerate(waves):
        expected = slow(wave, lambd)
        assert out.lengths[row] == len(expected[0])
        assert len(out.hidden_states) == len(expected)
        for found, state in zip(out.hidden_states, expected, strict=True):
            torch.testing.assert_close(found[row, : len(state)].double(), state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "scale,offset", [(1, 0), (1, 0.5), (1, -5), (0.01, 1), (1e-4, 0), (1e3, 0), (1e4, 3e4), (0, 0.3)]
)
@pytest.mark.parametrize("name", ["base", "large"])
def test_front_end_on_difficult_waves_is_as_good_as_torch_s_layers(name, scale, offset):
    """Promise: the statistics of GroupNorm (and of the normalized wave) are the utterance's own and exact: offsets,
    very loud, very quiet and constant waves cost hardly more precision than torch's layers do in float32."""
    config, lengths = CONFIGS[name], [8_000, 1_234, 400]
    waves = [scale * wave + offset for wave in noise_waves(lengths, seed=2)]
    rows, _ = random_model(config).front_end_rows(waves)
    exact, single = (SlowModel(config, random_weights(config), dtype) for dtype in (torch.float64, torch.float32))
    start = 0
    for wave in waves:
        expected = exact.conv_frames(wave)
        error = (rows[start : start + len(expected)] - expected).abs().max()
        torch_error = (single.conv_frames(wave) - expected).abs().max()
        assert error < max(2e-4, 5 * torch_error)
        start += len(expected)
    assert start == len(rows)


def test_group_norm_statistics_are_the_utterance_s_own(waves):
    """Promise: GroupNorm statistics over an utterance's own samples only, equal to torch.nn.GroupNorm on it alone, with
    one convolution as the whole front end, so that nothing after it hides a difference."""
    config = dataclasses.replace(BASE, conv_layers=((24, 10, 5),))
    weights = random_weights(config)
    model = random_model(config)
    conv = torch.nn.Conv1d(1, 24, 10, 5, bias=False)
    conv.weight.data = weights["feature_extractor.conv_layers.0.0.weight"]
    norm = torch.nn.GroupNorm(24, 24)
    norm.weight.data = weights["feature_extractor.conv_layers.0.2.weight"]
    norm.bias.data = weights["feature_extractor.conv_layers.0.2.bias"]
    last = torch.nn.LayerNorm(24)
    last.weight.data, last.bias.data = weights["layer_norm.weight"], weights["layer_norm.bias"]
    some = [waves[1][:1003], waves[2][:15], 5 * waves[5][:507] + 1, waves[3]]
    with torch.no_grad():
        expected = [last(torch.nn.functional.gelu(norm(conv(wave[None, None])))[0].T) for wave in some]
    rows, lengths = model.front_end_rows(some)
    assert lengths.tolist() == [len(frames) for frames in expected]
    torch.testing.assert_close(rows, torch.cat(expected), rtol=0, atol=5e-5)


def test_statistics_of_long_audio_are_summed_in_parts(waves, monkeypatch):
    """Promise: how many blocks the first layer's statistics are taken from at a time changes nothing, so that long
    audio needs no memory for all of them."""
    model = random_model(BASE)
    whole = model.extract(waves).hidden_states[0]
    monkeypatch.setattr(frontend, "STATISTICS_BLOCKS", 3)
    torch.testing.assert_close(model.extract(waves).hidden_states[0], whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["base", "large"])
def test_front_end_at_every_kind_of_length(name):
    """Promise: no length is special: frames are those of the utterance alone around every multiple of the hop, and
    where the front end may cut its work into pieces."""
    config = CONFIGS[name]
    slow, model = SlowModel(config, random_weights(config)), random_model(config)
    lengths = [hops * 320 + extra for hops in (4, 8, 128, 129, 256, 512) for extra in (-1, 0, 1, 79, 80, 81)]
    waves = noise_waves(lengths, seed=6)
    rows, _ = model.front_end_rows(waves)
    expected = [slow.conv_frames(wave).float() for wave in waves]
    torch.testing.assert_close(rows, torch.cat(expected), rtol=0, atol=5e-5)
    for wave, frames in zip(waves[-12:], expected[-12:], strict=True):
        torch.testing.assert_close(model.front_end_rows([wave])[0], frames, rtol=0, atol=5e-5)
    # with gradients the pieces are joined in another way
    torch.testing.assert_close(model.requires_grad_().front_end_rows(waves)[0], rows, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize(
    "conv_layers",
    [((12, 4, 4), (12, 2, 2)), ((8, 7, 3), (16, 5, 2), (8, 4, 1), (24, 3, 3)), ((8, 10, 5), (8, 8, 4), (24, 4, 2))],
)
def test_other_convolution_stacks(norm, conv_layers):
    """Promise: the front end follows the config's convolutions, whatever their kernels and strides."""
    config = dataclasses.replace(BASE, conv_layers=conv_layers, conv_norm=norm)
    slow, model = SlowModel(config, random_weights(config)), random_model(config)
    field = config.receptive_field
    waves = noise_waves([field + 2 * config.hop, 3 * field + 1, 1280, 4000, 7_777, field + config.hop], seed=7)
    rows, lengths = model.front_end_rows(waves)
    expected = [slow.conv_frames(wave).float() for wave in waves]
    assert lengths.tolist() == [len(frames) for frames in expected]
    torch.testing.assert_close(rows, torch.cat(expected), rtol=0, atol=5e-5)


@pytest.mark.parametrize("lambd", [0.0, 0.5])
def test_models_in_double_precision_are_exact(config, waves, lambd):
    """Promise: the model differs from torch's layers only by rounding."""
    model, slow = random_model(config).double(), SlowModel(config, random_weights(config))
    out = model.extract(waves, lambd=lambd)
    for row, wave in enumerate(waves):
        expected = slow(wave, lambd)[-1]
        found = out.hidden_states[-1][row, : len(expected)]
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_conv_bias_goes_with_either_norm(waves, norm, bias):
    """Promise: both forms of the front end, with and without bias."""
    config = dataclasses.replace(BASE, conv_norm=norm, conv_bias=bias)
    slow = SlowModel(config, random_weights(config))
    rows, _ = random_model(config).front_end_rows(waves[:5])
    expected = torch.cat([slow.conv_frames(wave) for wave in waves[:5]])
    torch.testing.assert_close(rows.double(), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("kernel,groups", [(1, 1), (2, 4), (3, 16), (16, 2), (31, 4), (128, 32)])
def test_positional_convolutions_of_any_size(waves, kernel, groups):
    """Promise: the positional convolution, odd or even, wider than the utterance or not, sees zeros beyond the ends."""
    config = dataclasses.replace(BASE, layers=1, pos_conv_kernel=kernel, pos_conv_groups=groups)
    slow = SlowModel(config, random_weights(config))
    out = random_model(config).extract(waves[:6], lambd=0.5)
    for row, wave in enumerate(waves[:6]):
        expected = slow(wave, 0.5)[0]
        torch.testing.assert_close(out.hidden_states[0][row, : len(expected)].double(), expected, rtol=1e-4, atol=1e-4)


def test_many_utterances_of_many_lengths():
    """Promise: the same for a batch whose utterances are too many and too varied for one call of attention."""
    model = random_model(LARGE)
    lengths = [400 + 331 * index for index in range(40)]
    waves = noise_waves([lengths[(7 * index) % 40] for index in range(40)], seed=4)
    out = model.extract(waves, frame_period_ms=[20.0 + index for index in range(40)])
    for row in range(0, 40, 7):
        assert_same_utterance(out, row, model.extract([waves[row]], frame_period_ms=20.0 + row))


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["base", "large"])
def test_half_precision_batches_have_the_lengths_and_padding_of_one(waves, name, dtype):
    """Promise: lengths in a batch are those alone in half precision too, padding is zero, nothing overflows, and the
    features are near those of float32."""
    model = random_model(CONFIGS[name])
    exact = model.extract(waves, frame_period_ms=40.0)
    out = model.to(dtype).extract(waves, frame_period_ms=40.0)
    assert torch.equal(out.lengths, exact.lengths)
    for row, length in enumerate(out.lengths.tolist()):
        for state, expected in zip(out.hidden_states, exact.hidden_states, strict=True):
            assert state.dtype == dtype and state.isfinite().all() and not state[row, length:].any()
            error = (state[row, :length].float() - expected[row, :length]).norm() / expected[row, :length].norm()
            assert error < (0.02 if dtype == torch.float16 else 0.15)
