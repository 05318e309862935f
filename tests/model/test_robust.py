"""What the model and its files meet in practice: autocast, read-only arrays, weights and values that are not finite."""

import json
import os
import warnings

import numpy as np
import pytest
import torch
from models import BASE, CONFIGS, GOLDEN_CONFIG, golden_weights, noise_waves, random_model
from safetensors.torch import save_file

from s3prl_ofa.checkpoint import load
from s3prl_ofa.errors import CheckpointError
from s3prl_ofa.model import OFAWav2Vec2
from s3prl_ofa.model.storage import FORMAT

LENGTHS = [16_000, 4_000, 30_000, 9_000]


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("name", CONFIGS)
def test_autocast_keeps_the_frames(name):
    """Promise: S3PRL's fp16 (autocast around the upstream) works, ragged batches too, and alpha stays out of half
    precision: its spread around the float32 alpha is that of the convolutions alone."""
    model, waves = random_model(CONFIGS[name]), noise_waves(LENGTHS, seed=1)
    exact = model.extract(waves, frame_period_ms=50.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model.extract(waves, frame_period_ms=50.0)
    assert torch.equal(out.lengths, exact.lengths)
    for found, expected in zip(out.hidden_states, exact.hidden_states, strict=True):
        assert found.isfinite().all()
        assert (found - expected).norm() < 0.1 * expected.norm()


@pytest.mark.cpu_kernels
def test_the_predictor_s_last_steps_ignore_autocast():
    """Promise: under autocast the number of frames is decided in float32: with a convolution that only passes on what
    half precision holds exactly, alpha is bit for bit that of float32."""
    predictor = random_model(BASE).compressor.alpha_fn
    with torch.no_grad():
        predictor.cnn.weight.zero_()
        predictor.cnn.weight[:, :, 2] = torch.eye(len(predictor.cnn.weight))
        predictor.cnn.bias.zero_()
    rows = torch.randint(-8, 9, (50, BASE.conv_dim), generator=torch.Generator().manual_seed(0)).float()
    exact = predictor(rows, torch.tensor([50]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(predictor(rows, torch.tensor([50])), exact)


def test_read_only_arrays_are_taken_without_a_word():
    """Promise: memory-mapped and otherwise read-only arrays are waves like others; no warning, no change to them."""
    wave = noise_waves([8_000], seed=0)[0].numpy()
    wave.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OFAWav2Vec2(BASE).extract([wave, np.asfortranarray(wave)[::2]])


def test_weights_that_are_not_finite_are_named():
    """Promise: a checkpoint with NaN or infinite weights is refused by their names, not run to NaN features."""
    weights = golden_weights()
    weights["encoder.layers.1.fc1.bias"] = torch.full_like(weights["encoder.layers.1.fc1.bias"], torch.nan)
    with pytest.raises(ValueError, match="encoder.layers.1.fc1.bias holds nan"):
        OFAWav2Vec2(GOLDEN_CONFIG).load_weights(weights)


def test_frames_that_overflow_are_refused():
    """Promise: samples on another scale that overflow float16 give a sentence, not NaN features of one frame."""
    model = random_model(CONFIGS["large"])
    model.config.__dict__["normalize"] = False
    model.half()
    with torch.no_grad():
        model.front_end.weights[0].mul_(1e4)
    with pytest.raises(ValueError, match="not finite in torch.float16"):
        model.extract([1e4 * noise_waves([8_000], seed=0)[0]], lambd=0.5)


def test_a_fifo_is_no_checkpoint(tmp_path):
    """Promise: what is not a regular file is refused, not waited for."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load(tmp_path / "pipe")


@pytest.mark.parametrize("key,value", [("config", "[" * 200_000), ("model_cfg", "[" * 200_000), ("model_cfg", "{")])
def test_hostile_metadata_is_refused(tmp_path, key, value):
    """Promise: metadata that is no JSON, or has no end, is a CheckpointError that names the key."""
    metadata = {"format": FORMAT, "config": json.dumps(BASE.to_dict()), key: value}
    save_file({"mask_emb": torch.zeros(1)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(CheckpointError, match=key):
        load(tmp_path / "x.safetensors")


def test_conv_layers_must_be_whole_numbers():
    """Promise: fractional or infinite kernels in a file's config are refused, not cut to whole ones."""
    for value in (2.5, float("inf"), "2"):
        with pytest.raises(ValueError, match="conv_layers"):
            type(BASE)(conv_layers=((8, value, 2),), dim=8, heads=1, pos_conv_groups=1)
