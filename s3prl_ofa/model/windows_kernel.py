"""A Triton kernel for the front end on a GPU: products of overlapping windows, without copies of them, with their GELU.

A library's products need windows that do not overlap, so each convolution would first write its input 1.5 times, and
write and read its output once more for the GELU. In 16 bits the front end is limited by memory bandwidth.
"""

import functools
import logging

import torch
from torch import Tensor

from s3prl_ofa.model.products import is_plain

try:
    import triton
    import triton.language as tl
except ImportError:  # a dependency of torch only where there are GPUs
    triton = None

logger = logging.getLogger(__name__)

TILE = 128  # windows, and outputs of each, that one program computes
STEP = 64  # entries of a window that it multiplies at a time
SHORT = 16  # windows of up to this many entries are multiplied at once
STAGES = 4  # steps whose loads are in flight, 32 KiB each; the fastest on an H100

if triton is not None:

    @triton.jit(do_not_specialize=["rows"])
    def windows_kernel(
        windows,
        weights,
        biases,
        owners,
        out,
        rows,
        stride,
        WIDTH: tl.constexpr,
        CHANNELS: tl.constexpr,
        TILES_PER_OWNER: tl.constexpr,
        HAS_BIAS: tl.constexpr,
        GELU: tl.constexpr,
        TILE: tl.constexpr,
        ACROSS: tl.constexpr,
        STEP: tl.constexpr,
    ):
        """One tile (TILE rows, ACROSS channels) of ``out``; tiles of the same rows follow each other."""
        across: tl.constexpr = CHANNELS // ACROSS
        tile = tl.program_id(0) // across
        row = tile * TILE + tl.arange(0, TILE)
        channel = tl.program_id(0) % across * ACROSS + tl.arange(0, ACROSS)
        step = tl.arange(0, STEP)
        if TILES_PER_OWNER > 0:
            owner = tl.load(owners + tile // TILES_PER_OWNER)
            weights += owner * CHANNELS * WIDTH
            biases += owner * CHANNELS
        # The last tile reads the last row again instead of what lies beyond.
        window = windows + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * stride + step[None, :]
        weight = weights + channel[None, :] * WIDTH + step[:, None]
        total = tl.zeros((TILE, ACROSS), tl.float32)
        for start in range(0, WIDTH, STEP):
            if WIDTH % STEP == 0:
                one, other = tl.load(window), tl.load(weight)
            else:
                one = tl.load(window, mask=step[None, :] < WIDTH - start, other=0.0)
                other = tl.load(weight, mask=step[:, None] < WIDTH - start, other=0.0)
            total = tl.dot(one, other, total)
            window += STEP
            weight += STEP
        if HAS_BIAS:
            total += tl.load(biases + channel)[None, :]
        if GELU:  # by tanh, as in cuBLAS, whose error is below that of 16 bits
            total *= tl.sigmoid(1.5957691216057308 * total * (1 + 0.044715 * total * total))
        place = out + row.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
        tl.store(place, total.to(out.dtype.element_ty), mask=row[:, None] < rows)


def windows_product(
    windows: Tensor, weights: Tensor, biases: Tensor | None, gelu: bool, owners: Tensor | None = None
) -> Tensor:
    """Windows (rows, width), which may overlap, times weights, followed by a GELU if requested: (rows, channels).

    weights: (channels, width), biases: (channels,). With ``owners`` (runs,) they are (sets, channels, width) and (sets,
    channels), and each run of rows // runs rows uses the set of its owner.
    """
    rows, (channels, width) = len(windows), weights.shape[-2:]
    weights, biases = weights.contiguous(), None if biases is None else biases.contiguous()
    out = windows.new_empty(rows, channels)
    grid = -(-rows // TILE) * (channels // TILE)
    with torch.cuda.device_of(windows):
        windows_kernel[(grid,)](
            windows,
            weights,
            weights if biases is None else biases,
            weights if owners is None else owners,
            out,
            rows,
            windows.stride(0),
            WIDTH=width,
            CHANNELS=channels,
            TILES_PER_OWNER=0 if owners is None else rows // len(owners) // TILE,
            HAS_BIAS=biases is not None,
            GELU=gelu,
            TILE=TILE,
            ACROSS=TILE,
            STEP=SHORT if width <= SHORT else STEP,
            num_warps=8,
            num_stages=stages(windows.device),
        )
    return out


@functools.cache
def stages(device: torch.device) -> int:
    """Up to STAGES, as many as the shared memory of ``device`` holds in 16 bits."""
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return min(STAGES, properties["max_shared_mem"] // (2 * TILE * STEP * 2))


def uses_windows_kernel(windows: Tensor, weights: Tensor, biases: Tensor | None, owners: Tensor | None) -> bool:
    """Whether the kernel can be used: for inference in 16 bits on a GPU for which Triton compiles."""
    if windows.dtype.itemsize != 2 or not is_plain(windows, weights, biases, kind="cuda"):
        return False
    channels, width = weights.shape[-2:]
    whole = owners is None or len(windows) % (len(owners) * TILE) == 0
    return whole and channels % TILE == 0 and (width <= SHORT or width % STEP == 0) and compiles(windows.device)


@functools.cache
def compiles(device: torch.device) -> bool:
    """Whether Triton runs on ``device``: it needs a C compiler, a GPU that it supports and enough shared memory."""
    if triton is None:
        return False
    ones = torch.ones(TILE, 2 * STEP, dtype=torch.float16, device=device)
    try:
        return bool((windows_product(ones, ones, None, gelu=False) == 2 * STEP).all())
    except Exception as error:  # of many kinds, also from the compilers that it calls
        logger.info("no Triton on %s, the front end is slower: %s", device, " ".join(str(error).split()))
        return False
