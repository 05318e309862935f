"""Reading audio of any format, rate and channel count."""

import numpy as np
import pytest
import soundfile
import soxr

from s3prl_ofa.audio import AudioError, duration, find_audio, load_audio
from s3prl_ofa.model import SAMPLE_RATE


def test_one_sample_rate():
    """audio.py states the rate without importing torch; it must be the model's."""
    from s3prl_ofa import audio

    assert audio.SAMPLE_RATE == SAMPLE_RATE


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_rate_is_16_khz(tmp_path, make_wave, rate):
    """Every rate comes out as 16 kHz, the same as soxr resamples the whole wave, blocks or not."""
    wave = make_wave(70.0, rate=rate)  # longer than two blocks
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="FLOAT")
    loaded = load_audio(tmp_path / "a.wav")
    whole = wave if rate == SAMPLE_RATE else soxr.resample(wave, rate, SAMPLE_RATE)
    assert loaded.dtype == np.float32 and len(loaded) == len(whole) == 70 * SAMPLE_RATE
    assert np.abs(loaded - whole).max() < 1e-3
    assert duration(tmp_path / "a.wav") == pytest.approx(70.0)


def test_channels_are_averaged(tmp_path, make_wave):
    """Stereo is mixed to mono."""
    stereo = np.stack([make_wave(0.2, 1), make_wave(0.2, 2)], 1)
    soundfile.write(tmp_path / "a.wav", stereo, SAMPLE_RATE, subtype="FLOAT")
    assert np.allclose(load_audio(tmp_path / "a.wav"), stereo.mean(1))


def test_formats(audio_folder):
    """flac, wav, mp3 and opus are found in folders and read; other files are left alone."""
    found = find_audio(audio_folder)
    assert [path.name for path in found] == ["a.flac", "a.wav", "b.mp3", "c.opus"]
    assert [len(load_audio(path)) / SAMPLE_RATE for path in found] == pytest.approx([1.0, 0.7, 0.5, 0.8], abs=0.01)


def test_hidden_files_are_no_audio(tmp_path, make_wave):
    """What other systems leave beside audio (._a.wav) is not taken for it."""
    (tmp_path / ".trash").mkdir()
    for name in ("._a.wav", ".trash/b.wav"):
        soundfile.write(tmp_path / name, make_wave(0.1), SAMPLE_RATE)
    assert find_audio(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "empty file"), (b"no audio at all" * 99, "cannot be read as audio")],
)
def test_what_is_no_audio(tmp_path, content, message):
    """A file that is missing, empty or something else is told in one sentence."""
    path = tmp_path / "a.wav"
    if content is not None:
        path.write_bytes(content)
    for function in (load_audio, duration):
        with pytest.raises(AudioError, match=message):
            function(path)


@pytest.mark.parametrize(("name", "rate"), [("a.flac", 16_000), ("a.mp3", 44_100)])
def test_damaged(tmp_path, make_wave, name, rate):
    """A file that ends in the middle is not silently taken for a shorter one."""
    path = tmp_path / name
    soundfile.write(path, make_wave(3.0, rate=rate), rate)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match="damaged"):
        load_audio(path)


def test_no_samples_and_nan(tmp_path):
    """A header without samples, and values that are not finite, are refused."""
    soundfile.write(tmp_path / "a.wav", np.zeros(0, np.float32), SAMPLE_RATE)
    with pytest.raises(AudioError, match="no samples"):
        load_audio(tmp_path / "a.wav")
    wave = np.zeros(1000, np.float32)
    wave[500] = np.nan
    soundfile.write(tmp_path / "b.wav", wave, SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN"):
        load_audio(tmp_path / "b.wav")
