"""Convolutions over time that are correct on every CPU and GPU, in 16 bits too."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ofa.model.products import differentiable, packed

# On CPUs with AMX, oneDNN (torch 2.13) silently gives garbage for a grouped convolution in bfloat16 whose channels per
# group are not a multiple of this: relative error 1.1 at 8 and 12. It is correct at 16, 32, 48 (Base) and 64 (Large),
# and always with ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16. In float16 most CPUs have no such kernel at all: 48 channels per
# group take 26 times as long as in float32.
CHANNELS_PER_GROUP = 16
# Frames that a grouped convolution on a GPU computes from one window: large enough for fast products, which then have
# 24% more to do for a kernel of 128. On an H100 32 is a fifth faster than 16.
BLOCK = 32
WINDOWS_AT_A_TIME = 1024  # bounds the memory of the windows, which are copied: 250 MB for Base in 16 bits


def lowered_dtype(tensor: Tensor) -> torch.dtype | None:
    """The 16-bit dtype, of ``tensor`` or autocast, that products with it are computed in; None in full precision."""
    kind, dtype = tensor.device.type, tensor.dtype
    if dtype == torch.float32 and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    return dtype if dtype.itemsize == 2 else None


class _Exact(nn.modules.conv._ConvNd):
    """A convolution over time that avoids kernels which are wrong or slow.

    On a CPU grouped convolutions that 16-bit kernels get wrong are computed in float32; the result has the 16-bit
    dtype. On a GPU inference is a product of windows: cuDNN rounds float32 to TF32 by default, is slow for wide grouped
    convolutions, and searches for an algorithm again for each length.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kind, dtype = input.device.type, lowered_dtype(input)
        if (
            kind == "cuda"
            and self.is_simple()
            and not torch.compiler.is_compiling()
            and not differentiable(input, weight)
        ):
            return product_of_windows(input, weight, bias, int(self.padding[-1]))
        usable = self.groups == 1 or (dtype == torch.bfloat16 and weight.shape[1] % CHANNELS_PER_GROUP == 0)
        if kind != "cpu" or dtype is None or usable:
            return super()._conv_forward(input, weight, bias)
        with torch.autocast(kind, enabled=False):
            bias = None if bias is None else bias.float()
            return super()._conv_forward(input.float(), weight.float(), bias).to(dtype)

    def is_simple(self) -> bool:
        """Whether this is what :func:`product_of_windows` computes."""
        return self.in_channels == self.out_channels and {*self.stride, *self.dilation} == {1}


class Conv1d(_Exact, nn.Conv1d):
    """``torch.nn.Conv1d``, correct in 16 bits for any number of channels per group."""


class Conv2d(_Exact, nn.Conv2d):
    """``torch.nn.Conv2d``, correct in 16 bits for any number of channels per group."""


def use_exact_groups(model: nn.Module) -> None:
    """Replaces the grouped ``nn.Conv1d`` of another library's model by ours; weights, hooks and names are kept."""
    for module in model.modules():
        if type(module) is nn.Conv1d and module.groups > 1:
            module.__class__ = Conv1d


def product_of_windows(input: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """A convolution over time, stride 1, as products: input (batch, channels, [1,] time), weight (channels, per group,
    [1,] kernel) to (batch, channels, [1,] frames)."""
    dtype = lowered_dtype(input) or input.dtype
    batch, channels, samples = input.shape[0], input.shape[1], input.shape[-1]
    per_group, kernel = weight.shape[1], weight.shape[-1]
    groups, block = channels // per_group, block_size(weight)
    frames = samples + 2 * padding - kernel + 1
    blocks = -(-frames // block)
    rows = input.to(dtype).flatten(2).transpose(1, 2)
    rows = F.pad(rows, (0, 0, padding, blocks * block + kernel - 1 - padding - samples))
    windows = rows.unflatten(2, (groups, per_group)).unfold(1, kernel + block - 1, block)
    windows = windows.permute(2, 0, 1, 4, 3)  # (groups, batch, blocks, steps, channels per group)
    matrix = packed(weight, banded).to(dtype)
    parts = [
        torch.bmm(part.reshape(groups, batch * part.shape[2], -1), matrix).view(groups, batch, part.shape[2], block, -1)
        for part in windows.split(WINDOWS_AT_A_TIME, 2)
    ]
    products = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
    result = products.permute(1, 2, 3, 0, 4).reshape(batch, blocks * block, channels)[:, :frames]
    result = result if bias is None else result + bias.to(dtype)
    return result.transpose(1, 2).view(batch, channels, *input.shape[2:-1], frames)


def block_size(weight: Tensor) -> int:
    return BLOCK if weight.shape[1] < len(weight) else 1


def banded(weight: Tensor) -> Tensor:
    """Matrices (groups, steps * channels, block * channels) that turn windows of ``steps`` rows into ``block`` rows.

    weight: (channels, per group, [1,] kernel). Row i, column j of two channels holds weight i - j of the kernel.
    """
    per_group, block = weight.shape[1], block_size(weight)
    kernel = weight.flatten(2).unflatten(0, (-1, per_group))  # (groups, out, in, kernel)
    steps = kernel.shape[-1] + block - 1
    # Repeated with a period of steps + 1 and read in rows of ``steps``, each row is the one before, moved by one.
    repeated = F.pad(kernel, (0, block)).repeat(1, 1, 1, block)[..., : block * steps]
    band = repeated.unflatten(3, (block, steps))  # (groups, out, in, block, steps)
    return band.permute(0, 4, 2, 3, 1).reshape(len(kernel), steps * per_group, block * per_group)
