"""Tiny models and waves for the tests, and a slow model of torch's layers to compare with."""

import math
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from paths import GOLDEN
from torch import Tensor, nn

from s3prl_ofa.model import ModelConfig, OFAWav2Vec2

GOLDEN_WAVES = ("1s", "2.37s", "5s")


def conv_layers(width: int) -> tuple[tuple[int, int, int], ...]:
    """wav2vec 2.0's seven convolutions at another width."""
    return ((width, 10, 5), *((width, 3, 2),) * 4, *((width, 2, 2),) * 2)


GOLDEN_CONFIG = ModelConfig(
    conv_layers=conv_layers(32),
    projection=False,
    dim=32,
    ffn_dim=64,
    heads=4,
    layers=2,
    pos_conv_kernel=16,
    pos_conv_groups=4,
    compressor="cif",
)
# Base: GroupNorm on the first convolution, LayerNorm after each block.
BASE = ModelConfig(
    conv_layers=conv_layers(24),
    dim=32,
    ffn_dim=48,
    heads=4,
    layers=3,
    pos_conv_kernel=128,
    pos_conv_groups=16,
    compressor="cif",
)
# Large: LayerNorm on every convolution, with bias, LayerNorm before each block, the wave normalized.
LARGE = ModelConfig(
    conv_layers=conv_layers(24),
    conv_norm="layer",
    conv_bias=True,
    dim=48,
    ffn_dim=64,
    heads=3,
    layers=3,
    pre_norm=True,
    pos_conv_kernel=15,
    pos_conv_groups=4,
    normalize=True,
    compressor="cif",
)
# What real checkpoints do not combine, so that no part leans on another's habit.
MIXED = ModelConfig(
    conv_layers=conv_layers(16),
    conv_bias=True,
    projection=False,
    dim=16,
    ffn_dim=24,
    heads=1,
    layers=2,
    pre_norm=True,
    pos_conv_kernel=8,
    pos_conv_groups=1,
    activation="relu",
    compressor="cif",
)
CONFIGS = {"base": BASE, "large": LARGE, "mixed": MIXED}


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Weights in which nothing is 0 or 1, so that a forgotten scale or bias shows."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, tensor in OFAWav2Vec2(config).weights().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            weights[name] = noise * 1.4 / math.sqrt(tensor[0].numel())
        elif name.endswith("weight"):
            weights[name] = 1 + 0.3 * noise
        else:
            weights[name] = 0.3 * noise
    if config.compressor == "cif":
        weights["cif_subsampler.alpha_fn.layer.2.bias"] = torch.tensor([-0.5])
    return weights


def random_model(config: ModelConfig, seed: int = 0) -> OFAWav2Vec2:
    """A model whose weights are all in play; its mean alpha is between 0.1 and 0.8, whatever the seed."""
    model = OFAWav2Vec2(config)
    model.load_weights(random_weights(config, seed))
    return model


def golden_weights() -> dict[str, Tensor]:
    """The reference's tiny trained model, pretraining weights included."""
    return torch.load(GOLDEN / "ref_tiny.pt", weights_only=True)["model"]


def golden_model(dtype: torch.dtype = torch.float32) -> OFAWav2Vec2:
    model = OFAWav2Vec2(GOLDEN_CONFIG)
    model.load_weights(golden_weights())
    return model.to(dtype)


def golden_wave(name: str) -> Tensor:
    return torch.from_numpy(np.load(GOLDEN / f"ref_tiny_wav_{name}.npy")).float().flatten()


def noise_waves(lengths: list[int], seed: int = 0) -> list[Tensor]:
    """Colored noise of varying loudness; (samples,) each."""
    generator = torch.Generator().manual_seed(seed)
    waves = []
    for samples in lengths:
        noise = torch.randn(samples + 8, generator=generator)
        smooth = F.avg_pool1d(noise[None, None], 8, 1)[0, 0, :samples]
        phase = torch.rand(1, generator=generator) * 6
        loudness = 0.55 + 0.45 * torch.sin(torch.arange(samples) * (2 * math.pi * 3 / 16000) + phase)
        waves.append(0.3 * loudness * (smooth + 0.3 * noise[:samples]))
    return waves


def slow_cif(frames: Tensor, weights: Tensor) -> tuple[Tensor, list[float], list[int]]:
    """Integrate-and-fire of one utterance, frame by frame, in exact arithmetic.

    frames: (frames, dim). weights: (frames,). Returns the fired frames in float64, the places (in input frames) where
    the sum crosses an integer, beginning with 0, and the frame on which the middle of each input frame falls.
    """
    total, fired, crossings, owners = Fraction(0), [], [0.0], []
    current = torch.zeros(frames.shape[1], dtype=torch.float64)
    for place, (frame, weight) in enumerate(zip(frames.double(), weights.tolist(), strict=True)):
        weight = Fraction(weight)
        before, total = total, total + weight
        owners.append(math.floor(before + weight / 2))
        if math.floor(total) > math.floor(before):
            needed = math.floor(total) - before
            fired.append(current + float(needed) * frame)
            crossings.append(place + float(needed / weight))
            current = float(weight - needed) * frame
        else:
            current = current + float(weight) * frame
    stacked = torch.stack(fired) if fired else torch.zeros(0, frames.shape[1], dtype=torch.float64)
    return stacked, crossings, [min(owner, max(len(fired), 1) - 1) for owner in owners]


