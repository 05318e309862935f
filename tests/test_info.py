"""``s3prl-ofa info``: what a checkpoint holds, its frame periods and its cost."""

import json

import pytest

from s3prl_ofa import cli


def test_info(golden_checkpoint, golden_model, capsys):
    """The config, the mean alpha and the table: 11 rates, each period what extract gives on the bundled audio."""
    from s3prl_ofa.info import BUNDLED_AUDIO
    from s3prl_ofa.io.audio import find_audio, load_audio

    assert cli.main(["info", str(golden_checkpoint), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["format"] == "fairseq" and result["config"]["dim"] == 32
    assert result["parameters"] == sum(parameter.numel() for parameter in golden_model.parameters())
    assert [row["lambd"] for row in result["table"]] == [step / 10 for step in range(11)]
    waves = [load_audio(path) for path in find_audio(BUNDLED_AUDIO)]
    for row in result["table"]:
        periods = golden_model.extract(waves, lambd=row["lambd"]).frame_period_ms
        assert row["frame_period_ms"] == pytest.approx(float(periods.mean()))
        formula = 20 / (1 - row["lambd"] * (1 - result["mean_alpha"]))
        assert row["frame_period_ms"] == pytest.approx(formula, rel=0.03)
    costs = [row["macs_per_second"] for row in result["table"]]
    assert costs[1:] == sorted(costs[1:], reverse=True)
    assert cli.main(["info", str(golden_checkpoint)]) == 0
    text = capsys.readouterr().out
    assert f"mean alpha   {result['mean_alpha']:.3f}" in text and "\n  1.0  " in text


def test_info_of_given_audio(golden_checkpoint, audio_folder, capsys):
    """--audio measures on other files; one that cannot be read, or has another format, is bad use."""
    assert cli.main(["info", str(golden_checkpoint), "--audio", str(audio_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["utterances"] == 4
    (audio_folder / "bad.wav").write_bytes(b"bad")
    assert cli.main(["info", str(golden_checkpoint), "--audio", str(audio_folder)]) == 2
    assert "bad.wav" in capsys.readouterr().err
    (audio_folder / "bad.wav").rename(audio_folder / "bad.m4a")
    assert cli.main(["info", str(golden_checkpoint), "--audio", str(audio_folder)]) == 2
    assert "ffmpeg -i bad.m4a" in capsys.readouterr().err


def test_info_of_too_short_audio(golden_checkpoint, audio_folder, make_wave, capsys):
    """A file that is too short for a frame is named by its path."""
    import soundfile

    soundfile.write(audio_folder / "short.wav", make_wave(0.02), 16_000)
    assert cli.main(["info", str(golden_checkpoint), "--audio", str(audio_folder)]) == 2
    said = capsys.readouterr().err
    assert f"{audio_folder / 'short.wav'}: too short: 320 samples" in said and "400" in said


def test_info_without_compressor(tmp_path, capsys):
    """A plain wav2vec 2.0 has one line, at 20 ms."""
    from s3prl_ofa.model import ModelConfig, OFAWav2Vec2

    OFAWav2Vec2(ModelConfig(dim=32, ffn_dim=64, heads=4, layers=1)).save(tmp_path / "plain.safetensors")
    assert cli.main(["info", str(tmp_path / "plain.safetensors"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["mean_alpha"] is None and [row["lambd"] for row in result["table"]] == [0.0]


@pytest.mark.parametrize("frames", [249, 100])
def test_macs(frames):
    """The computed cost is what PyTorch counts for plain layers of the same shape."""
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    from s3prl_ofa.model import ModelConfig
    from s3prl_ofa.model.cost import macs

    config = ModelConfig(dim=96, ffn_dim=160, heads=4, layers=3, compressor="cif")
    samples, width = 80_000, config.conv_dim
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        hidden, channels = torch.empty(1, 1, samples), 1
        for out_channels, kernel, stride in config.conv_layers:
            hidden = nn.Conv1d(channels, out_channels, kernel, stride)(hidden)
            channels = out_channels
        assert hidden.shape[2] == 249 == config.num_frames(samples)
        if frames < 249:
            nn.Conv1d(width, width, 5, padding=2)(hidden)
            nn.Linear(width, 1)(hidden.mT)
        rows = nn.Linear(width, config.dim)(torch.empty(frames, width))
        padding = config.pos_conv_kernel // 2
        padded = nn.functional.pad(rows.mT, (padding, padding - 1))
        nn.Conv1d(config.dim, config.dim, config.pos_conv_kernel, groups=config.pos_conv_groups)(padded[None])
        for _ in range(config.layers):
            for _ in range(4):
                rows = nn.Linear(config.dim, config.dim)(rows)
            rows = (rows @ rows.mT) @ rows
            nn.Linear(config.ffn_dim, config.dim)(nn.Linear(config.dim, config.ffn_dim)(rows))
    assert macs(config, samples, frames) == counter.get_total_flops() // 2
