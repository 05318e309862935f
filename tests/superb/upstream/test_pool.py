"""Average pooling of the 20 ms frames, the fixed rate that the chosen one is compared with."""

import pytest
import torch
from paths import CKPT
from superb_corpora import make_corpora

from s3prl_ofa import cli
from s3prl_ofa.model.cost import macs
from s3prl_ofa.superb.upstream.expert import UpstreamExpert, pooled


@pytest.fixture
def waves(make_wave):
    return [torch.from_numpy(make_wave(seconds, seed)) for seed, seconds in enumerate((1.3, 0.045, 2.07))]


@pytest.mark.parametrize("size", [2, 3, 4])
@torch.no_grad()
def test_means_of_the_hidden_states(waves, size):
    """Each frame is the mean of ``size`` hidden states at lambd 0; the rest at the end makes a frame of its own mean,
    in a batch as alone, and times and the index of 20 ms frames go with it."""
    expert = UpstreamExpert(CKPT, pool=size, output_frames="native")
    together = expert(waves)
    for row, wave in enumerate(waves):
        plain = expert.model.extract([wave])
        groups = plain.hidden_states[-1][0].split(size)
        assert together["hidden_states_len"][row] == len(groups)
        for index, group in enumerate(groups):
            torch.testing.assert_close(together["last_hidden_state"][row, index], group.mean(0), atol=1e-6, rtol=1e-5)
        out = pooled(plain, size)
        assert out.times[0, :, 0].tolist() == plain.times[0, ::size, 0].tolist()
        assert out.times[0, -1, 1] == plain.times[0, -1, 1]
        assert out.frame_index[0].tolist() == [frame // size for frame in range(int(plain.lengths[0]))]
        assert float(out.frame_period_ms[0]) == pytest.approx(1000 * len(wave) / 16_000 / len(groups))


@torch.no_grad()
def test_upsampled(waves):
    """Upsampled, each mean stands for its 20 ms frames."""
    native, upsampled = (UpstreamExpert(CKPT, pool=3, frames=frames)(waves) for frames in ("native", "upsampled"))
    lengths = [(len(wave) - 400) // 320 + 1 for wave in waves]
    assert upsampled["hidden_states_len"].tolist() == lengths
    for row, length in enumerate(lengths):
        expected = native["last_hidden_state"][row].repeat_interleave(3, 0)[:length]
        assert torch.equal(upsampled["last_hidden_state"][row, :length], expected)


@torch.no_grad()
def test_cost_is_that_of_20_ms(waves):
    """Pooling comes after the encoder and saves it nothing; compression does; both are counted."""
    found = {}
    for name, rate in {"plain": {"lambd": 0.0}, "pooled": {"pool": 3}, "compressed": {"lambd": 1.0}}.items():
        expert = UpstreamExpert(CKPT, output_frames="native", **rate)
        expert(waves)
        found[name] = expert.measured
    config = expert.model.config
    expected = sum(macs(config, len(wave), config.num_frames(len(wave))) for wave in waves)
    assert found["plain"].macs == found["pooled"].macs == expected > found["compressed"].macs > 0
    assert found["pooled"].frames == sum(-(-config.num_frames(len(wave)) // 3) for wave in waves)


def test_in_s3prl(tmp_path, monkeypatch, caplog):
    """--pool trains and evaluates, is kept with the experiment, and labels are counted against the pooled frames."""
    monkeypatch.chdir(tmp_path)
    make_corpora(tmp_path)
    data = ["--librispeech", "LibriSpeech", "--prepared", "prepared", "--mini"]
    steps = "config.runner.total_steps=1,,config.runner.save_step=1,,config.runner.eval_step=2"
    ask = ["run_downstream", "-m", "train", "-u", "ofa_wav2vec2", "-k", CKPT, "-d", "asr", *data, "-o", steps]
    assert cli.main([*ask, "-p", "exp", "--pool", "40"]) == 2
    assert cli.main([*ask, "-p", "exp", "--pool", "3"]) == 0
    assert cli.main(["run_downstream", "-m", "evaluate", "-e", "exp", "-t", "test-clean"]) == 0
    assert "3 averaged 20 ms frames, native frames" in caplog.text and "trained at" not in caplog.text
    assert cli.main([*ask, "-p", "other", "--pool", "3", "--lambd", "0"]) == 2
