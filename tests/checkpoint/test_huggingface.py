"""Hugging Face wav2vec 2.0 folders: the same hidden states in transformers and here, in both directions."""

import json
import logging

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from s3prl_ofa.checkpoint import convert, load, read_checkpoint
from s3prl_ofa.errors import CheckpointError
from s3prl_ofa.model import ModelConfig, OFAWav2Vec2
from s3prl_ofa.model.storage import write_safetensors

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [24] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "codevector_dim": 16,
    "proj_codevector_dim": 12,
    "num_codevectors_per_group": 10,
    "vocab_size": 9,
    "classifier_proj_size": 8,
}
KINDS = {"base": {}, "large": {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}}


@pytest.fixture(scope="module")
def transformers():
    """transformers, without importing torchaudio, which may not match the installed torch and is not needed."""
    import transformers.utils

    patch = pytest.MonkeyPatch()
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        patch.setattr(transformers.utils, "is_torchaudio_available", lambda: False)
    transformers.Wav2Vec2Model, transformers.Wav2Vec2ForPreTraining  # noqa: B018, loads their modules
    patch.undo()
    return transformers


@pytest.fixture
def folder(transformers, tmp_path):
    """Makes a folder with random weights; returns its path and the wav2vec 2.0 in it."""

    def make(kind, name="Wav2Vec2Model", **settings):
        torch.manual_seed(0)
        model = getattr(transformers, name)(transformers.Wav2Vec2Config(**{**SMALL, **KINDS[kind], **settings})).eval()
        with torch.no_grad():  # the first values of norms and biases hide what is swapped
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        path = tmp_path / f"{kind}-{name}"
        model.save_pretrained(path)
        normalize = kind == "large"
        (path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": normalize, "sampling_rate": 16000}))
        return path, getattr(model, "wav2vec2", model)

    return make


def waves():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, generator=generator) for size in (9_000, 6_543)]


def states_there(model, wave, normalize):
    """Each layer's input, then the encoder's output, as transformers computes them for one wave."""
    wave = F.layer_norm(wave, wave.shape) if normalize else wave
    with torch.no_grad():
        out = model(wave[None], output_hidden_states=True)
    return [*out.hidden_states[:-1], out.last_hidden_state]


def assert_same_states(path, model, normalize):
    ours = load(path)
    for wave in waves():
        here, there = ours.extract([wave]).hidden_states, states_there(model, wave, normalize)
        assert len(here) == len(there)
        for mine, theirs in zip(here, there, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["Wav2Vec2Model", "Wav2Vec2ForPreTraining", "Wav2Vec2ForCTC", "Wav2Vec2ForSequenceClassification"]
)
def test_parity(folder, kind, name):
    """Our hidden states are those of transformers for a model with and without each head, like Base and like Large."""
    path, model = folder(kind, name)
    assert_same_states(path, model, kind == "large")
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == "huggingface" and checkpoint.model_cfg == {} and checkpoint.task_cfg == {}
    assert ("quantizer.vars" in checkpoint.weights) == (name == "Wav2Vec2ForPreTraining")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["HubertModel", "HubertForCTC"])
