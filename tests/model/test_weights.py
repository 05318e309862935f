"""What a model promises of its weights: gradients, names, refusals, and the config that they fit."""

import dataclasses

import pytest
import torch
from models import BASE, CONFIGS, GOLDEN_CONFIG, LARGE, golden_weights, noise_waves, random_model, random_weights

from s3prl_ofa.model import ModelConfig, OFAWav2Vec2

LENGTHS = [16_000, 400, 1_040, 7_777, 12_345]


@pytest.fixture(scope="module")
def model():
    return random_model(BASE)


@pytest.fixture(scope="module")
def waves():
    return noise_waves(LENGTHS, seed=5)


def test_no_gradient_graph_unless_asked(model, waves):
    """Promise: a fresh model needs no gradient: no output has a graph, and none under no_grad whatever the input."""
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())
    out = model.extract(waves, lambd=0.5)
    assert not any(state.requires_grad for state in out.hidden_states)
    assert not model.alpha(waves)[0].requires_grad
    with torch.no_grad():
        out = model.extract(waves, lambd=torch.tensor(0.5, requires_grad=True))
    assert not any(state.requires_grad for state in out.hidden_states)
    with torch.inference_mode():
        same = model.extract(waves, lambd=0.5)
    assert torch.equal(same.hidden_states[-1], out.hidden_states[-1])


@pytest.mark.parametrize("lambd", [0.0, 0.35, 0.8, 1.3])
def test_gradients_flow_to_lambd(lambd):
    """Promise: differentiable in lambd, one or one per utterance: the gradient is the slope of the features (a finite
    difference; at lambd 0, the default, the slope towards more compression, the only side there is)."""
    model = random_model(dataclasses.replace(BASE, pos_conv_kernel=3)).double()
    batch, step = noise_waves([16_000, 23_000], seed=5), 1e-6
    # Frames at the end come and go with lambd, and attention sees all: only the encoder's input counts, but its end.
    kept = (model.extract(batch, lambd=lambd + step).lengths - 3).tolist()
    assert min(kept) > 2
    weights = torch.randn(max(kept), 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def score(rate):
        state = model.extract(batch, lambd=rate, layers=0).hidden_states[0]
        return torch.stack([(state[row, :count] * weights[:count]).sum() for row, count in enumerate(kept)])

    each = torch.full((2,), lambd, dtype=torch.float64, requires_grad=True)
    score(each).sum().backward()
    one = torch.tensor(lambd, dtype=torch.float64, requires_grad=True)
    score(one).sum().backward()
    torch.testing.assert_close(one.grad, each.grad.sum())
    below = lambd - step if lambd else 0.0
    slope = (score(lambd + step) - score(below)) / (lambd + step - below)
    assert (slope.abs() > 0.1).all()
    torch.testing.assert_close(each.grad, slope, rtol=1e-3, atol=1e-3)


def test_gradients_flow_to_every_weight_when_opened(waves):
    """Promise: after requires_grad_(True) every weight has a finite gradient, the predictor's too, in both forms."""
    for config in CONFIGS.values():
        # GroupNorm takes a convolution's bias out again, so there a bias could have no gradient.
        config = dataclasses.replace(config, conv_bias=config.conv_norm == "layer")
        model = random_model(config).requires_grad_(True)
        out = model.extract(waves, lambd=0.6)
        sum(state.square().sum() for state in out.hidden_states).backward()
        for name, weight in model.named_parameters():
            assert weight.grad is not None and weight.grad.isfinite().all(), name
            assert weight.grad.abs().max() > 0, name


def test_a_step_down_the_gradient_lowers_the_loss(waves):
    """Promise: the gradients are those of the features, whole model: the loss falls by what they foretell."""
    model = random_model(BASE).requires_grad_(True)
    target = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(3))

    def loss():
        out = model.extract(waves, lambd=0.6)
        return ((out.hidden_states[-1] - target) * (out.hidden_states[-1] != 0)).square().mean()

    before = loss()
    before.backward()
    square = sum(weight.grad.square().sum() for weight in model.parameters())
    step = 1e-3 * float(before.detach()) / float(square)
    with torch.no_grad():
        for weight in model.parameters():
            weight -= step * weight.grad
    fallen = float(before.detach()) - float(loss().detach())
    assert fallen == pytest.approx(step * float(square), rel=0.2)


def test_weights_go_out_as_they_came_in():
    """Promise: weights() gives fairseq's names and values back, bit for bit."""
    for config in CONFIGS.values():
        given = random_weights(config)
        found = random_model(config).weights()
        assert set(found) == set(given)
        for name, weight in given.items():
            assert torch.equal(found[name], weight), name


def test_the_caller_s_weights_are_not_shared(waves):
    """Promise: a model owns its weights: changing the dict's tensors later does not change the model, nor is the dict
    itself changed."""
    given = random_weights(BASE)
    names = set(given)
    model = OFAWav2Vec2(BASE)
    model.load_weights(given)
    before = model.extract(waves, lambd=0.5).hidden_states[-1]
    assert set(given) == names
    for weight in given.values():
        weight.zero_()
    assert torch.equal(model.extract(waves, lambd=0.5).hidden_states[-1], before)


