"""The ONNX file gives the model's hidden states, at any rate and length, in runtimes without torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from models import CONFIGS, noise_waves, random_model
from paths import CKPT

from s3prl_ofa import cli, load
from s3prl_ofa.export.command import export
from s3prl_ofa.export.module import ExportedModel

RATES = [*(step / 10 for step in range(11)), 0.05, 0.333, 0.777, 0.98, 1.1, 1.25, 1.5, 1.75, 1.9]
LENGTHS = (16_000, 400, 9_001, 23_456, 719, 720)
CLOSE = 1e-4
WITHOUT_TORCH = """
import sys
import numpy as np
runtime, model, inputs, outputs = sys.argv[1:]
given, found = dict(np.load(inputs)), {}
names = ("wave", "length", "lambd")
if runtime == "onnxruntime":
    import onnxruntime
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    run = lambda batch: session.run(None, batch)
else:
    import openvino
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    run = lambda batch: compiled([batch[name] for name in names]).to_tuple()
for index, lambd in enumerate(given["rates"]):
    batch = {**{name: given[name] for name in names[:2]}, "lambd": np.full(len(given["length"]), lambd, np.float32)}
    found[f"states{index}"], found[f"lengths{index}"] = run(batch)
np.savez(outputs, **found)
assert "torch" not in sys.modules
"""


def padded(waves):
    """A batch, padded with what must not be heard, and its lengths."""
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True, padding_value=7.0)
    return batch, torch.tensor([len(wave) for wave in waves])


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS)
def test_the_padded_model(config):
    """Every kind of network, at rates on both sides of 1 and one for each utterance."""
    model, waves = random_model(CONFIGS[config]), noise_waves(LENGTHS)
    batch, lengths = padded(waves)
    mixed = torch.tensor([0.0, 1.9, 0.4, 1.2, 0.9, 0.2])
    for lambd in (*(torch.full((len(waves),), rate) for rate in (0.0, 0.5, 1.0, 1.6)), mixed):
        expected = model.extract(waves, lambd=lambd)
        states, frames = ExportedModel(model, model.config.layers, None)(batch, lengths, lambd)
        assert torch.equal(frames, expected.lengths)
        torch.testing.assert_close(states, expected.hidden_states[-1], atol=CLOSE, rtol=0)
    states, _ = ExportedModel(model, 1, 0.5)(batch, lengths)
    expected = model.extract(waves, lambd=0.5, layers=[1]).hidden_states[0]
    torch.testing.assert_close(states, expected, atol=CLOSE, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_twenty_rates_without_torch(runtime, tmp_path):
    """Lengths are identical and hidden states within 1e-4, of mixed lengths in a batch."""
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    assert cli.main(["export", CKPT, str(tmp_path / "model.onnx"), "--lambd-input"]) == 0
    model, waves = load(CKPT), noise_waves(LENGTHS)
    batch, lengths = padded(waves)
    rates = np.array(RATES, np.float32)
    assert len(rates) == 20
    np.savez(tmp_path / "in.npz", wave=batch.numpy(), length=lengths.numpy(), rates=rates)
    files = [tmp_path / name for name in ("model.onnx", "in.npz", "out.npz")]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, runtime, *map(str, files)], check=True)
    found = np.load(tmp_path / "out.npz")
    for index, rate in enumerate(rates):
        expected = model.extract(waves, lambd=torch.full((len(waves),), float(rate)))
        assert found[f"lengths{index}"].tolist() == expected.lengths.tolist(), rate
        assert np.abs(found[f"states{index}"] - expected.hidden_states[-1].numpy()).max() < CLOSE, rate


def test_fixed_rate_and_layers(tmp_path, capsys):
    """Without --lambd-input the file has the rate; --layers cuts the encoder; a batch of one runs too."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    target = tmp_path / "model.onnx"
    model, (wave,) = load(CKPT), noise_waves([12_345])
    feeds = {"wave": wave[None].numpy(), "length": np.array([12_345])}
    for options, rate, layer in (([], 0.0, 2), (["--lambd", "0.6", "--layers", "1", "--force"], 0.6, 1)):
        assert cli.main(["export", CKPT, str(target), *options]) == 0
        session = runtime.InferenceSession(target, providers=["CPUExecutionProvider"])
        assert [given.name for given in session.get_inputs()] == ["wave", "length"]
        states, frames = session.run(None, feeds)
        expected = model.extract([wave], lambd=rate, layers=[layer])
        assert frames.tolist() == expected.lengths.tolist()
        assert np.abs(states - expected.hidden_states[0].numpy()).max() < CLOSE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.bin"], "model.bin: expected a file *.onnx"),
        (["there.onnx"], "there.onnx exists; --force (force=True) overwrites it"),
        (["model.onnx", "--layers", "3"], "--layers must be a whole number from 0 to 2, found 3"),
        (["model.onnx", "--lambd", "2"], "lambd must be in [0, 2), found 2"),
    ],
)
def test_bad_use(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.onnx").touch()
    assert cli.main(["export", CKPT, *options]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]


def test_without_a_compressor(tmp_path):
    model = random_model(type(CONFIGS["base"])(**{**CONFIGS["base"].to_dict(), "compressor": "none"}))
    model.save(tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="has no compressor, so only --lambd 0"):
        export(tmp_path / "plain.safetensors", tmp_path / "model.onnx", lambd=0.5)
    export(tmp_path / "plain.safetensors", tmp_path / "model.onnx", lambd=0.0)
    assert (tmp_path / "model.onnx").stat().st_size > 10_000
