"""Grouped convolutions that give correct results on every CPU, in 16 bits too."""

import torch
from torch import Tensor, nn

# On CPUs with AMX, oneDNN (torch 2.13) silently gives garbage for a grouped convolution in bfloat16 whose channels per
# group are not a multiple of this: relative error 1.1 at 8 and 12. It is correct at 16, 32, 48 (Base) and 64 (Large),
# and always with ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16. In float16 most CPUs have no such kernel at all: 48 channels per
# group take 26 times as long as in float32.
CHANNELS_PER_GROUP = 16


def lowered_dtype(tensor: Tensor) -> torch.dtype | None:
    """The 16-bit dtype, of ``tensor`` or autocast, that products with it are computed in; None in full precision."""
    kind, dtype = tensor.device.type, tensor.dtype
    if dtype == torch.float32 and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    return dtype if dtype.itemsize == 2 else None


class _ExactGroups(nn.modules.conv._ConvNd):
    """Computes in float32 the convolutions that 16-bit kernels get wrong; the result has the 16-bit dtype."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kind, dtype = input.device.type, lowered_dtype(input)
        usable = dtype == torch.bfloat16 and weight.shape[1] % CHANNELS_PER_GROUP == 0
        if kind != "cpu" or dtype is None or usable:
            return super()._conv_forward(input, weight, bias)
        with torch.autocast(kind, enabled=False):
            bias = None if bias is None else bias.float()
            return super()._conv_forward(input.float(), weight.float(), bias).to(dtype)


class Conv1d(_ExactGroups, nn.Conv1d):
    """``torch.nn.Conv1d``, correct in 16 bits for any number of channels per group."""


class Conv2d(_ExactGroups, nn.Conv2d):
    """``torch.nn.Conv2d``, correct in 16 bits for any number of channels per group."""


def use_exact_groups(model: nn.Module) -> None:
    """Replaces the grouped ``nn.Conv1d`` of another library's model by ours; weights, hooks and names are kept."""
    for module in model.modules():
        if type(module) is nn.Conv1d and module.groups > 1:
            module.__class__ = Conv1d
