"""What learnt boundaries are compared with: uniform ones, and average pooling before the encoder."""

import dataclasses

import pytest
import torch

from s3prl_ofa.model import ModelConfig, OFAWav2Vec2
from s3prl_ofa.model.config import SAMPLE_RATE


@pytest.fixture(scope="module")
def pooling(golden_model):
    """A function (size) -> the golden model with average pooling in place of its compressor."""

    def make(size: int) -> OFAWav2Vec2:
        model = OFAWav2Vec2(dataclasses.replace(golden_model.config, compressor="none", pooling=size))
        weights = golden_model.weights()
        model.load_weights({name: weight for name, weight in weights.items() if not name.startswith("cif_")})
        return model

    return make


@pytest.mark.parametrize("rate", [{"lambd": 0.3}, {"lambd": 1.0}, {"lambd": 1.5}, {"frame_period_ms": 47.0}], ids=str)
def test_uniform_boundaries(rate, golden_model, waves):
    """As many frames as learnt ones, within one, all of the same length; in a batch as alone."""
    learnt = golden_model.extract(waves, **rate)
    uniform = golden_model.extract(waves, **rate, uniform=True)
    assert (learnt.lengths - uniform.lengths).abs().max() <= 1
    for row, wave in enumerate(waves):
        count = uniform.lengths[row]
        lengths = uniform.times[row, :count].diff(dim=1)
        if count > 1:  # a single frame may end before the utterance
            torch.testing.assert_close(lengths, lengths[:1].expand_as(lengths))
        alone = golden_model.extract([wave], **rate, uniform=True)
        torch.testing.assert_close(
            alone.hidden_states[-1][0], uniform.hidden_states[-1][row, :count], atol=1e-5, rtol=0
        )
    assert not torch.equal(learnt.times, uniform.times[:, : learnt.times.shape[1]])


def test_uniform_boundaries_at_20_ms(golden_model, waves):
    """At lambd 0 there is nothing to replace."""
    plain, uniform = golden_model.extract(waves), golden_model.extract(waves, uniform=True)
    assert torch.equal(plain.hidden_states[-1], uniform.hidden_states[-1])


@pytest.mark.parametrize("size", [2, 3, 4])
def test_pooling_before_the_encoder(size, pooling, golden_model, waves):
    """The encoder sees means of ``size`` frames, of what is left at the end; times and frame index go with them."""
    model = pooling(size)
    out = model.extract(waves)
    rows, lengths = model.front_end_rows(list(waves))
    for row, frames in enumerate(rows.split(lengths.tolist())):
        means = torch.stack([group.mean(0) for group in frames.split(size)])
        expected = model.encoder(model.projection(means), torch.tensor([len(means)]), [2])[0]
        assert out.lengths[row] == len(means)
        torch.testing.assert_close(out.hidden_states[-1][row, : len(means)], expected, atol=1e-5, rtol=1e-5)
        assert out.frame_index[row, : len(frames)].tolist() == [frame // size for frame in range(len(frames))]
        assert out.times[row, : len(means), 0].tolist() == pytest.approx([0.02 * size * k for k in range(len(means))])
    seconds = torch.tensor([len(wave) for wave in waves], dtype=torch.float64) / SAMPLE_RATE
    torch.testing.assert_close(out.frame_period_ms, 1000 * seconds / out.lengths)
    assert torch.equal(out.input_lengths, golden_model.extract(waves).input_lengths)


def test_pooling_has_one_rate(pooling, waves):
    """Its own period may be asked for; any other rate is refused with it."""
    model = pooling(3)
    assert torch.equal(model.extract(waves, frame_period_ms=60).lengths, model.extract(waves, lambd=0).lengths)
    for rate in ({"lambd": 0.5}, {"frame_period_ms": 20.0}, {"frame_period_ms": 61.0}):
        with pytest.raises(ValueError, match=r"only lambd 0 \(a frame period of 60 ms\) is possible"):
            model.extract(waves, **rate)


def test_pooling_in_a_config():
    """It excludes a compressor; a config without it is what versions before it wrote."""
    with pytest.raises(ValueError, match="pooling must be 1 with a compressor, found 2"):
        ModelConfig(pooling=2, compressor="cif")
    with pytest.raises(ValueError, match="pooling must be at most 1000, found 1000000"):
        ModelConfig(pooling=10**6)
    with pytest.raises(ValueError, match="pooling must be a whole number above 0, found 0"):
        ModelConfig(pooling=0)
    assert "pooling" not in ModelConfig().to_dict()
    assert ModelConfig.from_dict(ModelConfig(pooling=4).to_dict()) == ModelConfig(pooling=4)
