"""A GPU gives the same results as the CPU; without a GPU, the same tests compare CPU with CPU.

``benchmarks/gpu.sh`` runs these on a machine that has a GPU. OFA_TEST_DEVICE names another device than the first GPU.
"""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from models import BASE, CONFIGS, conv_layers, noise_waves, random_model
from paths import DEMO, ROOT
from torch.nn.utils.rnn import pad_sequence

import s3prl_ofa
from s3prl_ofa.errors import UsageError
from s3prl_ofa.model import attention, convolution, frontend, products

DEVICE = os.environ.get("OFA_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
LENGTHS = [16_000, 400, 30_000, 9_000, 16_000]
RATES = ({}, {"lambd": 0.5}, {"lambd": [0.0, 0.3, 0.5, 1.0, 1.5]}, {"frame_period_ms": 50.0})
RELATIVE_ERROR, COSINE = 2e-2, 0.999  # of the last hidden state in 16 bits


def command(*arguments: object, cwd: object = None) -> None:
    """Runs ``s3prl-ofa``."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "s3prl_ofa", *map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_extract_command(tmp_path):
    """Promise: the command on a GPU writes what it writes on the CPU."""
    audio = DEMO / "audio" / "test"
    for device in ("cpu", DEVICE):
        command("extract", audio, "--ckpt", "tiny", "--lambd", 0.5, "--device", device, "--out", tmp_path / device)
    files = sorted((tmp_path / "cpu").rglob("*.npy"))
    assert files
    for path in files:
        other = tmp_path / DEVICE / path.relative_to(tmp_path / "cpu")
        np.testing.assert_allclose(np.load(other), np.load(path), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_pretraining(tmp_path):
    """Promise: a pretraining trains on the device, and its checkpoint is a model."""
    command("prepare", "manifest", DEMO / "audio" / "dev", "--out", "manifests", "--valid-fraction", 0.2, cwd=tmp_path)
    manifests = [f"manifests/{split}.tsv" for split in ("train", "valid")]
    command("guidance", "segment", "--manifest", *manifests, "--out", "guidance", "--period-ms", 90, cwd=tmp_path)
    settings = ["optimization.max_update=4", "dataset.num_workers=0", "common.log_format=simple"]
    settings.append(f"common.cpu={str(DEVICE == 'cpu').lower()}")
    folders = ["data=manifests", "guidance=guidance", "out=tiny"]
    command("pretrain", "--config", "ofa_tiny", *folders, *settings, cwd=tmp_path)
    model = s3prl_ofa.load(tmp_path / "tiny" / "checkpoints" / "checkpoint_last.pt", DEVICE)
    out = model.extract(noise_waves([16_000]), lambd=0.5)
    assert bool(torch.isfinite(out.hidden_states[-1]).all())


@pytest.mark.slow
def test_downstream(tmp_path):
    """Promise: S3PRL trains a downstream model on the device."""
    options = ["-m", "train", "-u", "ofa_wav2vec2", "-k", "tiny", "-d", "sid", "--mini", "--voxceleb1", DEMO / "audio"]
    steps = "config.runner.total_steps=2,,config.runner.eval_step=2,,config.runner.save_step=2"
    command("run_downstream", *options, "--device", DEVICE, "-p", tmp_path / "experiment", "-o", steps)
    assert (tmp_path / "experiment" / "states-2.ckpt").is_file()


@pytest.fixture(scope="module")
def speech() -> list[torch.Tensor]:
    """Bundled utterances of several lengths."""
    paths = sorted((DEMO / "audio").rglob("*.opus"))[:6]
    waves = [soundfile.read(path, dtype="float32")[0] for path in paths]
    return [torch.from_numpy(wave[: len(wave) // (1 + index % 3)]) for index, wave in enumerate(waves)]


def assert_close(found, expected) -> None:
    """To 1e-4, from any device."""
    assert torch.equal(found.lengths.cpu(), expected.lengths)
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_float32(name, rate):
    """Promise: hidden states to 1e-4, and the same lengths and times."""
    model, waves = random_model(CONFIGS[name]), noise_waves(LENGTHS, seed=1)
    expected = model.extract(waves, **rate)
    found = model.to(DEVICE).extract([wave.to(DEVICE) for wave in waves], **rate)
    assert found.hidden_states[0].device.type == torch.device(DEVICE).type
    torch.testing.assert_close(found.times.cpu(), expected.times, rtol=0, atol=1e-4)
    assert_close(found, expected)


@pytest.mark.parametrize("rate", [{}, {"lambd": 0.5}, {"frame_period_ms": 60.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits(speech, dtype, rate):
    """Promise: speech keeps its lengths, and its features to 2% and a cosine of 0.999, whatever it is batched with."""
    exact = s3prl_ofa.load("tiny")
    model = s3prl_ofa.load("tiny", DEVICE, dtype)
    batch = model.extract(speech, **rate)
    for index, wave in enumerate(speech):
        expected, alone = exact.extract([wave], **rate), model.extract([wave], **rate)
        frames = int(expected.lengths[0])
        assert batch.lengths[index] == alone.lengths[0] == frames
        reference = expected.hidden_states[-1][0].double()
        for state in (batch.hidden_states[-1][index, :frames], alone.hidden_states[-1][0]):
            value = state.cpu().double()
            assert (value - reference).norm() < RELATIVE_ERROR * reference.norm()
            assert torch.nn.functional.cosine_similarity(value.flatten(), reference.flatten(), dim=0) > COSINE


@pytest.mark.parametrize("rate", [{}, {"lambd": 0.7}], ids=str)
def test_batches(rate):
    """Promise: in float32 an utterance has the same features in every batch, to 1e-5."""
    model, waves = random_model(CONFIGS["base"]).to(DEVICE), noise_waves(LENGTHS, seed=2)
    batch = model.extract(waves, **rate)
    for index, wave in enumerate(waves):
        alone = model.extract([wave], **rate)
        frames = int(alone.lengths[0])
        for one, other in zip(batch.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(one[index, :frames], other[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_windows(name):
    """Promise: the same for attention within windows."""
    model, waves = random_model(CONFIGS[name]), noise_waves(LENGTHS, seed=3)
    expected = model.extract(waves, lambd=0.3, window_s=0.6, overlap_s=0.2)
    assert_close(model.to(DEVICE).extract(waves, lambd=0.3, window_s=0.6, overlap_s=0.2), expected)


@pytest.mark.parametrize("parallel", [False, True], ids=["alone", "DataParallel"])
def test_padded_batch(parallel):
    """Promise: the same for a padded batch, whose padding is not read, also through DataParallel."""
    model, waves = random_model(BASE), noise_waves(LENGTHS, seed=4)
    rates = torch.tensor([0.0, 0.3, 0.5, 1.0, 1.5])
    expected = model.extract(waves, rates)
    batch, lengths = pad_sequence(waves, batch_first=True, padding_value=torch.nan), torch.tensor(LENGTHS)
    model.to(DEVICE)
    run = torch.nn.DataParallel(model) if parallel else model
    assert_close(run(batch.to(DEVICE), lengths.to(DEVICE), rates.to(DEVICE)), expected)


def test_gradients():
    """Promise: hidden states can be differentiated in lambd and in the weights, as on the CPU."""
    gradients = []
    for device in ("cpu", DEVICE):
        model = random_model(BASE).to(device).requires_grad_(True)
        lambd = torch.tensor([0.3] * len(LENGTHS), dtype=torch.float64, device=device, requires_grad=True)
        states = model.extract(noise_waves(LENGTHS, seed=5), lambd).hidden_states
        states[-1].pow(2).sum().backward()
        gradients.append([lambd.grad.cpu().float(), model.front_end.weights[1].grad.cpu()])
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() < RELATIVE_ERROR * other.norm()  # cuDNN's convolutions have 10 bits in training


# What the fast paths want: attention heads of 64, and convolutions as wide as the kernel's tiles.
WIDE = dataclasses.replace(BASE, conv_layers=conv_layers(128), dim=128, heads=2, ffn_dim=256, pos_conv_groups=8)


@pytest.mark.parametrize("rate", [{}, {"lambd": 0.5}], ids=str)
@pytest.mark.parametrize("lowered", [True, False], ids=["16-bit model", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fast_paths(dtype, lowered, rate, monkeypatch):
    """Promise: the same accuracy in 16 bits with the kernels of a GPU, which are used where there is one."""
    used = set()

    def spy(module, name):
        original = getattr(module, name)

        def run(*args, **kwargs):
            used.add(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, run)

    spy(attention, "attend_varlen")
    spy(convolution, "product_of_windows")
    spy(frontend, "windows_product")
    spy(products.torch, "_addmm_activation")
    model, waves = random_model(WIDE), noise_waves(LENGTHS, seed=6)
    expected = model.extract(waves, **rate)
    model.to(DEVICE, dtype if lowered else torch.float32)
    with torch.autocast(torch.device(DEVICE).type, dtype=dtype, enabled=not lowered):
        found = model.extract(waves, **rate)
    assert torch.equal(found.lengths.cpu(), expected.lengths)
    pairs = []
    for index, frames in enumerate(expected.lengths.tolist()):
        pairs.append([out.hidden_states[-1][index, :frames].cpu().double() for out in (found, expected)])
        assert torch.nn.functional.cosine_similarity(*(state.flatten() for state in pairs[-1]), dim=0) > COSINE
    # over all frames: the error of one frame, as the second utterance has, differs too much from frame to frame
    value, reference = (torch.cat(states) for states in zip(*pairs, strict=True))
    assert (value - reference).norm() < RELATIVE_ERROR * reference.norm()
    if DEVICE == "cuda":
        everywhere = {"attend_varlen", "product_of_windows"}
        assert used == everywhere | ({"windows_product", "_addmm_activation"} if lowered else set())


def test_int8_is_refused():
    """Promise: 8 bits are for the CPU, as one sentence says."""
    if torch.device(DEVICE).type == "cpu":
        assert s3prl_ofa.load("tiny", DEVICE, "int8")
        return
    with pytest.raises(UsageError, match="dtype 'int8' is for the CPU"):
        s3prl_ofa.load("tiny", DEVICE, "int8")
