"""Linear layers for inference: on a CPU oneDNN's, with weights packed once, in the model's dtype or in 8 bits."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

# Each weight's copy in oneDNN's layout, with the function that made it and what it was made from: a weak reference to
# the storage, so that another at the same address is not taken for it, the version, which counts changes in place, and
# some of the numbers, because changes through ``weight.data``, as of merged adapters, are not counted. A copy is
# dropped with its weight.
_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
SAMPLED = 64  # numbers of a weight
# These products are not part of torch's public interface; without them, torch's own linear layers are used.
HAS_PRODUCTS = all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))


def apply_linear(module: nn.Module, rows: Tensor, gelu: bool = False) -> Tensor:
    """What ``module`` gives for rows (rows, in), followed by a GELU if asked; faster for a plain ``nn.Linear``.

    Rows of a padded batch (batch, frames, in), whose shape may have to be exported, are not made faster. A module that
    another library has substituted, or one with hooks or a ``forward`` of its own, is called like any module.
    """
    of_all = nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks
    hooks = module._forward_hooks or module._forward_pre_hooks or of_all
    if type(module) is nn.Linear and "forward" not in vars(module) and not hooks and rows.dim() == 2:
        weights = module.weight, module.bias
        if uses_onednn(rows, *weights) or (gelu and uses_cublas(rows, *weights)):
            return linear(rows, *weights, gelu=gelu)
    product = module(rows)
    return F.gelu(product) if gelu else product


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """``F.linear``, followed by a GELU if asked: rows (rows, in) and weight (out, in) to (rows, out)."""
    if uses_onednn(rows, weight, bias):
        return onednn_linear(rows, weight, bias, gelu)
    if gelu and bias is not None and uses_cublas(rows, weight, bias):
        return torch._addmm_activation(bias, rows, weight.t(), use_gelu=True)
    product = F.linear(rows, weight, bias)
    return F.gelu(product) if gelu else product


def onednn_linear(rows: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    # The last two arguments: the activation has none itself, and the GELU is the exact one.
    copy = packed(weight, torch.ops.mkldnn._reorder_linear_weight)
    fused = gelu and fuses_gelu()
    product = torch.ops.mkldnn._linear_pointwise(rounded(rows), copy, bias, "gelu" if fused else "none", [], "none")
    product = product[: len(rows)]
    return F.gelu(product) if gelu and not fused else product


@functools.cache
def fuses_gelu() -> bool:
    """Whether oneDNN's GELU within a product is faster than torch's after it: with AVX-512, but not with AVX2."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def rounded(rows: Tensor) -> Tensor:
    """``rows`` padded with rows of zeros to the next of 32 sizes per power of two, at least a multiple of 8.

    oneDNN compiles for each number of rows and does not free all of it, whatever its ONEDNN_PRIMITIVE_CACHE_CAPACITY:
    0.6 MB per weight shape, so that memory would keep growing in a run over many lengths.
    """
    step = max(8, 2 ** (len(rows).bit_length() - 6))
    return F.pad(rows, (0, 0, 0, -len(rows) % step)) if len(rows) % step else rows


