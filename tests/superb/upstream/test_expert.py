"""The upstream as S3PRL and torch.hub see it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from paths import CKPT, GOLDEN, ROOT

from s3prl_ofa.errors import CheckpointError, UsageError
from s3prl_ofa.superb import registration
from s3prl_ofa.superb.upstream.expert import UpstreamExpert


@pytest.fixture(scope="module")
def waves():
    names = ("2.37s", "1s", "5s")
    return [torch.from_numpy(np.load(GOLDEN / f"ref_tiny_wav_{name}.npy")).float().reshape(-1) for name in names]


def twenty_ms_frames(waves):
    return [(len(wave) - 400) // 320 + 1 for wave in waves]


@torch.no_grad()
def test_upsampled_frames_stand_where_they_came_from(waves):
    """Each compressed frame is repeated over its 20 ms frames, with the lengths that a plain wav2vec 2.0 gives."""
    expert = UpstreamExpert(CKPT, lambd=0.5)
    output = expert(waves)
    plain = expert.model.extract(waves, lambd=0.5)
    assert output["hidden_states_len"].tolist() == twenty_ms_frames(waves)
    assert len(output["hidden_states"]) == expert.model.config.layers + 1
    for state, compressed in zip(output["hidden_states"], plain.hidden_states, strict=True):
        for row in range(len(waves)):
            index = plain.frame_index[row, : plain.input_lengths[row]]
            assert torch.equal(state[row, : plain.input_lengths[row]], compressed[row, index])
            # S3PRL rounds lengths up: it shall find the last frame there, not zeros
            last = compressed[row, plain.lengths[row] - 1]
            assert torch.equal(
                state[row, plain.input_lengths[row] :], last.expand_as(state[row, plain.input_lengths[row] :])
            )
    assert output["last_hidden_state"] is output["hidden_states"][-1]


@torch.no_grad()
def test_upsampled_without_compression_is_the_plain_output(waves):
    """At lambd 0 every frame comes from itself."""
    output = UpstreamExpert(CKPT)(waves)
    plain = UpstreamExpert(CKPT, output_frames="native")(waves)
    assert output["hidden_states_len"].tolist() == plain["hidden_states_len"].tolist() == twenty_ms_frames(waves)
    for row, length in enumerate(plain["hidden_states_len"]):
        assert torch.equal(output["last_hidden_state"][row, :length], plain["last_hidden_state"][row, :length])


@torch.no_grad()
def test_native_frames_have_true_lengths(waves):
    """Native frames are the compressed ones; a frame period is met by the number of frames."""
    output = UpstreamExpert(CKPT, frame_period_ms=40.0, output_frames="native")(waves)
    assert output["hidden_states_len"].tolist() == [round(len(wave) / 16000 / 0.04) for wave in waves]
    assert output["last_hidden_state"].shape[:2] == (3, max(output["hidden_states_len"]))


@torch.no_grad()
def test_repeat_repeats_each_native_frame(waves):
    """repeat N gives N equal frames in a row and N times the length, for CTC."""
    once = UpstreamExpert(CKPT, lambd=1.0, output_frames="native")(waves)
    thrice = UpstreamExpert(CKPT, lambd=1.0, output_frames="native", repeat=3)(waves)
    assert thrice["hidden_states_len"].tolist() == [3 * length for length in once["hidden_states_len"].tolist()]
    for k in range(3):
        assert torch.equal(thrice["last_hidden_state"][:, k::3], once["last_hidden_state"])


@torch.no_grad()
def test_features_do_not_depend_on_the_batch(waves):
    """An utterance alone and in a batch has the same features and length, in both forms."""
    for frames in ("native", "upsampled"):
        expert = UpstreamExpert(CKPT, lambd=0.7, frames=frames)
        together = expert(waves)
        for row, wave in enumerate(waves):
            alone = expert([wave])
            length = alone["hidden_states_len"][0]
            assert together["hidden_states_len"][row] == length
            torch.testing.assert_close(
                together["last_hidden_state"][row, :length], alone["last_hidden_state"][0, :length], atol=1e-5, rtol=0
            )


def test_each_layer_has_a_key_of_its_own(waves):
    """S3PRL's -s hidden_state_1 picks one layer, as with its own upstreams."""
    output = UpstreamExpert(CKPT)(waves)
    assert all(output[f"hidden_state_{index}"] is state for index, state in enumerate(output["hidden_states"]))


def test_options_come_from_model_config_and_keywords_win():
    """-g is read, keyword arguments win over it, refresh is taken."""
    expert = UpstreamExpert(CKPT, "{lambd: 0.5, output_frames: native, repeat: 2}", refresh=False, lambd=0.7)
    assert (expert.options.lambd, expert.options.output_frames, expert.options.repeat) == (0.7, "native", 2)
    assert expert.native_frames
    with pytest.raises(UsageError, match="lambda_"):
        UpstreamExpert(CKPT, lambda_=0.5)


