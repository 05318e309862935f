"""The featurizer sums the layers as S3PRL's does, to the same bits, in less time and memory."""

import pytest
import torch
from s3prl.upstream.interfaces import Featurizer
from torch import Tensor, nn

from s3prl_ofa.superb.upstream.featurizer import LengthAwareFeaturizer

LAYERS, LENGTHS, SHAPE = 4, [20, 45, 31], (3, 50, 24)  # all utterances are padded
WAVES = [torch.zeros(320 * length) for length in LENGTHS]


class Upstream(nn.Module):
    """The least that S3PRL's Featurizer asks of an upstream."""

    def forward(self, waves):
        return {"hidden_states": list(torch.zeros(LAYERS, len(waves), 50, 24)), "hidden_states_len": torch.tensor([50])}

    def get_downsample_rates(self, key):
        return 320


def states(trained: bool = False, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    layers = torch.randn(LAYERS, *SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)
    return [layer.clone().requires_grad_(trained) for layer in layers]


def made(kind: type, normalize: bool) -> Featurizer:
    featurizer = kind(Upstream(), upstream_device="cpu", normalize=normalize)
    nn.init.normal_(featurizer.weights, generator=torch.Generator().manual_seed(1))
    return featurizer


def ours(layers: list[Tensor], normalize: bool = False) -> tuple[list[Tensor], Tensor]:
    """The sums of our featurizer, and the gradient of its weights."""
    featurizer = made(LengthAwareFeaturizer, normalize)
    sums = featurizer(WAVES, {"hidden_states": layers, "hidden_states_len": torch.tensor(LENGTHS)})
    return backward(sums), featurizer.weights.grad


def s3prls(layers: list[Tensor], normalize: bool = False) -> tuple[list[Tensor], Tensor]:
    featurizer = made(Featurizer, normalize)
    sums = [row[:length] for row, length in zip(featurizer._weighted_sum(layers), LENGTHS, strict=True)]
    return backward(sums), featurizer.weights.grad


def backward(sums: list[Tensor]) -> list[Tensor]:
    sum(row.square().sum() for row in sums).backward()
    return [row.detach() for row in sums]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_weighted_sum_of_s3prl(normalize, trained):
    layers, theirs = states(trained), states(trained)
    (sums, gradient), (expected, expected_gradient) = ours(layers, normalize), s3prls(theirs, normalize)
    assert all(map(torch.equal, sums, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5)
    on_gpus = made(LengthAwareFeaturizer, normalize)._weighted_sum(states())
    assert all(torch.equal(row[:length], other) for row, length, other in zip(on_gpus, LENGTHS, sums, strict=True))
    for layer, other in zip(layers, theirs, strict=True):
        torch.testing.assert_close(layer.grad, other.grad)


def test_states_in_16_bits():
    """As autocast gives them: the sum is in float32."""
    (sums, gradient), (expected, expected_gradient) = (run(states(dtype=torch.float16)) for run in (ours, s3prls))
    assert sums[0].dtype == torch.float32 and all(map(torch.equal, sums, expected))
    torch.testing.assert_close(gradient, expected_gradient)


def test_another_number_of_layers():
    with pytest.raises(AssertionError, match="layerdrop"):
        ours(states()[:3])
