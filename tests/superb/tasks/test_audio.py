"""The audio of asr, pr and sid: a file that is not 16 kHz mono, too short or damaged is named by all of them."""

import importlib
import pathlib
import types

import numpy as np
import pytest
import soundfile
from paths import REF_TINY
from superb_corpora import make_corpora, noise

from s3prl_ofa import cli
from s3prl_ofa.io import scan
from s3prl_ofa.io.audio import AudioError, check_speech
from s3prl_ofa.superb import registration
from s3prl_ofa.superb.compat import shims

MODULES = {"asr": "s3prl.downstream.asr.dataset", "pr": "s3prl.downstream.ctc.data"}
MODULES["sid"] = "s3prl.downstream.voxceleb1.dataset"


def write_stereo(path):
    soundfile.write(path, np.stack([noise(1.0, 0)] * 2, 1), 16_000)


def write_fast(path):
    soundfile.write(path, noise(1.0, 0), 48_000)


def write_short(path):
    soundfile.write(path, noise(1.0, 0)[:300], 16_000)


def write_damaged(path):
    soundfile.write(path, noise(3.0, 0), 16_000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(200) + content[len(content) // 2 + 200 :])


BAD = {
    "16000 Hz with 2 channels; expected 16000 Hz mono": write_stereo,
    "48000 Hz with 1 channel; expected 16000 Hz mono": write_fast,
    "300 samples; at least 400 are needed": write_short,
    "damaged": write_damaged,
    "no such file": lambda path: None,
}


def wave_of(task: str, path: pathlib.Path) -> np.ndarray:
    """The wave (samples,) of a file, from S3PRL's dataset of the task."""
    registration.register()
    module = importlib.import_module(MODULES[task])
    if task == "asr":
        dataset = types.SimpleNamespace(libri_root=str(path.parent), sample_rate=16_000)
        return module.SequenceDataset._load_wav(dataset, path.name).numpy()
    if task == "pr":
        return module.collect_audio_batch([(str(path), [1])], "dev")[0][0]
    dataset = types.SimpleNamespace(dataset=[str(path)], label=[0], max_timestep=None)
    return module.SpeakerClassifiDataset.__getitem__(dataset, 0)[0]


@pytest.mark.parametrize("task", MODULES)
def test_tasks_refuse_what_prepare_leaves_out(task, tmp_path):
    """S3PRL's datasets return a good file unchanged; for a bad one, one sentence names the file and the reason."""
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(1.0, 0), 16_000)
    np.testing.assert_array_equal(wave_of(task, path), soundfile.read(path, dtype="float32")[0])
    for words, write in BAD.items():
        path.unlink()
        write(path)
        with pytest.raises(AudioError, match=f"^{path}: {words}"):
            wave_of(task, path)


def test_other_tasks_keep_torchaudio(tmp_path, monkeypatch):
    """The check is for the three datasets alone: torchaudio.load itself reads any rate and number of channels, and
    the datasets check whichever loader it is."""
    registration.register()
    import torchaudio

    datasets = [importlib.import_module(name) for name in MODULES.values()]
    assert all(dataset.torchaudio.load is shims.load_checked for dataset in datasets)
    assert all(dataset.torchaudio.functional is torchaudio.functional for dataset in datasets)
    assert torchaudio.load is not shims.load_checked
    native = types.ModuleType("dataset")
    native.torchaudio = types.SimpleNamespace(load="TorchCodec's")
    shims.speech_loader(native)
    assert native.torchaudio.load is shims.load_checked


def test_the_replacement_of_torchaudio_load_names_the_file(tmp_path):
    """Other rates, channels and lengths are read; what is damaged, missing or cut short is named."""
    path = tmp_path / "a.flac"
    for write, shape, rate in ((write_stereo, (2, 16_000), 16_000), (write_fast, (1, 16_000), 48_000)):
        write(path)
        assert (shims.load_audio(path)[0].shape, shims.load_audio(path)[1]) == (shape, rate)
    write_damaged(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(AudioError, match=f"^{path}: "):
        shims.load_audio(path)
    with pytest.raises(AudioError, match=f"^{path}: "):
        shims.load_audio(path, frame_offset=30_000, num_frames=100)
    path.unlink()
    with pytest.raises(AudioError, match=f"^{path}: no such file"):
        shims.load_audio(path)
    soundfile.write(tmp_path / "b.wav", noise(1.0, 0), 16_000)
    (tmp_path / "b.wav").write_bytes((tmp_path / "b.wav").read_bytes()[:-100])
    with pytest.raises(AudioError, match="b.wav: cut short"):
        shims.load_audio(tmp_path / "b.wav")


@pytest.mark.parametrize("workers", [0, 1])
def test_the_command_says_which_file(tmp_path, monkeypatch, capsys, workers):
    """A FLAC damaged in its middle after all were checked ends a training with one line that names it, also from a
    loader's worker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        scan, "check_speech", lambda path, verify: check_speech(path)
    )  # as if it was whole at that time
    make_corpora(tmp_path / "data")
    path = next((tmp_path / "data" / "LibriSpeech" / "train-mini").rglob("*.flac"))
    write_damaged(path)
    options = ["--librispeech", tmp_path / "data", "--prepared", tmp_path / "data" / "prepared", "--mini"]
    options += ["-o", f"config.downstream_expert.corpus.num_workers={workers}"]
    command = ["run_downstream", "-m", "train", "-u", "ofa_wav2vec2", "-k", REF_TINY, "-d", "pr", "-p", "exp", *options]
    assert cli.main([str(part) for part in command]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1 and lines[0].startswith(f"s3prl-ofa run_downstream: error: {path}: damaged")
    assert "Traceback" not in lines[0]
