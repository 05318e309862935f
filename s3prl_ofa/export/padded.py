"""The whole model on a padded batch, in operations that every runtime has: what the ONNX file computes.

The model itself works on rows without padding, which needs shapes and branches that depend on the data. Here nothing
does but the number of compressed frames, and each utterance still depends neither on the others nor on padding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ofa.model import OFAWav2Vec2
from s3prl_ofa.model.cif import MAX_SLACK, RELATIVE_SLACK, TINY
from s3prl_ofa.model.encoder import EncoderLayer
from s3prl_ofa.model.frontend import NORM_EPS
from s3prl_ofa.model.rate import MAX_LAMBD


def valid(lengths: Tensor, longest: Tensor | int) -> Tensor:
    """(batch, longest) True where an utterance has a sample or frame."""
    return torch.arange(longest, device=lengths.device)[None] < lengths[:, None]


class PaddedModel(nn.Module):
    """``OFAWav2Vec2`` of a padded batch, with weights that it shares.

    layers: how many of the encoder's layers are run. lambd: a fixed rate; None takes it as an input.
    """

    def __init__(self, model: OFAWav2Vec2, layers: int, lambd: float | None) -> None:
        super().__init__()
        self.model, self.lambd = model, lambd
        self.layers = model.encoder.layers[:layers]

    def forward(self, wave: Tensor, length: Tensor, lambd: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states (batch, frames, dim) after the last of ``layers``, zeros as padding, and frames (batch,) int64.

        wave: (batch, samples) float32, 16 kHz mono. length: (batch,) int64, samples of each, at least 400. lambd:
        (batch,) float32, each in [0, 2).
        """
        if lambd is None:
            lambd = torch.full_like(length, self.lambd or 0.0, dtype=torch.float32)
        frames = self.front_end(wave, length)
        lengths = self.model.config.num_frames(length)
        if self.model.compressor is not None and (self.lambd is None or self.lambd > 0):
            frames, lengths = self.compress(frames, lengths, lambd.double())
        return self.encode(self.model.projection(frames), lengths), lengths

    def front_end(self, wave: Tensor, length: Tensor) -> Tensor:
        """(batch, 20 ms frames, conv dim), normalised. Frames beyond an utterance's end hold anything."""
        config, weights = self.model.config, self.model.front_end
        inside = valid(length, wave.shape[1])
        if config.normalize or config.conv_norm == "group":  # the norm of the first layer removes any offset
            wave = torch.where(inside, wave, 0.0)
            wave = wave - (wave.double().sum(1) / length)[:, None].float()
        if config.normalize:
            variance = torch.where(inside, wave, 0.0).double().square().sum(1) / length
            wave = wave * torch.rsqrt(variance + NORM_EPS)[:, None].float()
        hidden, counts = wave[:, None], length
        for index, (_, kernel, stride) in enumerate(config.conv_layers):
            matrix = weights.weights[index]
            weight = matrix.unflatten(1, (kernel, -1)).transpose(1, 2)
            bias = weights.biases[index] if config.conv_bias else None
            hidden = F.conv1d(hidden, weight, bias, stride)
            counts = (counts - kernel) // stride + 1
            if config.conv_norm == "layer":
                norm = weights.norm_weights[index], weights.norm_biases[index]
                hidden = F.layer_norm(hidden.transpose(1, 2), matrix.shape[:1], *norm, NORM_EPS).transpose(1, 2)
            elif index == 0:
                mask = valid(counts, hidden.shape[2])[:, None]
                mean = torch.where(mask, hidden, 0.0).sum(2, keepdim=True) / counts[:, None, None]
                centred = hidden - mean
                variance = torch.where(mask, centred, 0.0).square().sum(2, keepdim=True) / counts[:, None, None]
                gain, shift = weights.norm_weights[0][:, None], weights.norm_biases[0][:, None]
                hidden = centred * torch.rsqrt(variance + NORM_EPS) * gain + shift
            hidden = F.gelu(hidden)
        return self.model.feature_norm(hidden.transpose(1, 2))

    def compress(self, frames: Tensor, lengths: Tensor, lambd: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, compressed frames, conv dim) and their numbers: alpha, rate and integrate-and-fire, as in ``cif``.

        Frame k is the sum of the frames on the unit interval k of the running sum, weighted by what lies on it.
        """
        assert self.model.compressor is not None
        predictor = self.model.compressor.alpha_fn
        inside = valid(lengths, frames.shape[1])
        frames = torch.where(inside[..., None], frames, 0.0)
        alpha = torch.sigmoid(predictor.layer(predictor.cnn(frames.transpose(1, 2)).transpose(1, 2))[..., 0].double())
        rate = lambd[:, None]
        weights = torch.where(rate <= 1, (1 - rate) + rate * alpha, (MAX_LAMBD - rate) * alpha)
        weights = torch.where(inside, weights, 0.0)
        total = weights.sum(1)
        fires = torch.floor(total + (total * RELATIVE_SLACK).clamp(max=MAX_SLACK))
        weights = torch.where(fires[:, None] > 0, weights, weights / total.clamp(min=TINY)[:, None])
        fires = torch.minimum(fires.clamp(min=1).long(), lengths)
        end = weights.cumsum(1)
        begin = end - weights
        unit = torch.arange(fires.max(), device=fires.device, dtype=torch.float64)[None, :, None]
        overlap = torch.minimum(end[:, None], unit + 1) - torch.maximum(begin[:, None], unit)
        return overlap.clamp(min=0).to(frames.dtype) @ frames, fires

    def encode(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        encoder = self.model.encoder
        inside = valid(lengths, hidden.shape[1])
        hidden = torch.where(inside[..., None], hidden, 0.0)
        kernel = encoder.pos_conv.kernel_size[1]
        weight = encoder.pos_conv.weight.squeeze(2)
        places = F.conv1d(
            hidden.transpose(1, 2), weight, encoder.pos_conv.bias, padding=kernel // 2, groups=encoder.pos_conv.groups
        ).transpose(1, 2)
        if kernel % 2 == 0:
            places = places[:, :-1]
        hidden = hidden + F.gelu(places)
        if not encoder.pre_norm:
            hidden = encoder.norm(hidden)
        bias = torch.where(inside, 0.0, float("-inf"))[:, None, None]
        for layer in self.layers:
            hidden = run_layer(layer, hidden, bias)
        if encoder.pre_norm and len(self.layers) == len(encoder.layers):
            hidden = encoder.norm(hidden)
        return torch.where(inside[..., None], hidden, 0.0)


def run_layer(layer: EncoderLayer, hidden: Tensor, bias: Tensor) -> Tensor:
    """One layer of the encoder; bias (batch, 1, 1, frames) is minus infinity where an utterance has no frame."""

    def attend(states: Tensor) -> Tensor:
        batch, frames, width = states.shape
        parts = layer.qkv(states).view(batch, frames, 3, layer.heads, width // layer.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(2, 3) * (width // layer.heads) ** -0.5 + bias
        return layer.out((scores.softmax(3) @ value).transpose(1, 2).reshape(batch, frames, width))

    def feed_forward(states: Tensor) -> Tensor:
        inner = layer.fc1(states)
        return layer.fc2(F.gelu(inner) if layer.gelu else F.relu(inner))

    if layer.pre_norm:
        hidden = hidden + attend(layer.attention_norm(hidden))
        return hidden + feed_forward(layer.final_norm(hidden))
    hidden = layer.attention_norm(hidden + attend(hidden))
    return layer.final_norm(hidden + feed_forward(hidden))
