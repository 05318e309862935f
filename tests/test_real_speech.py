"""The model's promises on real speech (skipped if it is not available)."""

import pytest
import soundfile
import torch
from paths import REF_TINY

import s3prl_ofa

EVERY = 38  # 40 of 1,519 utterances


@pytest.fixture(scope="module")
def model():
    return s3prl_ofa.load(REF_TINY)


@pytest.fixture(scope="module")
def waves(mini_librispeech):
    paths = sorted((mini_librispeech / "audio").rglob("*.opus"))[::EVERY]
    return [soundfile.read(path, dtype="float32")[0] for path in paths]


@pytest.mark.slow
@pytest.mark.parametrize("period", [20.0, 27.5, 40.0, 62.5, 90.0, 150.0])
def test_the_frame_period_is_met_exactly(model, waves, period):
    """Promise: on real speech the number of frames is the requested one for every utterance that can reach it, and
    the number of lambd 1 for every other; beyond lambd 1, if allowed, all reach it."""
    out = model.extract(waves, frame_period_ms=period, layers=0)
    beyond = model.extract(waves, frame_period_ms=period, layers=0, allow_beyond_one=True)
    shortest = model.extract(waves, lambd=1.0, layers=0).lengths.tolist()
    for row, wave in enumerate(waves):
        wanted = min(round(1000 * len(wave) / 16_000 / period), int(out.input_lengths[row]))
        assert out.lengths[row] == max(wanted, shortest[row])
        assert beyond.lengths[row] == wanted
    assert out.lambd.max() <= 1.0


@pytest.mark.parametrize("rate", [{}, {"lambd": 0.5}, {"lambd": 1.0}, {"frame_period_ms": 45.0}], ids=str)
def test_features_do_not_depend_on_the_batch(model, waves, rate):
    """Promise: an utterance of real speech alone and in a batch has the same features, to 1e-5 in float32."""
    together = model.extract(waves[:12], **rate)
    for row, wave in enumerate(waves[:12]):
        alone = model.extract([wave], **rate)
        frames = int(alone.lengths[0])
        assert together.lengths[row] == frames
        for batched, single in zip(together.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(batched[row, :frames], single[0], rtol=0, atol=1e-5)
