"""The cache of a frozen upstream's features: the same features, and no second run of the model."""

import pytest
import torch
from cached import ALL, CLOSE, RATES, ask, assert_same
from paths import CKPT

import s3prl_ofa
from s3prl_ofa.superb.feature_cache import keys
from s3prl_ofa.superb.feature_cache.cache import default_folder, wanted_layers
from s3prl_ofa.superb.upstream.expert import UpstreamExpert


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("known", [(), (0, 1, 2, 3), (1,), (3, 0), (2, 1)], ids=str)
def test_a_batch_is_what_the_model_gives(rate, known, waves, golden_model, opened, ran):
    """Whatever part of a batch is there already and whatever it was batched with, all of it comes as from the model,
    which runs on the rest alone."""
    cache = opened(**rate)
    if known:
        ask(cache, [waves[index] for index in known], golden_model, **rate)
    expected = golden_model.extract(waves, **rate)
    ran.clear()
    assert_same(ask(cache, waves, golden_model, **rate), expected)
    assert ran == [len(wave) for index, wave in enumerate(waves) if index not in known]
    ran.clear()
    backwards = golden_model.extract(waves[::-1], **rate)
    ran.clear()
    assert_same(ask(cache, waves[::-1], golden_model, **rate), backwards)
    assert not ran


UPSTREAMS = [
    {"output_frames": "native"},
    {"output_frames": "native", "lambd": 0.5, "repeat": 2},
    {"output_frames": "upsampled", "lambd": 0.5},
    {"output_frames": "upsampled", "frame_period_ms": 35.0},
    {"output_frames": "native", "pool": 2},
    {"output_frames": "upsampled", "pool": 2},
    {"output_frames": "native", "lambd": 0.5, "boundaries": "uniform"},
    {"output_frames": "native", "layers": 1},
]


@pytest.mark.parametrize("options", UPSTREAMS, ids=str)
@torch.no_grad()
def test_through_the_upstream(options, waves, opened, ran):
    """The upstream gives S3PRL the same with and without a cache, in every form, and counts the same frames and cost;
    a second time the model does not run."""
    plain, cached = UpstreamExpert(CKPT, **options), UpstreamExpert(CKPT, **options)
    layers = range(cached.config.layers + 1)
    cached.cache = opened(model=cached.model, layers=layers, options=cached.options.extract_rate)
    for batch in ([waves[2]], waves, waves[:2], waves[::-1]):
        expected, found = plain(batch), cached(batch)
        assert found.keys() == expected.keys()
        assert torch.equal(found["hidden_states_len"], expected["hidden_states_len"])
        for state, other in zip(found["hidden_states"], expected["hidden_states"], strict=True):
            torch.testing.assert_close(state, other, **CLOSE)
    assert cached.measured == plain.measured
    ran.clear()
    cached(waves)
    assert not ran


@pytest.mark.parametrize("first", [{}, {"lambd": 0.0}, {"lambd": 0}, {"pool": 3}], ids=str)
@torch.no_grad()
def test_pooling_shares_what_lambd_0_has_kept(first, waves, opened, ran):
    """Pooling comes after the cache, so what was kept at lambd 0, said or not, or for another pool serves it."""
    for number, options in enumerate((first, {"pool": 2})):
        expert = UpstreamExpert(CKPT, output_frames="native", **options)
        with opened(model=expert.model, **expert.options.extract_rate) as expert.cache:
            ran.clear()
            expert(waves)
        assert len(ran) == (0 if number else len(waves))


@torch.no_grad()
def test_other_boundaries_and_layers_have_entries_of_their_own(waves, opened, ran):
    """What was kept for learnt boundaries or all layers does not serve others."""
    for options in ({"lambd": 0.5}, {"lambd": 0.5, "boundaries": "uniform"}, {}, {"layers": 1}):
        expert = UpstreamExpert(CKPT, output_frames="native", **options)
        layers = range(expert.config.layers + 1)
        with opened(model=expert.model, layers=layers, options=expert.options.extract_rate) as expert.cache:
            ran.clear()
            expert(waves)
        assert len(ran) == len(waves)


def test_another_epoch_in_another_process(waves, golden_model, opened, ran):
    """What one process has stored the next one finds, one utterance after another or all at once."""
    with opened() as cache:
        expected = ask(cache, waves, golden_model)
    ran.clear()
    with opened() as cache:
        assert_same(ask(cache, waves, golden_model), expected)
        for row, wave in enumerate(waves):
            frames = int(expected.lengths[row])
            found = ask(cache, [wave], golden_model).hidden_states[-1]
            torch.testing.assert_close(found, expected.hidden_states[-1][row : row + 1, :frames], **CLOSE)
    assert not ran


