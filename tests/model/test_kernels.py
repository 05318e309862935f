"""Results in 16 bits are correct on every CPU: shapes that oneDNN gets wrong are avoided, others are checked."""

import collections
import copy
import functools
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from models import CONFIGS, noise_waves, random_model
from paths import ROOT, TESTS
from pretraining import speechlike, tiny_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from s3prl_ofa.model.convolution import Conv1d, Conv2d
from s3prl_ofa.model.kernels import LARGEST_ERROR, check_kernels, errors

LOWERED = (torch.bfloat16, torch.float16)
CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)
# The next smaller instruction set of oneDNN: without AMX where the CPU has it, else without AVX-512.
OTHER_SET = "AVX512_CORE_BF16" if torch.cpu._is_amx_tile_supported() else "AVX2"


class GroupedConvolutions(TorchDispatchMode):
    """Counts grouped convolutions by dtype, and keeps those in 16 bits whose channels per group AMX gets wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes, self.wrong = collections.Counter(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in CONVOLUTIONS:
            weight = args[2 if function is CONVOLUTIONS[1] else 1]
            groups = next(value for value in reversed(args) if type(value) is int)  # after it are only bools
            self.dtypes[weight.dtype] += groups > 1
            if groups > 1 and weight.shape[1] % 16 and weight.dtype in LOWERED:
                self.wrong.append((function, tuple(weight.shape), weight.dtype))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", LOWERED)
@pytest.mark.parametrize("name", ["base", "large"])
def test_shapes_that_amx_gets_wrong_are_not_asked_of_it(name, dtype):
    """Promise: no grouped convolution in 16 bits with such channels per group, in a lowered model or under autocast."""
    model, waves = random_model(CONFIGS[name]), noise_waves([4_000, 9_000], seed=1)
    with GroupedConvolutions() as autocast, torch.autocast("cpu", dtype=dtype):
        model.extract(waves, lambd=0.5)
    model.to(dtype)
    with GroupedConvolutions() as lowered:
        model.extract(waves, lambd=0.5)
    assert autocast.dtypes and lowered.dtypes and not autocast.wrong + lowered.wrong


@pytest.mark.parametrize("lowered", [True, False], ids=["bfloat16 model", "autocast"])
def test_pretraining_does_not_either(lowered):
    """Promise: the same for fairseq's positional convolution, forward and backward, and its gradients are finite."""
    model = tiny_model(conv_pos_groups=4)  # 8 channels per group
    source = torch.stack([torch.from_numpy(speechlike(32_000, seed=seed)) for seed in range(2)])
    if lowered:
        model, source = model.bfloat16(), source.bfloat16()
    with GroupedConvolutions() as seen, torch.autocast("cpu", dtype=torch.bfloat16, enabled=not lowered):
        model(source, lambd=0.5)["x"].float().logsumexp(0).sum().backward()
    assert seen.dtypes.total() >= 2 and not seen.wrong
    assert all(weight.grad.isfinite().all() for weight in model.encoder.pos_conv.parameters())


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", LOWERED)
@pytest.mark.parametrize("per_group", [1, 2, 8, 12, 16, 24, 48, 64])
@pytest.mark.parametrize("ours", [Conv1d, Conv2d])
def test_grouped_convolutions_agree_with_float64(ours, per_group, dtype):
    """Promise: results are near the exact ones, whatever the channels per group, the layout and the way to 16 bits; and
    a convolution that bfloat16 gets right is computed in it, while one in float16, very slow on a CPU, is not."""
    torch.manual_seed(0)
    sizes = (15,) if ours is Conv1d else (1, 15)
    padding = tuple(size // 2 for size in sizes)
    conv = ours(4 * per_group, 4 * per_group, sizes, padding=padding, groups=4)
    values = torch.randn(1, 4 * per_group, *(() if ours is Conv1d else (1,)), 40)
    expected = super(ours, conv)._conv_forward(values.double(), conv.weight.double(), conv.bias.double())
    if ours is Conv2d:
        conv, values = conv.to(memory_format=torch.channels_last), values.to(memory_format=torch.channels_last)
    with GroupedConvolutions() as seen, torch.no_grad():
        with torch.autocast("cpu", dtype=dtype):
            results = [conv(values)]
        results.append(conv.to(dtype)(values.to(dtype)))
    assert seen.dtypes == {dtype if dtype == torch.bfloat16 and per_group % 16 == 0 else torch.float32: 2}
    for result in results:
        assert result.dtype == dtype
        assert (result - expected).norm() < 0.02 * expected.norm()


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", LOWERED)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_part_agrees_with_float32(name, dtype):
    """Promise: front end, alpha predictor, positions and a layer in 16 bits are far below the error that is refused."""
    found = dict(errors(random_model(CONFIGS[name]).to(dtype)))
    assert len(found) == 4 and max(found.values()) < LARGEST_ERROR / 3, found


def garbage(original, self, input, *args):
    """A kernel as it is under AMX: well formed, finite, repeatable, unrelated to its input, in 16 bits only."""
    result = original(self, input, *args)
    noise = torch.randn(result.shape, generator=torch.Generator().manual_seed(0))
    return noise.to(result.dtype) if result.dtype in LOWERED else result


@pytest.mark.parametrize("autocast", [True, False])
def test_a_wrong_kernel_is_refused(monkeypatch, autocast):
    """Promise: a wrong 16-bit kernel gives an error with the part and the remedy, not features."""
    monkeypatch.setattr("s3prl_ofa.model.products.uses_onednn", lambda *tensors: False)  # so that a forward is called
    for kind in (nn.Linear, nn.Conv1d):
        model, waves = random_model(CONFIGS["base"]), noise_waves([4_000], seed=1)
        with monkeypatch.context() as patch, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            patch.setattr(kind, "forward", functools.partialmethod(functools.partial(garbage, kind.forward)))
            if not autocast:
                model.bfloat16()
            part = "an encoder layer" if kind is nn.Linear else "the alpha predictor's convolution"
            with pytest.raises(RuntimeError, match=f"{part} in torch.bfloat16 is wrong on this machine.*float32"):
                model.extract(waves)


def test_a_wrong_product_of_inference_is_refused(monkeypatch):
    """Promise: the same for the products that take a module's place in inference."""

    def wrong(rows, weight, bias, gelu):
        return torch.randn_like(F.linear(rows, weight, bias))

    monkeypatch.setattr("s3prl_ofa.model.products.onednn_linear", wrong)
    monkeypatch.setattr("s3prl_ofa.model.products.uses_onednn", lambda rows, *weights: rows.dtype in LOWERED)
    with pytest.raises(RuntimeError, match="the front end in torch.bfloat16 is wrong on this machine"):
        random_model(CONFIGS["base"]).bfloat16().extract(noise_waves([4_000], seed=1))


@torch.no_grad()
def test_weights_too_large_for_float16():
    """Promise: a model that overflows in float16 is not blamed on the machine; the remedy is another dtype."""
    model, waves = random_model(CONFIGS["base"]), noise_waves([4_000], seed=1)
    for weight in model.front_end.parameters():
        weight.mul_(100)
    with pytest.raises(RuntimeError, match=r"the front end gives .* not finite in torch.float16.* use bfloat16 or"):
        copy.deepcopy(model).half().extract(waves)
    assert model.bfloat16().extract(waves).hidden_states[-1].isfinite().all()


def test_kernels_are_looked_at_once(monkeypatch):
    """Promise: kernels are not checked in float32, nor in DataParallel's replicas, and once per dtype in 16 bits."""
    looked = []
    monkeypatch.setattr("s3prl_ofa.model.kernels.errors", lambda model: looked.append(model) or iter(()))
    model, waves = random_model(CONFIGS["base"]), noise_waves([4_000], seed=1)
    model.extract(waves)
    assert not looked
    model.bfloat16().extract(waves)
    model.extract(waves)
    assert len(looked) == 1
    check_kernels(model.half())
    assert len(looked) == 2
    replica = random_model(CONFIGS["base"]).half()
    replica._is_replica = True
    check_kernels(replica)
    assert len(looked) == 2


@pytest.mark.slow
def test_the_other_instruction_set():
    """Promise: tests that depend on the CPU's kernels hold under a second instruction set of the same CPU too."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": OTHER_SET, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cpu_kernels", "-p", "no:cacheprovider", "-p", "no:cov"]
    files = [str(path) for path in sorted(TESTS.rglob("test_*.py")) if "pytest.mark.cpu_kernels" in path.read_text()]
    assert len(files) > 1  # without any, pytest would look for them in all files, which takes minutes
    result = subprocess.run([*command, *files], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert " passed" in result.stdout and " skipped" not in result.stdout
