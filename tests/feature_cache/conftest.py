"""Caches of features, opened and closed for a test, and what the model has run on."""

import pytest
import torch
from cached import ALL

from s3prl_ofa.model.ofa import OFAWav2Vec2
from s3prl_ofa.superb.feature_cache import FeatureCache


@pytest.fixture(scope="module")
def wavs(make_wave):
    """Four utterances, of one frame and more."""
    return [torch.from_numpy(make_wave(seconds, seed)) for seed, seconds in enumerate((0.7, 0.028, 1.23, 0.4))]


@pytest.fixture
def alike(make_wave):
    """A function (count, first seed) -> utterances of one length, whose entries are equally large at lambd 0."""
    return lambda count, first=0: [torch.from_numpy(make_wave(0.3, 50 + first + number)) for number in range(count)]


@pytest.fixture
def ran(monkeypatch):
    """The length in samples of every utterance that the model has run on."""
    found, extract = [], OFAWav2Vec2.extract

    def counted(model, wavs, *args, **kwargs):
        found.extend(map(len, wavs))
        return extract(model, wavs, *args, **kwargs)

    monkeypatch.setattr(OFAWav2Vec2, "extract", counted)
    return found


@pytest.fixture
def opened(tmp_path, golden_model):
    """A function (limit in bytes, layers, model, folder, rate) that opens a cache; all are closed at the end."""
    caches = []

    def open_cache(limit=10**8, layers=ALL, model=golden_model, folder=tmp_path / "features", **rate):
        caches.append(FeatureCache(folder, limit / 10**9, model, rate or {"lambd": 0.0}, layers))
        return caches[-1]

    yield open_cache
    for cache in caches:
        cache.close()
