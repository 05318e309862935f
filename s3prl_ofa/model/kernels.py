"""Checks this machine's 16-bit kernels before they are used, because a wrong one raises no error."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from s3prl_ofa.model.attention import Attention
from s3prl_ofa.model.convolution import lowered_dtype

if TYPE_CHECKING:
    from s3prl_ofa.model.ofa import OFAWav2Vec2

SAMPLES, FRAMES = 4_000, 32
# Relative to the result in float32. bfloat16 stays below 0.05 in every part; a wrong kernel gives 1 or more.
LARGEST_ERROR = 0.3


def check_kernels(model: "OFAWav2Vec2") -> None:
    """Compares each part of a model that runs in 16 bits with itself in float32, on a quarter of a second of noise.

    Runs once per device and dtype of a model, and only in 16 bits. Raises RuntimeError naming the part whose
    result is wrong or not finite: oneDNN and torch have had such kernels for certain CPUs and shapes.
    """
    weight = model.feature_norm.weight
    dtype = lowered_dtype(weight)
    # The weights of DataParallel's replicas are not parameters, so a replica's parts cannot be converted.
    if dtype is None or (weight.device, dtype) in model.checked_kernels or getattr(model, "_is_replica", False):
        return
    with torch.no_grad():
        for name, error in errors(model):
            if not math.isfinite(error):
                raise RuntimeError(
                    f"{name} gives values that are not finite in {dtype}, whose largest number is "
                    f"{torch.finfo(dtype).max:g}; use {'bfloat16 or ' * (dtype == torch.float16)}float32"
                )
            if not error <= LARGEST_ERROR:
                raise RuntimeError(
                    f"{name} in {dtype} is wrong on this machine: a relative error of {error:.2g} against float32 "
                    f"(torch {torch.__version__}, {weight.device}); use float32, or on a CPU try "
                    "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16"
                )
    model.checked_kernels.add((weight.device, dtype))


def errors(model: "OFAWav2Vec2") -> Iterator[tuple[str, float]]:
    """Yields the name and relative error of each part, each on its own input so that errors do not add up."""
    config, weight = model.config, model.feature_norm.weight
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([FRAMES])

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(weight.device)

    def error(part: torch.nn.Module, run: Callable[[torch.nn.Module, Tensor], Tensor], value: Tensor) -> float:
        found = run(part, value).float()
        # With gradients enabled, neither faster paths nor 8 bits are used.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(weight.device.type, enabled=False):
            reference = copy.deepcopy(part).float().requires_grad_(True)
            expected = run(reference, value.float().clone()).detach()
        return float((found - expected).norm() / expected.norm().clamp(min=1e-4))

    wave = 0.1 * noise(max(SAMPLES, 2 * config.receptive_field))
    yield "the front end", error(model.front_end, lambda part, wave: part([wave])[0], wave)
    if model.compressor is not None:
        frames = noise(1, config.conv_dim, FRAMES).to(weight.dtype)
        cnn = model.compressor.alpha_fn.cnn
        yield "the alpha predictor's convolution", error(cnn, lambda part, frames: part(frames), frames)
    rows = noise(FRAMES, config.dim).to(weight.dtype)
    pos_conv, layer = model.encoder.pos_conv, model.encoder.layers[0]
    yield "the positional convolution", error(pos_conv, lambda part, rows: part(rows.t()[None, :, None]), rows)
    attention = Attention(lengths, weight.device)
    yield "an encoder layer", error(layer, lambda part, rows: part(rows, attention), rows)
