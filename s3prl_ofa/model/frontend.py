"""The convolutional front end: waves to one frame every 20 ms.

The utterances of a batch are laid out in one long wave, each starting at a multiple of the hop, so that every
convolution is a matrix product over the whole batch, time first, without padding to the longest utterance. The few
frames that would span two utterances are dropped at the end.
"""

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ofa.model.config import ModelConfig
from s3prl_ofa.model.packing import positions_of, starts_of
from s3prl_ofa.model.products import linear
from s3prl_ofa.model.windows_kernel import uses_windows_kernel, windows_product

BLOCK = 4  # output frames that share one set of first-layer weights; utterances start at multiples of it
NORM_EPS = 1e-5
STATISTICS_BLOCKS = 4096  # at a time, in float64: 84 MB for 5 minutes
# Output frames computed at a time in float32, twice as many in 16 bits: on a CPU few enough for activations to stay
# near its caches, and enough to keep its threads busy; on a GPU enough to keep kernel launches few.
CHUNK = {"cpu": 128, "cuda": 4096}


class FrontEnd(nn.Module):
    """Seven strided convolutions, as in wav2vec 2.0, with GroupNorm on the first or LayerNorm on each.

    Weights are kept as matrices (kernel * channels in, channels out): row j * channels + c belongs to step j of the
    kernel. GroupNorm here has one channel per group. Its mean and variance over time are those of a single
    utterance and need no pass over the activations: for a linear convolution y = W u of windows u, mean(y) = W mean(u)
    and var(y) = W cov(u) W^T, so normalizing amounts to a set of weights for each utterance.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        channels_in = (1, *(channels for channels, _, _ in config.conv_layers[:-1]))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.norm_weights, self.norm_biases = nn.ParameterList(), nn.ParameterList()
        for index, (inputs, (channels, kernel, _)) in enumerate(zip(channels_in, config.conv_layers, strict=True)):
            weight = torch.empty(channels, kernel * inputs)
            self.weights.append(nn.init.normal_(weight, std=(2.0 / (kernel * inputs)) ** 0.5))
            if config.conv_bias:
                self.biases.append(torch.zeros(channels))
            if config.conv_norm == "layer" or index == 0:
                self.norm_weights.append(torch.ones(channels))
                self.norm_biases.append(torch.zeros(channels))

    def forward(self, waves: list[Tensor]) -> tuple[Tensor, Tensor]:
        """From float32 waves (samples,) to rows (frames of the batch, channels) and frames (batch,) on the CPU."""
        config = self.config
        samples = torch.tensor([len(wave) for wave in waves])
        lengths = config.num_frames(samples)
        # Whole blocks for all samples, so that the normalization sees every window of the utterance.
        blocks = -(-samples // (config.hop * BLOCK))
        wave = self.lay_out(waves, blocks)
        owners = torch.repeat_interleave(torch.arange(len(waves)), blocks)  # the utterance of each block
        utterance = owners.to(wave.device, non_blocking=True)
        if config.conv_norm == "group":
            # The normalization removes any offset; removing it first keeps the float32 products precise. This also
            # changes windows that reach into the padding, but those are not counted.
            means = torch.stack([wave.mean() for wave in waves])
            wave[: len(owners) * config.hop * BLOCK].view(len(owners), -1).sub_(means[utterance][:, None])
        kernels, biases = self.first_layer(wave, samples, blocks, utterance)
        wave = wave.to(self.weights[0].dtype)

        frames = int(blocks.sum()) * BLOCK
        chunk = CHUNK.get(wave.device.type, CHUNK["cuda"]) * 4 // self.weights[0].element_size()
        pieces = (
            self.convolve(wave, start, min(start + chunk, frames), kernels, biases, owners)
            for start in range(0, frames, chunk)
        )
        rows = concatenated(pieces, frames)
        if len(waves) == 1:
            return rows[: int(lengths[0])], lengths
        return rows[positions_of(lengths, starts_of(blocks * BLOCK)).to(rows.device, non_blocking=True)], lengths

    def lay_out(self, waves: list[Tensor], blocks: Tensor) -> Tensor:
        """All waves in one, each zero-padded to whole blocks, with zeros at the end for the last window."""
        size = self.config.hop * BLOCK
        _, kernel, stride = self.config.conv_layers[0]
        zeros = waves[0].new_zeros(size)
        parts = []
        for wave, count in zip(waves, blocks.tolist(), strict=True):
            parts += [wave, zeros[: count * size - len(wave)]]
        return torch.cat([*parts, zeros[: kernel - stride]])

    def windows(self, wave: Tensor, start_block: int, num_blocks: int) -> Tensor:
        """(blocks, windows per block, kernel) view of the first convolution's windows."""
        _, kernel, stride = self.config.conv_layers[0]
        size = self.config.hop * BLOCK
        shape = (num_blocks, size // stride, kernel)
        return wave.as_strided(shape, (size, stride, 1), wave.storage_offset() + start_block * size)

    def first_layer(
        self, wave: Tensor, samples: Tensor, blocks: Tensor, utterance: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Weights (utterances or 1, channels, kernel) and biases (the same, channels) of the first convolution.

        utterance: (blocks,) index of the utterance that each block belongs to.
        """
        weight = self.weights[0]
        bias = self.biases[0] if self.config.conv_bias else None
        if self.config.conv_norm == "layer":
            return weight[None], None if bias is None else bias[None]
        _, kernel, stride = self.config.conv_layers[0]
        count = ((samples - kernel) // stride + 1).to(wave.device, non_blocking=True)
        per_block = self.config.hop * BLOCK // stride
        ends = starts_of(blocks).to(wave.device, non_blocking=True) * per_block + count

        # Sums of windows and of their products, per utterance, over the windows that lie inside it. In float64, because
        # the covariance is a difference of large numbers when the wave has an offset.
        moments = wave.new_zeros(len(blocks), kernel, kernel + 1, dtype=torch.float64)
        for first in range(0, len(utterance), STATISTICS_BLOCKS):
            owners = utterance[first : first + STATISTICS_BLOCKS]
            windows = self.windows(wave, first, len(owners)).double()
            position = torch.arange(len(owners) * per_block, device=wave.device).view(-1, per_block) + first * per_block
            windows.mul_((position < ends[owners][:, None])[..., None])
            sums = torch.cat([windows.transpose(1, 2) @ windows, windows.sum(1)[..., None]], -1)
            moments.index_add_(0, owners, sums)
        moments /= count[:, None, None]
        second, mean = moments[..., :-1], moments[..., -1]
        covariance = second - mean[:, :, None] * mean[:, None, :]

        # A bias of the convolution shifts only the mean, which the normalization removes.
        exact = weight.double()
        variance = torch.einsum("ck,bkj,cj->bc", exact, covariance, exact).clamp(min=0.0)
        scale = self.norm_weights[0].double() * torch.rsqrt(variance + NORM_EPS)
        shift = self.norm_biases[0].double() - (mean @ exact.t()) * scale
        return (exact * scale[:, :, None]).to(weight.dtype), shift.to(weight.dtype)

    def convolve(
        self, wave: Tensor, start: int, stop: int, kernels: Tensor, biases: Tensor | None, owners: Tensor
    ) -> Tensor:
        """Output frames [start, stop) of the long wave, ``start`` a multiple of BLOCK: (stop - start, channels)."""
        config = self.config
        samples = config.receptive_field + (stop - start - 1) * config.hop
        first, size = start // BLOCK, config.hop * BLOCK
        # The last frames reach into the next block. At the end of the wave there is none, and the last frame, which
        # belongs to no utterance, is not computed.
        count = min(-(-samples // size), len(wave) // size - first)
        windows = self.windows(wave, first, count)
        if len(kernels) == 1:
            hidden = self.layer(windows.flatten(0, 1), kernels[0], None if biases is None else biases[0], 0)
        else:
            hidden = self.layer(windows.flatten(0, 1), kernels, biases, 0, owners[first : first + count])
        for index in range(1, len(config.conv_layers)):
            hidden = self.convolution(hidden, index)
        return hidden[: stop - start]

    def convolution(self, rows: Tensor, index: int) -> Tensor:
        """One strided convolution over rows (time, channels), as a product of the matrix of its windows."""
        _, kernel, stride = self.config.conv_layers[index]
        inputs = rows.shape[1]
        outputs = (rows.shape[0] - kernel) // stride + 1
        windows = rows.as_strided((outputs, kernel * inputs), (stride * inputs, 1), rows.storage_offset())
        return self.layer(windows, self.weights[index], self.biases[index] if self.config.conv_bias else None, index)

    def layer(
        self, windows: Tensor, weight: Tensor, bias: Tensor | None, index: int, owners: Tensor | None = None
    ) -> Tensor:
        """The product, LayerNorm over channels where the model has it, and GELU."""
        if self.config.conv_norm == "group":
            return products(windows, weight, bias, True, owners)
        hidden = products(windows, weight, bias, False, owners)
        norm = self.norm_weights[index], self.norm_biases[index]
        return F.gelu(F.layer_norm(hidden, hidden.shape[1:], *norm, NORM_EPS))


def concatenated(pieces: Iterator[Tensor], frames: int) -> Tensor:
    """(frames, channels) of pieces (some of the frames, channels); the end is undefined if they are fewer.

    Without gradients, which would make it slower, one tensor is filled piece by piece: small pieces that wait for each
    other would stay in malloc's heap.
    """
    piece = next(pieces)
    if piece.requires_grad:
        return torch.cat([piece, *pieces])
    rows, end = piece.new_empty(frames, piece.shape[1]), 0
    for each in itertools.chain([piece], pieces):
        rows[end : end + len(each)] = each
        end += len(each)
    return rows


def products(windows: Tensor, weights: Tensor, biases: Tensor | None, gelu: bool, owners: Tensor | None) -> Tensor:
    """Windows (rows, width) times weights (channels, width), followed by a GELU if asked: (rows, channels).

    owners: None, or (runs,) on the CPU: which of the weights (sets, channels, width) each rows // runs rows have.
    """
    if uses_windows_kernel(windows, weights, biases, owners):
        owners = None if owners is None else owners.to(windows.device, non_blocking=True)
        return windows_product(windows, weights, biases, gelu, owners)
    if owners is None:
        return linear(windows, weights, biases, gelu=gelu)
    sets, runs = (values.tolist() for values in owners.unique_consecutive(return_counts=True))
    parts = windows.split([run * (len(windows) // len(owners)) for run in runs])
    results = [
        linear(part, weights[number], None if biases is None else biases[number], gelu=gelu)
        for number, part in zip(sets, parts, strict=True)
    ]
    return results[0] if len(results) == 1 else torch.cat(results)
