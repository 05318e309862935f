"""The whole model on a padded batch, in operations that ``torch.export`` and every ONNX runtime have.

The model itself works on rows without padding, which needs shapes and branches that depend on the data. Here only the
number of compressed frames does, and an utterance still depends neither on the others nor on padding.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_ofa.model.attention import PaddedAttention
from s3prl_ofa.model.cif import CifPlan, fixed_plan
from s3prl_ofa.model.compressor import Compressor
from s3prl_ofa.model.config import MIN_FRAME_PERIOD_MS, SAMPLE_RATE
from s3prl_ofa.model.encoder import Encoder
from s3prl_ofa.model.frontend import NORM_EPS
from s3prl_ofa.model.packing import valid_mask
from s3prl_ofa.model.rate import MAX_LAMBD, per_utterance, solve_lambd, wanted_frames

if TYPE_CHECKING:
    from s3prl_ofa.model.ofa import OFAWav2Vec2, PerUtterance

is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 has none


def export_forward(
    model: "OFAWav2Vec2",
    waves: Tensor,
    lengths: Tensor | None,
    lambd: "PerUtterance | None",
    frame_period_ms: "PerUtterance | None",
) -> tuple[tuple[Tensor, ...], Tensor]:
    """``OFAWav2Vec2.forward`` as ``torch.export`` exports it: all hidden states of a padded batch, and their lengths.

    Raises ValueError for a rate out of range and for a model that is not in float32. Values in tensors are not checked,
    because they may differ when the exported program runs.
    """
    if model.feature_norm.weight.dtype != torch.float32:
        raise ValueError(f"torch.export takes a model in float32, found {model.feature_norm.weight.dtype}")
    if lambd is not None and frame_period_ms is not None:
        raise ValueError("give lambd or frame_period_ms, not both")
    batch, samples = waves.shape
    if lengths is None:
        lengths = torch.full((batch,), samples, device=waves.device)

    if isinstance(lambd, int | float) and not 0 <= lambd < MAX_LAMBD:
        raise ValueError(f"lambd must be in [0, {MAX_LAMBD:g}), found {lambd:g}")
    if isinstance(frame_period_ms, int | float) and not MIN_FRAME_PERIOD_MS <= frame_period_ms < math.inf:
        least = f"{MIN_FRAME_PERIOD_MS:g}"
        raise ValueError(f"frame_period_ms must be a finite number of at least {least}, found {frame_period_ms:g}")
    if not isinstance(lambd, Tensor) and lambd == 0:
        lambd = None
    rates = (lambd, "lambd"), (frame_period_ms, "frame_period_ms")
    lambds, periods = (None if value is None else per_utterance(value, batch, name) for value, name in rates)
    states, frames = padded_states(model, waves, lengths, lambds, periods, range(model.config.layers + 1))
    return tuple(states), frames


def padded_states(
    model: "OFAWav2Vec2",
    waves: Tensor,
    lengths: Tensor,
    lambd: Tensor | None,
    frame_period_ms: Tensor | None,
    states: Sequence[int],
) -> tuple[list[Tensor], Tensor]:
    """The hidden states ``states``, (batch, frames, dim) each with zeros as padding, and frames (batch,) int64.

    waves: (batch, samples) float32, 16 kHz mono, padded with anything. lengths: (batch,) int64, samples of each, at
    least 400. lambd, frame_period_ms: one of them (batch,), or none for no compression. Raises ValueError for a rate
    without a compressor.
    """
    frames, counts = front_end(model, waves, lengths), model.config.num_frames(lengths)
    plan = fixed_plan(counts, frames.shape[1], model.config.pooling) if model.config.pooling > 1 else None
    if lambd is not None or frame_period_ms is not None:
        if model.compressor is None:
            raise ValueError("this checkpoint has no compressor: only lambd 0 is possible")
        alpha = alpha_of(model.compressor, frames, counts)
        if frame_period_ms is not None:
            wanted = wanted_frames(lengths.double() / SAMPLE_RATE, frame_period_ms, counts)
            lambd, _ = solve_lambd(wanted, alpha.sum(1), counts)
        assert lambd is not None
        plan = model.compressor.plan(alpha, lambd, counts)
    if plan is not None:
        frames, counts = compress(frames, plan), plan.lengths
    return encode(model.encoder, model.projection(frames), counts, states), counts


def front_end(model: "OFAWav2Vec2", waves: Tensor, lengths: Tensor) -> Tensor:
    """(batch, 20 ms frames, conv dim), normalized. Frames beyond an utterance's end hold anything."""
    config, weights = model.config, model.front_end
    inside = valid_mask(lengths, waves.shape[1])
    waves = torch.where(inside, waves, 0.0)
    if config.normalize or config.conv_norm == "group":  # the norm of the first layer removes any offset
        waves = waves - (waves.double().sum(1) / lengths)[:, None].float()
    if config.normalize:
        variance = torch.where(inside, waves, 0.0).double().square().sum(1) / lengths
        waves = waves * torch.rsqrt(variance + NORM_EPS)[:, None].float()
    hidden, counts = waves[:, None], lengths
    for index, (_, kernel, stride) in enumerate(config.conv_layers):
        matrix = weights.weights[index]
        weight = matrix.unflatten(1, (kernel, -1)).transpose(1, 2)
        hidden = F.conv1d(hidden, weight, weights.biases[index] if config.conv_bias else None, stride)
        counts = (counts - kernel) // stride + 1
        if config.conv_norm == "layer":
            norm = weights.norm_weights[index], weights.norm_biases[index]
            hidden = F.layer_norm(hidden.transpose(1, 2), matrix.shape[:1], *norm, NORM_EPS).transpose(1, 2)
        elif index == 0:
            mask = valid_mask(counts, hidden.shape[2])[:, None]
            mean = torch.where(mask, hidden, 0.0).sum(2, keepdim=True) / counts[:, None, None]
            centered = hidden - mean
            variance = torch.where(mask, centered, 0.0).square().sum(2, keepdim=True) / counts[:, None, None]
            gain, shift = weights.norm_weights[0][:, None], weights.norm_biases[0][:, None]
            hidden = centered * torch.rsqrt(variance + NORM_EPS) * gain + shift
        hidden = F.gelu(hidden)
    return model.feature_norm(hidden.transpose(1, 2))


