"""A model on a GPU never mixes tensors of GPU and host, nor the two dtypes of autocast."""

import pytest
import torch
import torch.nn.functional as F
from card import CUDA, Card, on_card
from models import CONFIGS, noise_waves, random_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from s3prl_ofa.model.cif import cif
from s3prl_ofa.superb.upstream.expert import UpstreamExpert

LENGTHS = [16_000, 400, 30_000, 9_000]
RATES = (
    {},
    {"lambd": 0.5},
    {"lambd": [0.0, 0.5, 1.0, 1.5]},
    {"frame_period_ms": 50.0},
    {"frame_period_ms": 200.0, "allow_beyond_one": True},
)


def test_the_card_tells_devices_apart():
    """The instrument itself: what is marked stays so, what moves changes, and a meeting of the two is an error."""
    with Card() as card:
        layer = card.move(torch.nn.Linear(2, 3))
        host = torch.zeros(4, 2)
        with pytest.raises(RuntimeError, match="same device"):
            layer(host)
        result = layer(host.to(layer.weight.device)).relu()
        assert result.device == CUDA and result.cpu().device.type == "cpu" and host.device.type == "cpu"
        assert torch.arange(3, device=result.device).device == CUDA
        with pytest.raises(TypeError, match="numpy"):
            result.detach().numpy()
        assert (result + torch.tensor(1.0)).device == CUDA  # a single number may come from the host


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_on_a_card_gives_what_it_gives_on_the_host(name, rate):
    """Promise: waves may be on any device; the model moves them to its device, where its results are too."""
    model, waves = random_model(CONFIGS[name]), noise_waves(LENGTHS, seed=1)
    expected = model.extract(waves, **rate)
    with Card() as card:
        found = card.move(model).extract(waves, **rate)
        tensors = (*found.hidden_states, found.lengths, found.times, found.lambd, found.frame_period_ms)
        assert all(on_card(tensor) for tensor in (*tensors, found.input_lengths, found.frame_index))
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", [CUDA, torch.device("cpu")], ids=str)
def test_a_padded_batch_from_any_device(device):
    """Promise: forward takes waves and lengths from any device; its results are on the model's."""
    model, waves = random_model(CONFIGS["base"]), noise_waves(LENGTHS, seed=1)
    expected = model.extract(waves, lambd=0.5)
    batch, lengths = pad_sequence(waves, batch_first=True), torch.tensor(LENGTHS)
    with Card() as card:
        found = card.move(model)(batch.to(device), lengths.to(device), lambd=0.5)
        assert all(on_card(tensor) for tensor in (*found.hidden_states, found.lengths))
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_cif_takes_lengths_from_the_host():
    """Promise: lengths are moved to the frames' device, and default ones are created there."""
    frames, weights = torch.rand(2, 30, 4), torch.rand(2, 30)
    lengths = torch.tensor([30, 17])
    for given in (lengths, None):
        expected, expected_lengths = cif(frames, weights, given)
        with Card():
            compressed, found_lengths = cif(frames.to(CUDA), weights.to(CUDA), given)
            assert on_card(compressed) and on_card(found_lengths)
        assert torch.equal(compressed, expected) and torch.equal(found_lengths, expected_lengths)


@pytest.mark.parametrize("options", [{"output_frames": "native", "repeat": 2}, {"output_frames": "upsampled"}], ids=str)
def test_the_upstream_on_a_card(golden_checkpoint, options):
    """Promise: the outputs of an upstream on a GPU are on it, with native and upsampled frames."""
    expert = UpstreamExpert(golden_checkpoint, lambd=0.5, **options)
    with torch.no_grad(), Card() as card:
        card.move(expert)
        result = expert([wave.to(CUDA) for wave in noise_waves(LENGTHS, seed=1)])
        assert all(on_card(state) for state in result["hidden_states"]) and on_card(result["hidden_states_len"])


class AutocastOfACard(TorchFunctionMode):
    """What autocast does on a GPU and not on a CPU: LayerNorm in float32, index_copy of one dtype only."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.layer_norm:
            args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
        elif function != Tensor.index_copy:
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("name", CONFIGS)
def test_autocast_of_a_card(name):
    """Promise: S3PRL's fp16 works on a GPU, where float32 from a norm meets half precision from a product."""
    model, waves = random_model(CONFIGS[name]), noise_waves(LENGTHS, seed=1)
    exact = model.extract(waves, frame_period_ms=50.0)
    with torch.autocast("cpu", dtype=torch.bfloat16), AutocastOfACard():
        out = model.extract(waves, frame_period_ms=50.0)
    assert torch.equal(out.lengths, exact.lengths)
    for found, expected in zip(out.hidden_states, exact.hidden_states, strict=True):
        assert (found - expected).norm() < 0.1 * expected.norm()
