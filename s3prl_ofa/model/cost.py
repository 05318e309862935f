"""What a model costs to run, in multiply-accumulates (MACs), computed from its configuration."""

import torch

from s3prl_ofa.model import SAMPLE_RATE, ModelConfig
from s3prl_ofa.model.compressor import KERNEL


def macs(config: ModelConfig, samples: int, frames: int) -> int:
    """MACs of one utterance of ``samples`` samples whose hidden states have ``frames`` frames.

    Counts convolutions, linear layers and the two products of attention; leaves out norms, activations and the sums of
    integrate-and-fire, which are below 1%. ``frames`` equal to ``config.num_frames(samples)`` means lambd 0, where the
    alpha predictor does not run.
    """
    total, length, width = 0, samples, 1
    for channels, kernel, stride in config.conv_layers:
        length = (length - kernel) // stride + 1
        total += length * width * channels * kernel
        width = channels
    if config.compressor == "cif" and frames != length:
        total += length * (width * width * KERNEL + width)
    if config.projection:
        total += frames * width * config.dim
    total += frames * config.dim * (config.dim // config.pos_conv_groups) * config.pos_conv_kernel
    attention = 4 * frames * config.dim**2 + 2 * frames**2 * config.dim
    feed_forward = 2 * frames * config.dim * config.ffn_dim
    return total + config.layers * (attention + feed_forward)


def macs_per_second(config: ModelConfig, samples: torch.Tensor, frames: torch.Tensor) -> float:
    """MACs per second of audio over several utterances: samples (utterances,), frames (utterances,)."""
    total = sum(macs(config, *pair) for pair in zip(samples.tolist(), frames.tolist(), strict=True))
    return total * SAMPLE_RATE / int(samples.sum())
