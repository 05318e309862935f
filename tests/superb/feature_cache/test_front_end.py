"""The cache of the front end's output: the same features at every rate, and no second run of the front end."""

import math

import pytest
import torch
from cached import CLOSE, RATES
from paths import CKPT

from s3prl_ofa.checkpoint.safe_loading import patched_attributes
from s3prl_ofa.model.frontend import FrontEnd
from s3prl_ofa.superb.feature_cache.front_end import FrontEndCache
from s3prl_ofa.superb.upstream.expert import UpstreamExpert


@pytest.fixture
def convolved(monkeypatch):
    """The length in samples of every utterance that a front end has run on."""
    found, forward = [], FrontEnd.forward

    def counted(front_end, waves):
        found.extend(map(len, waves))
        return forward(front_end, waves)

    monkeypatch.setattr(FrontEnd, "forward", counted)
    return found


@pytest.fixture
def cached_model(golden_model, tmp_path):
    with (
        FrontEndCache(tmp_path / "features", 0.1, golden_model) as cache,
        patched_attributes(golden_model, front_end_rows=cache.front_end_rows),
    ):
        yield golden_model, cache


@pytest.mark.parametrize("known", [(), (0, 1, 2, 3), (1,), (3, 0)], ids=str)
@torch.no_grad()
def test_every_rate_shares_it(known, waves, golden_model, cached_model, convolved):
    """Whatever part of a batch is there already, and at whatever rate it was made, all rates get what the model gives,
    and the front end runs on the rest alone."""
    model, cache = cached_model
    with patched_attributes(model, front_end_rows=cache.compute):
        expected = [model.extract(batch, **rate) for rate in RATES for batch in (waves, waves[::-1])]
    if known:
        model.extract([waves[index] for index in known], lambd=0.7)
    convolved.clear()
    found = [model.extract(batch, **rate) for rate in RATES for batch in (waves, waves[::-1])]
    assert convolved == [len(wave) for index, wave in enumerate(waves) if index not in known]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.lengths, other.lengths)
        for state, plain in zip(one.hidden_states, other.hidden_states, strict=True):
            torch.testing.assert_close(state, plain, **CLOSE)


@torch.no_grad()
def test_autocast_has_rows_of_its_own(waves, golden_model, cached_model, convolved):
    """Rows computed under autocast are not taken for those without it, nor the other way round."""
    model, cache = cached_model
    kinds = [torch.autocast("cpu", torch.bfloat16, enabled=enabled) for enabled in (False, True)]
    for ran in (len(waves), 0):
        for autocast in kinds:
            with autocast:
                expected, _ = cache.compute(waves)
                convolved.clear()
                rows, _ = model.front_end_rows(waves)
            assert len(convolved) == ran and rows.dtype == expected.dtype
            torch.testing.assert_close(rows, expected, **CLOSE)


def test_timing_runs_the_front_end(waves, cached_model, convolved):
    """While an upstream is timed its front end runs, though all is there, and how long the cache itself took is known;
    the time of a batch of which some is read does not count."""
    model, cache = cached_model
    model.extract(waves[:1])
    assert cache.overhead > 0  # nothing was there
    model.extract(waves)
    assert math.isnan(cache.overhead)
    convolved.clear()
    cache.recompute = True
    model.extract(waves)
    assert convolved == [len(wave) for wave in waves] and cache.overhead > 0


def test_other_weights_have_entries_of_their_own(waves, golden_model, tmp_path, convolved):
    """A model with another front end does not find these rows."""
    other = UpstreamExpert(CKPT).model
    with torch.no_grad():
        other.front_end.weights[0].mul_(1.5)
    for model in (golden_model, other):
        with FrontEndCache(tmp_path / "features", 0.1, model) as cache:
            convolved.clear()
            cache.front_end_rows(waves)
            assert len(convolved) == len(waves)


def test_a_full_folder(waves, golden_model, tmp_path, convolved):
    """Beyond the limit nothing more is stored, and the rows are right."""
    expected, lengths = golden_model.front_end_rows(waves)
    with FrontEndCache(tmp_path / "features", 1e-8, golden_model) as cache:
        for _ in range(2):
            convolved.clear()
            rows, found = cache.front_end_rows(waves)
            assert len(convolved) == len(waves) and torch.equal(found, lengths)
            torch.testing.assert_close(rows, expected, **CLOSE)
    assert not list((tmp_path / "features").rglob("*.safetensors"))