def alpha_of(compressor: Compressor, frames: Tensor, lengths: Tensor) -> Tensor:
    """The predictor's alpha (batch, frames) in float64, zeros as padding."""
    predictor, inside = compressor.alpha_fn, valid_mask(lengths, frames.shape[1])
    frames = torch.where(inside[..., None], frames, 0.0)
    logit = predictor.layer(predictor.cnn(frames.transpose(1, 2)).transpose(1, 2))[..., 0]
    return torch.where(inside, torch.sigmoid(logit.double()), 0.0)


def compress(frames: Tensor, plan: CifPlan) -> Tensor:
    """Frames (batch, frames, dim) to (batch, compressed frames, dim).

    Frame k is the sum of the frames on the unit interval k of the running sum, weighted by what lies on it.
    """
    longest: Any = plan.lengths.max()  # a symbol while exporting
    if is_exporting():
        longest = longest.item()
        torch._check(longest >= 1)
        torch._check(longest <= frames.shape[1])
    unit = torch.arange(longest, device=frames.device, dtype=torch.float64)[None, :, None]
    overlap = torch.minimum(plan.end[:, None], unit + 1) - torch.maximum(plan.begin[:, None], unit)
    return overlap.clamp(min=0).to(frames.dtype) @ frames


def encode(encoder: Encoder, hidden: Tensor, lengths: Tensor, states: Sequence[int]) -> list[Tensor]:
    """``Encoder.forward`` of a padded batch (batch, frames, dim) with ``lengths`` (batch,)."""
    inside = valid_mask(lengths, hidden.shape[1])
    hidden = torch.where(inside[..., None], hidden, 0.0)
    conv, (_, kernel) = encoder.pos_conv, encoder.pos_conv.kernel_size
    time_last = hidden.transpose(1, 2)
    places = F.conv1d(time_last, conv.weight.squeeze(2), conv.bias, padding=kernel // 2, groups=conv.groups)
    if kernel % 2 == 0:
        places = places[:, :, :-1]
    found = encoder.transform(hidden + F.gelu(places.transpose(1, 2)), PaddedAttention(inside), states)
    return [torch.where(inside[..., None], state, 0.0) for state in found]
