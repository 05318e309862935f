"""HuBERT, whose network is wav2vec 2.0's: fairseq's files, and S3PRL's, give its hidden states at 20 ms."""

import pytest
import torch

from s3prl_ofa.checkpoint import convert, load, read_checkpoint
from s3prl_ofa.errors import CheckpointError

CONV = "[(24, 10, 5)] + [(24, 3, 2)] * 4 + [(24, 2, 2)] * 2"
MODEL = {
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4,
    "conv_feature_layers": CONV,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "final_dim": 12,
    "label_rate": 50,
}
LARGE = {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True}


def perturbed(model):
    with torch.no_grad():  # the first values of norms and biases hide what is swapped
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def fairseq_hubert():
    """A function (settings) -> fairseq's HuBERT of them, with two dictionaries of five units."""
    hubert = pytest.importorskip("fairseq.models.hubert.hubert", reason="fairseq is not installed")
    from fairseq.data.dictionary import Dictionary
    from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig

    def make(settings):
        torch.manual_seed(0)
        units = Dictionary()
        for unit in "abcde":
            units.add_symbol(unit)
        config = hubert.HubertConfig(**{**MODEL, **settings})
        return perturbed(hubert.HubertModel(config, HubertPretrainingConfig(data="", label_rate=50.0), [units, units]))

    return make


@pytest.mark.parametrize("settings", [{}, LARGE], ids=["base", "large"])
def test_fairseq(fairseq_hubert, tmp_path, settings):
    """The states of each layer; without what only trained HuBERT, in S3PRL's form and converted too."""
    model = fairseq_hubert(settings)
    normalize = bool(settings)
    cfg = {"model": {"_name": "hubert", **MODEL, **settings}, "task": {"_name": "hubert_pretraining"}}
    cfg["task"]["normalize"] = normalize
    torch.save({"cfg": cfg, "model": model.state_dict()}, tmp_path / "hubert.pt")
    s3prl = {"task_cfg": cfg["task"], "model_cfg": cfg["model"], "model_weight": model.state_dict()}
    torch.save({**s3prl, "dictionaries_symbols": [["a"]]}, tmp_path / "s3prl.pt")
    found = load(tmp_path / "hubert.pt")
    assert found.config.normalize == normalize and found.compressor is None
    assert load(tmp_path / "s3prl.pt").fingerprint() == found.fingerprint()
    wave = torch.sin(torch.arange(9_000) / 7) + 0.1 * torch.randn(9_000)
    source = torch.nn.functional.layer_norm(wave, wave.shape) if normalize else wave
    states = found.extract([wave]).hidden_states
    for layer in (1, 2):
        with torch.no_grad():
            expected, _ = model.extract_features(source[None], output_layer=None if layer == 2 else layer)
        torch.testing.assert_close(states[layer], expected, atol=1e-4, rtol=0)
    weights = read_checkpoint(tmp_path / "hubert.pt").weights
    assert "mask_emb" in weights and not [name for name in weights if "final_proj" in name or "label" in name]
    convert(tmp_path / "hubert.pt", tmp_path / "wav2vec.pt")
    again = read_checkpoint(tmp_path / "wav2vec.pt")
    assert again.model_cfg["_name"] == "wav2vec2" and load(tmp_path / "wav2vec.pt").fingerprint() == found.fingerprint()


def test_others_are_refused_by_name(save, reference):
    """WavLM's attention is another one, and data2vec's positional convolution."""
    cfg = {"model": {"_name": "data2vec_audio"}, "task": {}}
    with pytest.raises(CheckpointError, match="its model is 'data2vec_audio'; expected one of wav2vec2, .*hubert"):
        read_checkpoint(save({"cfg": cfg, "model": reference["model"]}))
    weights = reference["model"] | {"encoder.layers.0.self_attn.grep_a": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="a WavLM, whose attention is different"):
        read_checkpoint(save({"cfg": {"relative_position_embedding": True}, "model": weights}))