def test_hubert(transformers, tmp_path, kind, name):
    """HuBERT's network is wav2vec 2.0's."""
    torch.manual_seed(0)
    model = getattr(transformers, name)(transformers.HubertConfig(**{**SMALL, **KINDS[kind]})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": kind == "large"}))
    assert_same_states(tmp_path, getattr(model, "hubert", model), kind == "large")
    assert load(tmp_path).compressor is None


@pytest.mark.parametrize("old_names", [True, False], ids=["weight_g", "parametrizations"])
@pytest.mark.parametrize("form", ["pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_forms_of_the_weights(folder, form, old_names):
    """Old and new names of the positional convolution, safetensors and pickles, whole or sharded, give one model."""
    path, _ = folder("base")
    expected = read_checkpoint(path).weights
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    halves = {"original0": "weight_g", "original1": "weight_v"}
    for new, old in halves.items():
        names = [f"encoder.pos_conv_embed.conv.parametrizations.weight.{new}", f"encoder.pos_conv_embed.conv.{old}"]
        present = next(name for name in names if name in weights)
        weights[names[old_names]] = weights.pop(present)
    if form.endswith(".json"):
        suffix = ".safetensors" if "safetensors" in form else ".bin"
        parts = {f"part-{index}{suffix}": dict(list(weights.items())[index::2]) for index in range(2)}
        for part, content in parts.items():
            save_file(content, path / part) if suffix == ".safetensors" else torch.save(content, path / part)
        weight_map = {name: part for part, content in parts.items() for name in content}
        (path / form).write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(weights, path / form)
    found = read_checkpoint(path).weights
    assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


def test_whether_waves_are_normalized(transformers, folder, caplog):
    """The processor's file counts too; without any file Hugging Face's default is used, with a warning."""
    path, _ = folder("base")
    (path / "preprocessor_config.json").unlink()
    (path / "processor_config.json").write_text('{"feature_extractor": {"do_normalize": false}}')
    assert not read_checkpoint(path).config.normalize and not caplog.text
    (path / "processor_config.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert read_checkpoint(path).config.normalize
    assert "normalized" in caplog.text


# --- writing ---


def loaded_there(cls, path):
    model, info = cls.from_pretrained(path, output_loading_info=True)
    return model.eval(), set(info["missing_keys"]), set(info["unexpected_keys"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("over", ["fairseq", "s3prl", "safetensors"])
def test_written_folder_loads_in_transformers(transformers, folder, tmp_path, kind, over):
    """After a round trip through any format transformers has no missing or unexpected weights and computes the same."""
    path, model = folder(kind)
    convert(path, tmp_path / "between", to=over)
    convert(tmp_path / "between", tmp_path / "back", to="huggingface")
    again, missing, unexpected = loaded_there(transformers.Wav2Vec2Model, tmp_path / "back")
    assert not missing and not unexpected
    for wave in waves():
        for mine, theirs in zip(states_there(again, wave, False), states_there(model, wave, False), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "back")
    assert extractor.do_normalize == (kind == "large") and extractor.return_attention_mask == (kind == "large")
    assert_same_states(tmp_path / "back", model, kind == "large")


@pytest.mark.parametrize("kind", KINDS)
def test_pretraining_model_keeps_its_heads(transformers, folder, tmp_path, kind):
    """Weights of pretraining survive fairseq and back bit for bit, as a Wav2Vec2ForPreTraining of the same sizes."""
    path, _ = folder(kind, "Wav2Vec2ForPreTraining")
    convert(path, tmp_path / "fairseq.pt")
    cfg = torch.load(tmp_path / "fairseq.pt", weights_only=True)["cfg"]["model"]
    sizes = {"final_dim": 12, "latent_dim": 16, "latent_vars": 10, "latent_groups": 2, "quantize_targets": True}
    assert {key: cfg[key] for key in sizes} == sizes
    convert(tmp_path / "fairseq.pt", tmp_path / "back")
    again, missing, unexpected = loaded_there(transformers.Wav2Vec2ForPreTraining, tmp_path / "back")
    assert not missing and not unexpected
    expected, found = transformers.Wav2Vec2ForPreTraining.from_pretrained(path).state_dict(), again.state_dict()
    assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


def test_equal_widths_and_no_mask(transformers, tmp_path):
    """A model without a projection gets the identity, which is dropped again for fairseq."""
    torch.manual_seed(0)
    config = ModelConfig(
        conv_layers=((32, 10, 5), *((32, 3, 2),) * 4, *((32, 2, 2),) * 2),
        projection=False,
        dim=32,
        ffn_dim=48,
        heads=4,
        layers=1,
        pos_conv_kernel=16,
        pos_conv_groups=4,
    )
    model = OFAWav2Vec2(config)
    model.save(tmp_path / "own.safetensors")
    convert(tmp_path / "own.safetensors", tmp_path / "hf")
    there, missing, unexpected = loaded_there(transformers.Wav2Vec2Model, tmp_path / "hf")
    assert not missing and not unexpected
    for mine, theirs in zip(
        model.extract(waves()[:1]).hidden_states, states_there(there, waves()[0], False), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)
    convert(tmp_path / "hf", tmp_path / "fairseq.pt")
    assert read_checkpoint(tmp_path / "fairseq.pt").config == config


def test_training_settings_are_kept(tmp_path):
    """Dropout and similar settings of fairseq's configuration are written to ``config.json``."""
    torch.manual_seed(0)
    config = ModelConfig(
        conv_layers=((8, 400, 320),), dim=8, ffn_dim=8, heads=2, layers=1, pos_conv_kernel=4, pos_conv_groups=2
    )
    metadata = {"model_cfg": json.dumps({"dropout": 0.3, "encoder_layerdrop": 0.2})}
    write_safetensors(tmp_path / "own.safetensors", config, OFAWav2Vec2(config).weights(), metadata)
    convert(tmp_path / "own.safetensors", tmp_path / "hf")
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["hidden_dropout"] == 0.3 and written["layerdrop"] == 0.2


# --- errors ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "wavlm"}, "model_type 'wavlm'; expected one of wav2vec2, hubert"),
        ({"model_type": "data2vec-audio"}, "model_type 'data2vec-audio'; expected one of"),
        ({"model_type": "hubert", "feat_proj_layer_norm": False}, "feat_proj_layer_norm False; only True"),
        ({"add_adapter": True}, "add_adapter True"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim 16"),
        ({"layer_norm_eps": 1e-3}, "layer_norm_eps 0.001"),
        ({"feat_extract_activation": "relu"}, "feat_extract_activation 'relu'"),
        ({"hidden_act": "gelu_new"}, "activation must be one of gelu, relu"),
        ({"conv_stride": [5, 2]}, "different lengths"),
        ({"conv_stride": "5"}, "conv_stride '5'"),
        ({"hidden_size": "32"}, "hidden_size '32'"),
        ({"num_hidden_layers": 3}, "weights for 2 layers"),
        ({"hidden_size": 64}, r"post_extract_proj.weight of shape \(32, 24\)"),
    ],
)
def test_other_architectures_are_refused(folder, settings, message):
    """A folder with an unsupported setting is refused with the name of the setting."""
    path, _ = folder("base")
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**values, **settings}))
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_damaged_folders(folder):
    """Every missing or broken part of a folder is named."""
    path, _ = folder("base")
    weights = (path / "model.safetensors").read_bytes()

    def refused(message):
        with pytest.raises(CheckpointError, match=message):
            load(path)

    (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused("model.safetensors: not a readable safetensors file")
    tensors = {"encoder.new.weight": torch.zeros(1)}
    save_file(tensors, path / "model.safetensors")
    refused("unknown weights encoder.new.weight")
    (path / "model.safetensors").unlink()
    refused("a folder without weights")
    index = path / "model.safetensors.index.json"
    for parts, message in {
        '{"weight_map": {"a": "../outside.safetensors"}}': "no such file in the folder",
        '{"weight_map": ["a"]}': "no weight_map",
        "[1]": "holds a list",
        "{": "is not JSON",
    }.items():
        index.write_text(parts)
        refused(message)
    save_file(tensors, path / "part.safetensors")
    index.write_text('{"weight_map": {"a": "part.safetensors"}}')
    refused("lists weights a; the parts do not hold them")
    (path / "preprocessor_config.json").write_text('{"do_normalize": "yes"}')
    refused("do_normalize")
    (path / "config.json").write_text("{}")
    (path / "preprocessor_config.json").unlink()
    refused("model_type None")


def test_a_file_of_the_folder_is_told_to_be_one(folder):
    """For a file inside the folder the message says to give the folder."""
    path, _ = folder("base")
    with pytest.raises(CheckpointError, match="folder"):
        read_checkpoint(path / "model.safetensors")
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="give its folder"):
        read_checkpoint(path / "pytorch_model.bin")


def test_compressor(tmp_path):
    """A model with a compressor becomes a folder of s3prl_ofa.hf, and comes back bit for bit."""
    config = ModelConfig(
        conv_layers=((8, 400, 320),),
        dim=8,
        ffn_dim=8,
        heads=2,
        layers=1,
        pos_conv_kernel=4,
        pos_conv_groups=2,
        compressor="cif",
    )
    OFAWav2Vec2(config).save(tmp_path / "own.safetensors")
    convert(tmp_path / "own.safetensors", tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "ofa_wav2vec2"
    assert load(tmp_path / "hf").fingerprint() == load(tmp_path / "own.safetensors").fingerprint()
    assert load(tmp_path / "hf").config == config