def attention(x: Tensor, weights: dict[str, Tensor], prefix: str, heads: int) -> Tensor:
    """torch's own attention module, in float64, on one utterance (frames, dim)."""
    dim = x.shape[1]
    module = nn.MultiheadAttention(dim, heads, batch_first=True, dtype=x.dtype).eval()
    parts = [f"{prefix}.{part}_proj" for part in "qkv"]
    module.load_state_dict(
        {
            "in_proj_weight": torch.cat([weights[f"{part}.weight"] for part in parts]),
            "in_proj_bias": torch.cat([weights[f"{part}.bias"] for part in parts]),
            "out_proj.weight": weights[f"{prefix}.out_proj.weight"],
            "out_proj.bias": weights[f"{prefix}.out_proj.bias"],
        }
    )
    return module(x[None], x[None], x[None], need_weights=False)[0][0]


class SlowModel:
    """wav2vec 2.0 with the compressor on one utterance, from torch.nn layers alone, by default in float64."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> None:
        self.config = config
        self.dtype = dtype
        self.weights = {name: tensor.detach().to(dtype) for name, tensor in weights.items()}

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-5)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def conv_frames(self, wave: Tensor) -> Tensor:
        """(frames, conv dim) after the LayerNorm that follows the front end."""
        wave = wave.to(self.dtype)
        if self.config.normalize:
            wave = (wave - wave.mean()) / torch.sqrt(wave.var(unbiased=False) + 1e-5)
        x = wave[None, None]
        for index, (channels, _, stride) in enumerate(self.config.conv_layers):
            name = f"feature_extractor.conv_layers.{index}"
            x = F.conv1d(x, self.weights[f"{name}.0.weight"], self.weights.get(f"{name}.0.bias"), stride)
            if self.config.conv_norm == "layer":
                x = self.norm(x.transpose(1, 2), f"{name}.2.1").transpose(1, 2)
            elif index == 0:
                x = F.group_norm(x, channels, self.weights[f"{name}.2.weight"], self.weights[f"{name}.2.bias"], 1e-5)
            x = F.gelu(x)
        return self.norm(x[0].T, "layer_norm")

    def alpha(self, frames: Tensor) -> Tensor:
        name = "cif_subsampler.alpha_fn"
        x = F.conv1d(frames.T[None], self.weights[f"{name}.cnn.weight"], self.weights[f"{name}.cnn.bias"], padding=2)
        x = F.relu(self.norm(x[0].T, f"{name}.layer.0"))
        return torch.sigmoid(self.linear(x, f"{name}.layer.2"))[:, 0]

    def encode(self, x: Tensor) -> list[Tensor]:
        """From compressed frames (frames, conv dim) to each layer's input and the output."""
        config = self.config
        if config.projection:
            x = self.linear(x, "post_extract_proj")
        kernel = config.pos_conv_kernel
        position = F.conv1d(
            x.T[None],
            self.weights["encoder.pos_conv.0.weight"],
            self.weights["encoder.pos_conv.0.bias"],
            padding=kernel // 2,
            groups=config.pos_conv_groups,
        )[0].T[: len(x)]
        x = x + F.gelu(position)
        if not config.pre_norm:
            x = self.norm(x, "encoder.layer_norm")
        activation = {"gelu": F.gelu, "relu": F.relu}[config.activation]
        states = [x]
        for index in range(config.layers):
            name = f"encoder.layers.{index}"
            inner = self.norm(x, f"{name}.self_attn_layer_norm") if config.pre_norm else x
            x = x + attention(inner, self.weights, f"{name}.self_attn", config.heads)
            x = x if config.pre_norm else self.norm(x, f"{name}.self_attn_layer_norm")
            inner = self.norm(x, f"{name}.final_layer_norm") if config.pre_norm else x
            x = x + self.linear(activation(self.linear(inner, f"{name}.fc1")), f"{name}.fc2")
            x = x if config.pre_norm else self.norm(x, f"{name}.final_layer_norm")
            states.append(x)
        if config.pre_norm:
            states[-1] = self.norm(x, "encoder.layer_norm")
        return states

    def __call__(self, wave: Tensor, lambd: float = 0.0) -> list[Tensor]:
        """Each layer's input, then the output: (frames, dim)."""
        frames = self.conv_frames(wave)
        if lambd:
            alpha = self.alpha(frames)
            weights = (1 - lambd) + lambd * alpha if lambd <= 1 else (2 - lambd) * alpha
            if float(weights.sum()) < 1:
                weights = weights / weights.sum()
                frames = (weights[:, None] * frames).sum(0, keepdim=True)
            else:
                frames = slow_cif(frames, weights)[0].to(self.dtype)
        return self.encode(frames)