def test_pretraining_weights_are_passed_over():
    """Promise: weights only pretraining needs are ignored; the reference's whole state dict loads."""
    extra = {
        "mask_emb": torch.zeros(3),
        "quantizer.vars": torch.zeros(3),
        "quantizer.weight_proj.weight": torch.zeros(3),
        "project_q.weight": torch.zeros(3),
        "final_proj.bias": torch.zeros(3),
        "input_quantizer.vars": torch.zeros(3),
        "project_inp.weight": torch.zeros(3),
        "target_glu.0.weight": torch.zeros(3),
    }
    model = OFAWav2Vec2(GOLDEN_CONFIG)
    model.load_weights(golden_weights() | extra)
    assert not any(
        name.split(".")[0] in ("mask_emb", "quantizer", "project_q", "final_proj") for name in model.weights()
    )


def test_missing_unknown_and_misshapen_weights_are_named(waves):
    """Promise: strict: a ValueError that names each weight that is missing, unknown or of another shape; the model
    keeps what it had."""
    good = random_weights(BASE)
    model = random_model(BASE, seed=1)
    before = model.extract(waves[:1]).hidden_states[-1]
    missing = {
        name: weight for name, weight in good.items() if "layers.1.fc1.bias" not in name and name != "layer_norm.bias"
    }
    unknown = good | {"encoder.layers.7.fc1.bias": torch.zeros(48), "nonsense": torch.zeros(2)}
    names = (
        "encoder.layers.0.self_attn.k_proj.weight",
        "feature_extractor.conv_layers.3.0.weight",
        "cif_subsampler.alpha_fn.cnn.weight",
        "encoder.pos_conv.0.weight",
        "encoder.layer_norm.weight",
    )
    cases = [
        (missing, ("encoder.layers.1.fc1.bias", "layer_norm.bias")),
        (unknown, ("encoder.layers.7.fc1.bias", "nonsense")),
    ]
    cases += [(good | {name: good[name][..., :-1]}, (name,)) for name in names]
    cases += [({key: weight for key, weight in good.items() if key != name}, (name,)) for name in names]
    for weights, said in cases:
        with pytest.raises(ValueError) as caught:
            model.load_weights(weights)
        assert all(name in str(caught.value) for name in said), said
    assert torch.equal(model.extract(waves[:1]).hidden_states[-1], before)


def test_a_compressor_s_weights_fit_only_a_compressor():
    """Promise: weights of a compressor in a plain config are unknown, and named; missing ones in another are too."""
    plain = dataclasses.replace(BASE, compressor="none")
    with pytest.raises(ValueError, match="cif_subsampler"):
        OFAWav2Vec2(plain).load_weights(random_weights(BASE))
    with pytest.raises(ValueError, match="cif_subsampler"):
        OFAWav2Vec2(BASE).load_weights(random_weights(plain))


def test_weight_normed_positional_convolutions_load(waves):
    """Promise: load_weights takes the positional convolution as g and v too: w = g v / |v| for each kernel position."""
    good = random_weights(BASE)
    weight = good.pop("encoder.pos_conv.0.weight")
    direction = weight * torch.rand(128, generator=torch.Generator().manual_seed(0)).add(0.5)
    good["encoder.pos_conv.0.weight_v"] = direction
    good["encoder.pos_conv.0.weight_g"] = weight.norm(dim=(0, 1), keepdim=True)
    model = OFAWav2Vec2(BASE)
    model.load_weights(good)
    torch.testing.assert_close(model.weights()["encoder.pos_conv.0.weight"], weight, rtol=0, atol=1e-6)
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(32, 32, 128, groups=16), dim=2)
    conv.parametrizations.weight.original0.data = good["encoder.pos_conv.0.weight_g"]
    conv.parametrizations.weight.original1.data = direction
    torch.testing.assert_close(model.weights()["encoder.pos_conv.0.weight"], conv.weight.data, rtol=0, atol=1e-6)


def test_configs_that_cannot_be_are_refused():
    """Promise: a config names the field that cannot be."""
    for bad, name in (
        ({"heads": 5}, "heads"),
        ({"pos_conv_groups": 7}, "pos_conv_groups"),
        ({"conv_norm": "batch"}, "conv_norm"),
        ({"activation": "swish"}, "activation"),
        ({"compressor": "pool"}, "compressor"),
        ({"layers": 0}, "layers"),
        ({"dim": 32.0}, "dim"),
        ({"conv_layers": ()}, "conv_layers"),
        ({"conv_layers": ((8, 2, 3),)}, "conv_layers"),
    ):
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(BASE, **bad)
    with pytest.raises(ValueError, match="color"):
        ModelConfig.from_dict({"color": 1})


@pytest.mark.parametrize("field", ["projection", "conv_bias", "pre_norm", "normalize"])
@pytest.mark.parametrize("value", ["false", None, 2])
def test_switches_of_a_config_are_true_or_false(field, value):
    """Promise: a config refuses a value that cannot be, and names the field: "false" in a file's JSON is not true."""
    with pytest.raises(ValueError, match=field):
        ModelConfig.from_dict(BASE.to_dict() | {field: value})


def test_front_end_widths_must_fit_without_a_projection():
    """Promise: without a projection the front end's width is the encoder's; another is refused, not run."""
    with pytest.raises(ValueError, match="projection|conv_layers|dim"):
        OFAWav2Vec2(dataclasses.replace(BASE, projection=False))


def test_hop_and_receptive_field():
    """Promise: 20 ms frames of 400 samples; a config says how many frames so many samples give."""
    assert (BASE.hop, BASE.receptive_field, BASE.conv_dim) == (320, 400, 24)
    for samples in (400, 719, 720, 16_000):
        assert BASE.num_frames(samples) == (samples - 400) // 320 + 1
        assert random_model(BASE).front_end_rows([torch.zeros(samples)])[1].tolist() == [BASE.num_frames(samples)]
    assert ModelConfig.from_dict(LARGE.to_dict()) == LARGE