def uses_onednn(rows: Tensor, *weights: Tensor | None) -> bool:
    """Whether a product is plain inference on a CPU, in a dtype in which oneDNN is fast there."""
    if not is_plain(rows, *weights, kind="cpu"):
        return False
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled and HAS_PRODUCTS):
        return False
    return rows.dtype == torch.float32 or (
        rows.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def uses_cublas(*tensors: Tensor | None) -> bool:
    """Whether the product itself computes a GELU: in 16 bits on a GPU, where rounding exceeds the error of cuBLAS's
    tanh approximation."""
    whole = all(tensor is not None and tensor.dtype.itemsize == 2 for tensor in tensors)
    return whole and is_plain(*tensors, kind="cuda")


def is_plain(*tensors: Tensor | None, kind: str) -> bool:
    """Whether a product of these is inference in a single dtype, on a device of this kind."""
    given = [tensor for tensor in tensors if tensor is not None]
    if torch.compiler.is_compiling() or any(tensor.device.type != kind for tensor in given):
        return False
    same = all(tensor.dtype == given[0].dtype for tensor in given)
    return same and not differentiable(*given) and not torch.is_autocast_enabled(kind)


def differentiable(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def packed(weight: Tensor, pack: Callable[[Tensor], Any]) -> Any:
    """``pack(weight)``, computed when the weight is first used and again when it has changed."""
    # Only for frozen weights: trained ones change after each use. Inference tensors do not count their changes.
    if type(weight) is not nn.Parameter or weight.requires_grad or weight.is_inference():
        return pack(weight.detach())
    source = StorageWeakRef(weight.untyped_storage()), weight._version, pack
    numbers = sample(weight)
    found, seen, copy = _packed.get(weight, (None, None, None))
    if found is None or found[0].cdata != source[0].cdata or found[1:] != source[1:] or differ(numbers, seen):
        copy = pack(weight.detach())
        _packed[weight] = source, numbers.clone(), copy
    return copy


def sample(weight: Tensor) -> Tensor:
    """A view of numbers at equal distances; an odd distance, so that they are of different columns."""
    if not weight.is_contiguous():
        return weight.detach().flatten()[:SAMPLED]
    step = max(1, (weight.numel() // SAMPLED - 1) | 1)
    return weight.as_strided((min(SAMPLED, weight.numel()),), (step,))


def differ(numbers: Tensor, seen: Tensor) -> bool:
    """Whether a sample of a weight has changed; on a GPU, where looking would wait for it, it is taken not to have."""
    return numbers.device.type == "cpu" and not torch.equal(numbers, seen)


class Int8Linear(nn.Linear):
    """An ``nn.Linear`` that computes in 8 bits in inference on a CPU: one scale for each output and for each row.

    Because each row has its own, a row's result does not depend on the others.
    """

    def forward(self, rows: Tensor) -> Tensor:
        if not uses_onednn(rows, self.weight, self.bias):
            return super().forward(rows)
        step = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True)).float() / 127
        step.clamp_(min=1e-30)  # a row of zeros
        # Unsigned, with 128 for zero, for which CPUs have instructions; the half makes the conversion round.
        levels = rounded((rows.float() * step.reciprocal()).add_(128.5).to(torch.uint8))
        weight, scales = packed(self.weight, pack_int8)
        sums = int8_product(levels, 128, weight, scales, rows.dtype)[: len(rows)]
        return torch.addcmul(self.bias, sums, step.to(rows.dtype))


def int8_product(levels: Tensor, zero: int, weight: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """(levels - zero) times a weight of ``pack_int8``: uint8 (rows, in) to (rows, out) of ``dtype``."""
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    return torch.ops.onednn.qlinear_pointwise(
        levels, 1.0, zero, weight, scales, zeros, None, 1.0, 0, dtype, "none", [], "none"
    )


def pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` (out, in) as 8-bit integers in oneDNN's layout, and the scale (out,) of each output."""
    scales = (weight.abs().amax(1).float() / largest_level()).clamp_(min=1e-30)
    levels = (weight.float() / scales[:, None]).round_().to(torch.int8)
    return torch.ops.onednn.qlinear_prepack(levels, None), scales


@functools.cache
def largest_level() -> int:
    """127, or 63 where the instructions at hand add two products in 16 bits, which larger weights would overflow."""
    weight, rows = torch.full((16, 64), 127, dtype=torch.int8), torch.full((16, 64), 255, dtype=torch.uint8)
    packed_weight = torch.ops.onednn.qlinear_prepack(weight, None)
    sums = int8_product(rows, 0, packed_weight, torch.ones(16), torch.float32)
    return 127 if bool((sums == 64 * 255 * 127).all()) else 63


def use_int8(model: nn.Module) -> None:
    """Turns each ``nn.Linear`` of ``model`` into an ``Int8Linear``; its weights stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Int8Linear


def is_int8(model: nn.Module) -> bool:
    """Whether layers of ``model`` compute in 8 bits."""
    return any(isinstance(module, Int8Linear) for module in model.modules())