def test_each_model_and_rate_has_its_own_section(waves, golden_model, opened, ran):
    """Features of another rate, of other layers, of other weights or in another dtype are never taken for these."""
    changed = s3prl_ofa.load(CKPT)
    with torch.no_grad():
        changed.encoder.layers[1].fc1.bias[0] += 1e-3
    half, eighth = s3prl_ofa.load(CKPT, dtype=torch.bfloat16), s3prl_ofa.load(CKPT, dtype="int8")
    others = [
        (golden_model, ALL, {"lambd": 0.5}),
        (golden_model, ALL, {"lambd": 0.0}),
        (golden_model, ALL, {"lambd": 0.50001}),
        (golden_model, ALL, {"frame_period_ms": 40.0}),
        (golden_model, (2,), {"lambd": 0.5}),
        (changed, ALL, {"lambd": 0.5}),
        (half, ALL, {"lambd": 0.5}),
        (eighth, ALL, {"lambd": 0.5}),
    ]
    for known in (False, True):
        for model, layers, rate in others:
            expected = model.extract(waves[:2], **rate)
            ran.clear()
            cache = opened(model=model, layers=layers, **rate)
            assert_same(ask(cache, waves[:2], model, **rate), expected, layers if known else ALL)
            assert bool(ran) != known
    assert len(list(cache.quota.folder.glob("*/key.json"))) == len(others)


def test_int8_of_another_processor(waves, opened, monkeypatch, ran):
    """Where weights are rounded to other integers, features in 8 bits are not taken for those of this processor."""
    model = s3prl_ofa.load(CKPT, dtype="int8")
    for level in (63, 127):
        monkeypatch.setattr(keys, "largest_level", lambda level=level: level)
        ran.clear()
        ask(opened(model=model), waves[:1], model)
        assert ran == [len(waves[0])]


def test_audio_is_known_by_its_samples(waves, golden_model, opened, ran):
    """The same samples are found wherever they come from; one that differs in its last bit or is cut is not."""
    cache, wave = opened(), waves[0]
    ask(cache, [wave], golden_model)
    ran.clear()
    strided = torch.stack([wave, wave], 1)[:, 0]
    for same in (wave.clone(), wave.double(), strided, wave.clone().requires_grad_()):
        with torch.no_grad():
            ask(cache, [same], golden_model)
    assert not ran
    touched = wave.clone()
    touched[7] = torch.nextafter(touched[7], torch.tensor(1.0))
    for other in (touched, wave[:-1], torch.cat([wave, torch.zeros(1)]), -wave):
        assert_same(ask(cache, [other], golden_model), golden_model.extract([other]))
    assert len(ran) == 8


def test_precision_of_the_moment(waves, golden_model, opened):
    """What was computed under autocast, as S3PRL's fp16 does in training, is not given where full precision is asked
    for: the result is the same as without a cache."""
    cache = opened(lambd=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ask(cache, waves, golden_model, lambd=0.5)
    assert_same(ask(cache, waves, golden_model, lambd=0.5), golden_model.extract(waves, lambd=0.5))


CHOICES = [
    ("hidden_states", None, ALL),
    ("hidden_states", 1, (1,)),
    ("hidden_states", 0, (0,)),
    ("hidden_states", -1, (2,)),
    ("hidden_states", -3, (0,)),
    ("last_hidden_state", None, (2,)),
    ("last_hidden_state", 0, (2,)),
    ("hidden_state_2", None, (2,)),
    ("hidden_state_0", 2, (0,)),
    ("hidden_state_7", None, ALL),
    ("hidden_state_7", 1, (1,)),
    ("hidden_state_02", None, ALL),
    ("hidden_state_", None, ALL),
    ("something", None, ALL),
    ("something", 1, (1,)),
]


@pytest.mark.parametrize(("selection", "layer", "layers"), CHOICES)
@torch.no_grad()
def test_what_s3prl_selects_is_stored(selection, layer, layers, waves, opened, ran):
    """Of what S3PRL's -s and -l choose no more is kept than it reads, the rest being NaN, and its featurizer gives the
    same with a cache; for a choice that it replaces by another, too."""
    from s3prl_ofa.superb.upstream.featurizer import LengthAwareFeaturizer

    found = wanted_layers(selection, layer, 2)
    expert = UpstreamExpert(CKPT, lambd=0.5, output_frames="native")
    featurizer = LengthAwareFeaturizer(expert, selection, "cpu", layer_selection=layer)
    expected = featurizer(waves, expert(waves))
    plain = expert.extract(waves)
    expert.cache = opened(model=expert.model, layers=found, **expert.options.extract_rate)
    expert(waves[1:3])
    assert_same(expert.extract(waves), plain, found)
    ran.clear()
    for row, other in zip(featurizer(waves, expert(waves)), expected, strict=True):
        torch.testing.assert_close(row, other, **CLOSE)
    assert not ran
    assert set(layers) <= set(found) and (len(found) == len(layers) or found == ALL)


def test_layers_of_a_choice():
    """One layer where one is read, all where all are summed or where S3PRL will refuse."""
    assert {wanted_layers("hidden_states", layer, 12) for layer in (None, 13, -14)} == {tuple(range(13))}
    assert wanted_layers("hidden_states", -13, 12) == (0,) and wanted_layers("hidden_state_12", None, 12) == (12,)


def test_default_folder(monkeypatch, tmp_path):
    """Without --feature-cache it is in the user's cache folder: XDG_CACHE_HOME or ~/.cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "s3prl_ofa" / "features"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "s3prl_ofa" / "features"
