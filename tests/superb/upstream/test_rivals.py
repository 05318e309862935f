"""Uniform boundaries and early exit as options of the upstream, and models that were trained with average pooling."""

import pytest
import torch
from paths import CKPT

from s3prl_ofa import cli
from s3prl_ofa.errors import UsageError
from s3prl_ofa.model import ModelConfig, OFAWav2Vec2
from s3prl_ofa.model.cost import macs
from s3prl_ofa.superb.learned_rate.training import check_change
from s3prl_ofa.superb.tasks.ctc_feasibility import Utterance, count_frames
from s3prl_ofa.superb.upstream.expert import UpstreamExpert
from s3prl_ofa.superb.upstream.rate_options import RateOptions, read_model_config


@torch.no_grad()
def test_uniform_boundaries(waves):
    """The upstream gives the frames that the model gives for them."""
    expert = UpstreamExpert(CKPT, lambd=0.7, boundaries="uniform", output_frames="native")
    expected = expert.model.extract(waves, lambd=0.7, uniform=True)
    assert torch.equal(expert(waves)["last_hidden_state"], expected.hidden_states[-1])
    assert expert.measured.frames == int(expected.lengths.sum())


@torch.no_grad()
def test_early_exit(waves):
    """The first layers alone run and are given, at their cost."""
    expert, whole = UpstreamExpert(CKPT, layers=1, output_frames="native"), UpstreamExpert(CKPT, output_frames="native")
    found, expected = expert(waves), whole(waves)
    assert len(found["hidden_states"]) == 2 and "hidden_state_2" not in found
    for state, other in zip(found["hidden_states"], expected["hidden_states"], strict=False):
        assert torch.equal(state, other)
    config = whole.model.config
    layer = sum(macs(config, len(wave), config.num_frames(len(wave))) for wave in waves) - expert.measured.macs
    frames = [config.num_frames(len(wave)) for wave in waves]
    dim, ffn = config.dim, config.ffn_dim
    assert layer == sum(4 * n * dim**2 + 2 * n * n * dim + 2 * n * dim * ffn for n in frames)


@torch.no_grad()
def test_a_model_with_average_pooling(tmp_path, waves):
    """It gives its own frames, upsampled to 20 ms or not, at the cost of fewer frames in the encoder."""
    config = ModelConfig(dim=32, ffn_dim=64, heads=4, layers=2, pooling=3)
    OFAWav2Vec2(config).save(tmp_path / "fixed3.safetensors")
    native = UpstreamExpert(tmp_path / "fixed3.safetensors", output_frames="native")
    upsampled = UpstreamExpert(tmp_path / "fixed3.safetensors")(waves)
    lengths = [config.num_frames(len(wave)) for wave in waves]
    assert native(waves)["hidden_states_len"].tolist() == [-(-length // 3) for length in lengths]
    assert upsampled["hidden_states_len"].tolist() == lengths
    cost = sum(macs(config, len(wave), -(-length // 3)) for wave, length in zip(waves, lengths, strict=True))
    assert native.measured.macs == cost
    with pytest.raises(UsageError, match="no compressor"):
        UpstreamExpert(tmp_path / "fixed3.safetensors", lambd=0.5)


def test_frames_that_ctc_is_counted_on(tmp_path, waves, make_wave):
    """They are those of the upstream, with uniform boundaries and with average pooling."""
    import soundfile

    soundfile.write(tmp_path / "a.wav", wave := make_wave(2.1), 16_000)
    fixed = OFAWav2Vec2(ModelConfig(dim=32, ffn_dim=64, heads=4, layers=1, pooling=3))
    golden = UpstreamExpert(CKPT).model
    for model, options in ((golden, {"lambd": 0.9, "boundaries": "uniform"}), (fixed, {}), (fixed, {"pool": 2})):
        expert = UpstreamExpert(CKPT, **options, output_frames="native")
        expert.model = model
        frames = expert([torch.from_numpy(wave)])["hidden_states_len"].tolist()
        found = count_frames(
            model, RateOptions(**options, output_frames="native"), [Utterance(tmp_path / "a.wav", len(wave), 9)]
        )
        assert found == frames


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"boundaries": "random"}, "boundaries must be one of learnt, uniform, found 'random'"),
        ({"layers": 0}, "layers must be a whole number of at least 1, found 0"),
        ({"layers": 3}, "layers must be at most 2, as many as .* has, found 3"),
        ({"lambd": "adaptive", "layers": 1}, "layers cannot be chosen with lambd adaptive, found 1"),
        ({"lambd": "adaptive", "boundaries": "uniform"}, "boundaries cannot be chosen with lambd adaptive"),
    ],
)
def test_bad_options(options, words):
    """One sentence: what was found and what was expected."""
    with pytest.raises(UsageError, match=words):
        UpstreamExpert(CKPT, **options)


def test_in_words_and_in_yaml():
    """The log names them, and they are stored where they are not the default."""
    options = RateOptions(lambd=0.5, boundaries="uniform", layers=3)
    assert str(options) == "lambd 0.5, uniform boundaries, layers 1 to 3, upsampled frames"
    assert RateOptions.layered(read_model_config(options.to_yaml())) == options
    assert "boundaries" not in RateOptions().to_yaml() and "layers" not in RateOptions().to_yaml()
    assert RateOptions().extract_rate == {"lambd": None, "frame_period_ms": None}


def test_what_an_experiment_cannot_change():
    """Its task weighs as many hidden states as it was trained with; boundaries may change, as the rate may."""
    check_change(RateOptions(lambd=0.5), RateOptions(lambd=0.5, boundaries="uniform"), "evaluate")
    for before, after, count in ((1, 2, "1 layers"), (None, 2, "all layers"), (3, None, "3 layers")):
        with pytest.raises(UsageError, match=f"layers is for a new training: .* the hidden states of {count}"):
            check_change(RateOptions(layers=before), RateOptions(layers=after), "evaluate")


@pytest.mark.slow
def test_in_s3prl(corpora, tmp_path, monkeypatch, caplog, capsys):
    """--layers trains and evaluates and is kept with the experiment, whose task weighs as many hidden states."""
    monkeypatch.chdir(tmp_path)
    steps = "config.runner.total_steps=1,,config.runner.save_step=1,,config.runner.eval_step=2"
    data = ["--voxceleb1", str(corpora / "VoxCeleb1"), "--prepared", str(corpora / "prepared"), "--mini", "-o", steps]
    ask = ["run_downstream", "-m", "train", "-u", "ofa_wav2vec2", "-k", CKPT, "-d", "sid", *data, "-p", "exp"]
    assert cli.main([*ask, "--layers", "1", "--boundaries", "uniform", "--lambd", "0.5"]) == 0
    evaluate = ["run_downstream", "-m", "evaluate", "-e", "exp"]
    assert cli.main(evaluate) == 0
    assert "lambd 0.5, uniform boundaries, layers 1 to 1, native frames" in caplog.text
    assert cli.main([*evaluate, "--layers", "2"]) == 2
    assert "layers is for a new training: this one weighs the hidden states of 1 layers" in capsys.readouterr().err
