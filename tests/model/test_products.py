"""The linear layers of inference on a CPU give the results of torch's, however a weight is changed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from models import BASE, CONFIGS, noise_waves, random_model
from torch import nn

from s3prl_ofa.model import products
from s3prl_ofa.model.products import apply_linear, linear, use_int8


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 80).requires_grad_(False)


def plain(layer: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return F.linear(rows, layer.weight, layer.bias)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("gelu", [False, "within the product", "after it"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_products_are_those_of_torch(layer, dtype, tolerance, gelu, monkeypatch):
    """Promise: the product, and the exact GELU after it, for any number of rows and with or without a bias."""
    monkeypatch.setattr(products, "fuses_gelu", lambda: gelu == "within the product")
    layer = layer.to(dtype)
    for rows in (torch.randn(count, 48).to(dtype) for count in (1, 7, 200)):
        for bias in (layer.bias, None):
            expected = F.linear(rows.double(), layer.weight.double(), None if bias is None else bias.double())
            expected = F.gelu(expected) if gelu else expected
            found = linear(rows, layer.weight, bias, bool(gelu))
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.cpu_kernels
def test_overlapping_rows(layer):
    """Promise: the windows of a convolution, rows that share numbers, are taken as they are."""
    windows = torch.randn(500).as_strided((90, 48), (5, 1))
    torch.testing.assert_close(linear(windows, layer.weight), windows.clone() @ layer.weight.t(), rtol=0, atol=1e-5)


def set_data(layer: nn.Linear) -> None:
    layer.weight.data = 2 * layer.weight.data


def merge_adapter(layer: nn.Linear) -> None:
    layer.weight.data += 0.1 * torch.randn(layer.weight.shape)


def scale_data(layer: nn.Linear) -> None:
    layer.weight.data.mul_(1.5)


def copy_average(layer: nn.Linear) -> None:
    layer.weight.data.copy_(0.5 * layer.weight.data)


@torch.no_grad()
def step(layer: nn.Linear) -> None:
    layer.weight.add_(0.1)


def optimizer_step(layer: nn.Linear) -> None:
    layer.requires_grad_(True)
    plain(layer, torch.ones(3, 48)).sum().backward()
    torch.optim.Adam(layer.parameters()).step()
    layer.requires_grad_(False)


def there_and_back(layer: nn.Linear) -> None:
    layer.bfloat16().float()  # rounds the weights


def load(layer: nn.Linear) -> None:
    layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()})


def assign(layer: nn.Linear) -> None:
    layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()}, assign=True)
    layer.requires_grad_(False)


@pytest.mark.parametrize(
    "change", [set_data, merge_adapter, scale_data, copy_average, step, optimizer_step, there_and_back, load, assign]
)
def test_a_changed_weight_is_packed_again(layer, change):
    """Promise: no product with a weight as it was before it changed."""
    rows = torch.randn(20, 48)
    before = apply_linear(layer, rows)
    change(layer)
    found = apply_linear(layer, rows)
    torch.testing.assert_close(found, plain(layer, rows), rtol=0, atol=1e-5)
    assert not torch.allclose(found, before, rtol=0, atol=1e-4)


def test_a_weight_is_packed_once_and_forgotten_with_its_model(layer):
    """Promise: calls do not pack again, copies have their own, and none outlives its weight."""
    before = len(products._packed)
    rows = torch.randn(20, 48)
    apply_linear(layer, rows)
    packed = products._packed[layer.weight][-1]
    apply_linear(layer, rows)
    assert products._packed[layer.weight][-1] is packed and len(products._packed) == before + 1
    twin = copy.deepcopy(layer)
    apply_linear(twin, rows)
    assert len(products._packed) == before + 2
    del twin
    assert len(products._packed) == before + 1


def test_weights_of_inference_mode_and_in_training_are_never_packed(layer):
    """Promise: no copy is kept of weights whose changes are not counted, or that change all the time."""
    before, rows = len(products._packed), torch.randn(20, 48)
    with torch.inference_mode():
        for one in (nn.Linear(48, 80).requires_grad_(False), layer.requires_grad_(True)):
            torch.testing.assert_close(apply_linear(one, rows), plain(one, rows), rtol=0, atol=1e-5)
    assert len(products._packed) == before


def test_hooks_and_modules_of_others_are_called(layer):
    """Promise: a layer with a hook, or one that is not a plain nn.Linear, is called as a module."""
    rows, seen = torch.randn(20, 48), []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output) or 2 * output)
    assert torch.equal(apply_linear(layer, rows, gelu=True), F.gelu(2 * seen[0]))
    handle.remove()

    class Doubled(nn.Linear):
        def forward(self, rows):
            return 2 * super().forward(rows)

    layer.__class__ = Doubled
    assert torch.equal(apply_linear(layer, rows), 2 * plain(layer, rows))
    layer.__class__ = nn.Linear
    layer.forward = lambda rows: 3 * plain(layer, rows)
    assert torch.equal(apply_linear(layer, rows), 3 * plain(layer, rows))


def test_training_and_autocast_do_not_use_them(layer, monkeypatch):
    """Promise: gradients and autocast take torch's own products."""
    monkeypatch.setattr(products, "onednn_linear", lambda *args: pytest.fail("oneDNN's product was used"))
    rows = torch.randn(20, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert apply_linear(layer, rows).dtype == torch.bfloat16
    layer.requires_grad_(True)
    apply_linear(layer, rows, gelu=True).sum().backward()
    assert layer.weight.grad.any()
    layer.requires_grad_(False)
    source = rows.clone().requires_grad_(True)
    apply_linear(layer, source).sum().backward()
    assert source.grad.any()


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_gives_what_it_gives_without_them(name, monkeypatch):
    """Promise: within 1e-4 in float32, with the same lengths, whatever else is in the batch."""
    model, waves = random_model(CONFIGS[name]), noise_waves([9_000, 20_000, 4_000], seed=3)
    fast = model.extract(waves, lambd=0.6)
    monkeypatch.setattr(products, "uses_onednn", lambda *tensors: False)
    slow = model.extract(waves, lambd=0.6)
    assert torch.equal(fast.lengths, slow.lengths)
    for one, other in zip(fast.hidden_states, slow.hidden_states, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_the_default_call_is_the_fast_one(monkeypatch):
    """Promise: extract of a frozen model uses them for every linear layer and convolution but the wide one."""
    rows = []
    product = products.onednn_linear
    monkeypatch.setattr(products, "onednn_linear", lambda *args: rows.append(len(args[0])) or product(*args))
    random_model(BASE).extract(noise_waves([9_000]))
    assert len(rows) == len(BASE.conv_layers) + 1 + 4 * BASE.layers


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_layers_in_8_bits(name, dtype):
    """Promise: the cosine of every layer to float32 is above 0.99, whatever else is in the batch; lengths are equal."""
    model, waves = random_model(CONFIGS[name]), noise_waves([9_000, 20_000, 4_000], seed=3)
    quantized = copy.deepcopy(model).to(dtype)
    use_int8(quantized.encoder)
    found, expected = quantized.extract(waves), model.extract(waves)
    assert torch.equal(found.lengths, expected.lengths)
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        for frames, row, reference in zip(found.lengths, one.float(), other, strict=True):
            assert (F.cosine_similarity(row[:frames], reference[:frames], dim=-1) > 0.99).all()
    alone = quantized.extract(waves[1:2])
    tolerance = 2e-2 if dtype == torch.float32 else 0.2  # a rounding of the layer before may cross to another level
    torch.testing.assert_close(alone.hidden_states[-1][0], found.hidden_states[-1][1], rtol=0, atol=tolerance)


@pytest.mark.cpu_kernels
def test_rows_in_8_bits_do_not_depend_on_each_other(layer):
    """Promise: bit for bit, also beside rows that are much larger; a row of zeros gives the bias."""
    use_int8(layer)
    rows = torch.randn(20, 48)
    rows[3] = 0
    alone = layer(rows)
    assert torch.equal(layer(torch.cat([rows, 1e4 * rows]))[:20], alone)
    torch.testing.assert_close(alone[3], layer.bias)
    assert F.cosine_similarity(alone - layer.bias, rows @ layer.weight.t(), dim=-1)[rows.any(1)].min() > 0.999


def test_layers_in_8_bits_train_in_float32(layer):
    """Promise: with gradients an 8-bit layer is an nn.Linear; afterwards it is quantized again."""
    twin, rows = copy.deepcopy(layer), torch.randn(20, 48)
    use_int8(layer)
    before = layer(rows)
    layer.requires_grad_(True)
    assert torch.equal(layer(rows), plain(twin, rows))
    layer.requires_grad_(False)
    step(layer)
    assert not torch.allclose(layer(rows), before, rtol=0, atol=0.1)


@pytest.mark.parametrize("int8", [False, True])
def test_few_shapes_are_compiled(layer, int8, monkeypatch):
    """Promise: a run over many lengths asks oneDNN for few numbers of rows, hardly more than needed."""
    found = set()
    kernels = products.int8_product if int8 else torch.ops.mkldnn._linear_pointwise
    owner, name = (products, "int8_product") if int8 else (torch.ops.mkldnn, "_linear_pointwise")
    monkeypatch.setattr(owner, name, lambda rows, *args: found.add(len(rows)) or kernels(rows, *args))
    if int8:
        use_int8(layer)
    for count in range(1, 1500):
        assert len(apply_linear(layer, torch.zeros(count, 48))) == count
        assert any(0 <= size - count <= max(7, count / 32) for size in found)
    assert len(found) < 120