def test_downsample_rate_is_320_at_every_rate():
    """S3PRL must always be told 320, whatever the rate."""
    assert UpstreamExpert(CKPT, lambd=1.0, output_frames="native").get_downsample_rates("hidden_states") == 320


def test_measured_adds_up(waves):
    """Utterances, seconds and compressed frames are counted, before repetition and before upsampling."""
    for options in ({"output_frames": "native", "repeat": 2}, {"output_frames": "upsampled"}):
        expert = UpstreamExpert(CKPT, frame_period_ms=40.0, **options)
        assert np.isnan(expert.measured.frame_period_ms)
        expert(waves)
        expert(waves[:1])
        seconds = sum(map(len, [*waves, waves[0]])) / 16000
        assert expert.measured.utterances == 4
        assert expert.measured.seconds == pytest.approx(seconds)
        assert expert.measured.frames == sum(round(len(wave) / 640) for wave in [*waves, waves[0]])
        assert expert.measured.frame_period_ms == pytest.approx(40, rel=0.02)


def test_fine_tuning_reaches_the_whole_model_and_changes_it(waves):
    """With S3PRL's -f the optimizer gets the parameters, gradients reach them, and a step changes the features."""
    expert = UpstreamExpert(CKPT, lambd=0.5, output_frames="native").train()
    optimizer = torch.optim.SGD(list(expert.parameters()), lr=1e-2)
    before = expert(waves[:1])["hidden_states"]
    sum(state.pow(2).mean() for state in before).backward()
    without = [name for name, parameter in expert.named_parameters() if parameter.grad is None]
    assert not without
    optimizer.step()
    with torch.no_grad():
        after = expert.eval()(waves[:1])["hidden_states"]
        fresh = UpstreamExpert(CKPT, lambd=0.5, output_frames="native")
        fresh.load_state_dict(expert.state_dict())
        again = fresh(waves[:1])["hidden_states"]
    assert after[-1].shape != before[-1].shape or not torch.allclose(after[-1], before[-1])
    assert torch.equal(after[-1], again[-1])


def test_a_plain_checkpoint_runs_at_lambd_0_only(tmp_path, waves):
    """Without a compressor another rate is refused when the upstream is made, not in the middle of a run."""
    from s3prl_ofa.model import ModelConfig, OFAWav2Vec2

    conv = ((16, 10, 5), *((16, 3, 2),) * 4, *((16, 2, 2),) * 2)
    config = ModelConfig(conv_layers=conv, dim=16, ffn_dim=32, heads=2, layers=1, pos_conv_kernel=4, pos_conv_groups=2)
    path = tmp_path / "plain.safetensors"
    OFAWav2Vec2(config).save(path)
    for options in ({}, {"lambd": 0}, {"frame_period_ms": 20.0}):
        assert UpstreamExpert(path, **options)(waves)["hidden_states_len"].tolist() == twenty_ms_frames(waves)
    for options in ({"lambd": 0.5}, {"frame_period_ms": 40.0}):
        with pytest.raises(UsageError, match="no compressor"):
            UpstreamExpert(path, **options)


def test_entries_say_what_is_missing(tmp_path):
    """No checkpoint, a missing one, a file that is none: one sentence each."""
    with pytest.raises(UsageError, match="needs a checkpoint"):
        registration.ofa_wav2vec2()
    with pytest.raises(UsageError, match="no checkpoint at"):
        registration.ofa_wav2vec2_local(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match="text.pt"):
        registration.ofa_wav2vec2_custom(tmp_path / "text.pt")


def test_torch_hub_gives_the_upstream_without_s3prl():
    """torch.hub.load on the repository gives every entry, and imports neither s3prl nor torchaudio for it."""
    code = f"""
import sys, torch
for entry in ("ofa_wav2vec2", "ofa_wav2vec2_local", "ofa_wav2vec2_url", "ofa_wav2vec2_custom"):
    options = dict(ckpt={CKPT!r}, frame_period_ms=40.0, output_frames="native")
    model = torch.hub.load({str(ROOT)!r}, entry, source="local", **options)
with torch.no_grad():
    output = model([torch.randn(32000)])
assert output["hidden_states_len"].tolist() == [50], output["hidden_states_len"]
heavy = [name for name in ("s3prl", "torchaudio", "fairseq", "transformers") if name in sys.modules]
assert not heavy, heavy
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/", env=environment)


def test_hubconf_is_short():
    """The entries are one page: hubconf.py has at most 20 lines."""
    assert len((ROOT / "hubconf.py").read_text().splitlines()) <= 20
