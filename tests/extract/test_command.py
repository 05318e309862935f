"""``s3prl-ofa extract``: features of many files to disk."""

import errno
import json
import os
import sys

import numpy as np
import pytest
import safetensors.numpy
import soundfile
import torch
from conftest import read_index

import s3prl_ofa
from s3prl_ofa import cli
from s3prl_ofa.errors import UsageError
from s3prl_ofa.extract import writers
from s3prl_ofa.extract.inputs import Utterance, find_utterances, make_batches
from s3prl_ofa.io.audio import load_audio
from s3prl_ofa.model import SAMPLE_RATE, ModelConfig, OFAWav2Vec2


def test_features_are_the_models(extract, audio_folder, golden_model, tmp_path):
    """Files of mixed formats, rates and channels give what the model gives for the resampled wave, with times, and
    the index holds frames, seconds, lambd and period; a.flac and a.wav do not collide and folders are kept."""
    assert extract(audio_folder, "--lambd", 0.7) == 0
    out, index = tmp_path / "out", read_index(tmp_path / "out")
    assert set(index) == {"a.flac", "a.wav", "deep/b.mp3", "deep/er/c.opus"}
    for name, row in index.items():
        wave = load_audio(audio_folder / name)
        expected = golden_model.extract([wave], lambd=0.7)
        features = np.load(out / "features" / f"{name}.npy")
        assert np.abs(features - expected.hidden_states[-1][0].numpy()).max() < 1e-5
        assert np.abs(np.load(out / "times" / f"{name}.npy") - expected.times[0].numpy()).max() < 1e-5
        assert row["frames"] == len(features) == int(expected.lengths[0])
        assert (row["lambd"], row["seconds"]) == (0.7, len(wave) / SAMPLE_RATE)
        assert row["frame_period_ms"] == pytest.approx(float(expected.frame_period_ms[0]))
        assert out / row["file"] == out / "features" / f"{name}.npy"


@pytest.mark.parametrize("layer", ["0", "1", "2", "2,0", "all"])
def test_layers(extract, audio_folder, golden_model, tmp_path, layer):
    """--layer k selects hidden state k, 2,0 these two in that order, all selects all of them."""
    assert extract(audio_folder / "a.flac", "--layer", layer) == 0
    states = golden_model.extract([load_audio(audio_folder / "a.flac")]).hidden_states
    expected = np.stack([state[0].numpy() for state in states])
    chosen = {"2,0": [2, 0], "all": slice(None)}
    expected = expected[chosen[layer] if layer in chosen else int(layer)]
    features = np.load(tmp_path / "out" / "features" / "a.flac.npy")
    assert features.shape == expected.shape and np.abs(features - expected).max() < 1e-5


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_dtypes_by_purpose(extract, audio_folder, golden_checkpoint, tmp_path, dtype):
    """--dtype auto and int8 give what the model loaded so gives; the settings name what auto was here."""
    assert extract(audio_folder / "a.flac", "--dtype", dtype) == 0
    model = s3prl_ofa.load(golden_checkpoint, dtype=dtype)
    expected = model.extract([load_audio(audio_folder / "a.flac")]).hidden_states[-1][0].float().numpy()
    assert np.abs(np.load(tmp_path / "out" / "features" / "a.flac.npy") - expected).max() < 1e-5
    stored = json.loads((tmp_path / "out" / "settings.json").read_text())["dtype"]
    assert stored == (str(model.feature_norm.weight.dtype).removeprefix("torch.") if dtype == "auto" else dtype)


def test_windows(extract, audio_folder, golden_model, tmp_path):
    """--window-s and --overlap-s give what the model gives with these windows."""
    assert extract(audio_folder / "a.flac", "--window-s", 0.5, "--overlap-s", 0.1) == 0
    wave = load_audio(audio_folder / "a.flac")
    expected = golden_model.extract([wave], window_s=0.5, overlap_s=0.1).hidden_states[-1][0].numpy()
    assert np.abs(expected - golden_model.extract([wave]).hidden_states[-1][0].numpy()).max() > 1e-3
    assert np.abs(np.load(tmp_path / "out" / "features" / "a.flac.npy") - expected).max() < 1e-5


@pytest.mark.parametrize("name", writers.FORMATS)
def test_formats(tmp_path, name):
    """Every format stores features and times, and leaves no other file."""
    features, times = np.random.rand(5, 3).astype(np.float32), np.random.rand(5, 2)
    suffix, write = writers.get_format(name)
    write(tmp_path, f"features/deep/a.flac{suffix}", features, times)
    path = tmp_path / "features" / "deep" / f"a.flac{suffix}"
    if name == "npy":
        read = {"features": np.load(path), "times": np.load(tmp_path / "times" / "deep" / "a.flac.npy")}
    elif name == "safetensors":
        read = safetensors.numpy.load_file(path)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path) as file:
            read = {key: file[key][:] for key in file}
    assert np.array_equal(read["features"], features) and np.array_equal(read["times"], times)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == (2 if name == "npy" else 1)


def test_hdf5_without_h5py(extract, audio_folder, monkeypatch, capsys):
    """A missing optional package is reported before any work, with the way to install it."""
    find_spec = writers.importlib.util.find_spec
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: None if name == "h5py" else find_spec(name))
    assert extract(audio_folder, "--format", "hdf5") == 2
    assert "pip install 's3prl-ofa[hdf5]'" in capsys.readouterr().err


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(extract, audio_folder, tmp_path, dtype):
    """float16 is kept; numpy has no bfloat16, which becomes float32. Values stay near those of float32."""
    assert extract(audio_folder / "a.flac", "--dtype", dtype, "--lambd", 0.5) == 0
    assert extract(audio_folder / "a.flac", "--lambd", 0.5, out=tmp_path / "full") == 0
    half, full = (np.load(tmp_path / name / "features" / "a.flac.npy") for name in ("out", "full"))
    assert half.dtype == (np.float16 if dtype == "float16" else np.float32)
    assert abs(len(half) - len(full)) <= 1
    common = min(len(half), len(full))
    assert np.corrcoef(half[:common].ravel().astype(float), full[:common].ravel())[0, 1] > 0.99


def test_frame_period_and_unreachable(extract, audio_folder, tmp_path, capsys):
    """The period is met; utterances that cannot reach it are counted, and reach it with --allow-beyond-one."""
    assert extract(audio_folder, "--frame-period-ms", 40) == 0
    for row in read_index(tmp_path / "out").values():
        assert row["frames"] == round(row["seconds"] * 25)
    assert extract(audio_folder, "--frame-period-ms", 200, out=tmp_path / "slow") == 0
    assert "cannot reach 200 ms" in capsys.readouterr().err
    assert extract(audio_folder, "--frame-period-ms", 200, "--allow-beyond-one", out=tmp_path / "beyond") == 0
    assert "cannot reach" not in capsys.readouterr().err
    for row in read_index(tmp_path / "beyond").values():
        assert row["frames"] == max(1, round(row["seconds"] * 5)) and row["lambd"] > 1


def test_bad_files_do_not_stop_the_rest(extract, audio_folder, make_wave, tmp_path, capsys):
    """Corrupt, empty, too short and NaN files are named with their reason at the end and in errors.jsonl; the others
    are extracted; the exit status is 1."""
    (audio_folder / "corrupt.wav").write_bytes(b"RIFF but no more")
    (audio_folder / "empty.wav").write_bytes(b"")
    soundfile.write(audio_folder / "short.wav", make_wave(0.02), SAMPLE_RATE)
    nan = make_wave(0.3)
    nan[7] = np.nan
    soundfile.write(audio_folder / "nan.wav", nan, SAMPLE_RATE, subtype="FLOAT")
    flac = audio_folder / "cut.flac"
    soundfile.write(flac, make_wave(2.0), SAMPLE_RATE)
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
    assert extract(audio_folder) == 1
    assert set(read_index(tmp_path / "out")) == {"a.flac", "a.wav", "deep/b.mp3", "deep/er/c.opus"}
    rows = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    errors = {row["name"]: row["error"] for row in rows}
    assert set(errors) == {"corrupt.wav", "empty.wav", "short.wav", "nan.wav", "cut.flac"}
    assert errors["short.wav"] == "too short: 320 samples at 16000 Hz, at least 400 are needed"
    said = capsys.readouterr().err
    assert "4 of 9 files extracted" in said and all(name in said for name in errors)
    # Once they are fixed, only they are done, and the list of errors is gone.
    for name in errors:
        soundfile.write(audio_folder / name, make_wave(0.3), SAMPLE_RATE)
    assert extract(audio_folder) == 0
    assert "5 of 9 files extracted" in capsys.readouterr().err
    assert not (tmp_path / "out" / "errors.jsonl").exists()


def test_odd_entries_do_not_stop_the_rest(extract, audio_folder, make_wave, tmp_path, capsys):
    """A broken link, a name that is not UTF-8 and one that is too long for an output are reported; a name of the
    maximal length is done."""
    (audio_folder / "gone.wav").symlink_to("nowhere.wav")
    strange = os.fsdecode(b"caf\xe9.wav")
    fits, too_long = "f" * 247 + ".wav", "t" * 248 + ".wav"  # with .npy 255 and 256 bytes
    for name in ("strange.wav", fits, too_long):
        soundfile.write(audio_folder / name, make_wave(0.1), SAMPLE_RATE)
    os.rename(audio_folder / "strange.wav", audio_folder / strange)
    for status in range(2):  # the second time there is an index
        assert extract(audio_folder) == 1
        assert set(read_index(tmp_path / "out")) == {"a.flac", "a.wav", "deep/b.mp3", "deep/er/c.opus", fits}
        rows = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text("utf-8").splitlines()]
        assert {row["name"]: row["error"] for row in rows} == {
            "gone.wav": "a broken link",
            r"caf\udce9.wav": "its path is not UTF-8; rename it",
            too_long: "its name is too long for an output file",
        }
        said = capsys.readouterr().err
        assert f"{(5, 0)[status]} of 8 files extracted" in said and r"caf\udce9.wav" in said
    assert not [path for path in (tmp_path / "out").rglob(".*.npy")]


def errors_of(out) -> dict[str, str]:
    rows = [json.loads(line) for line in (out / "errors.jsonl").read_text("utf-8").splitlines()]
    return {row["name"]: row["error"] for row in rows}


def test_other_formats_and_closed_folders_are_named(extract, audio_folder, make_wave, tmp_path, closed_folders, capsys):
    """What cannot be read because of its format, its folder's permissions or its header's rate is not silently
    ignored: it is reported like a damaged file, with what to do, and the status is 1."""
    (audio_folder / "phone.m4a").write_bytes(b"\0\0\0\x20ftypM4A " * 20)
    soundfile.write(audio_folder / "slow.wav", make_wave(0.1), 2)
    (audio_folder / "closed").mkdir()
    (audio_folder / "line\nbreak.wav").write_bytes(b"")
    assert extract(audio_folder) == 1
    errors, said = errors_of(tmp_path / "out"), capsys.readouterr().err
    assert set(errors) == {"phone.m4a", "slow.wav", "closed", r"line\nbreak.wav"}
    assert "ffmpeg -i phone.m4a" in errors["phone.m4a"] and "Permission denied" in errors["closed"]
    assert "2 Hz" in errors["slow.wav"]
    assert said.count("\n") == 6 and all(name in said for name in errors)
    assert set(read_index(tmp_path / "out")) == {"a.flac", "a.wav", "deep/b.mp3", "deep/er/c.opus"}


@pytest.mark.parametrize("output_format", ["npy", "safetensors"])
def test_a_name_that_is_another_files_folder(extract, audio_folder, make_wave, tmp_path, output_format):
    """Next to a folder x.wav.npy there is no place for the features of x.wav: only it is reported, in any order."""
    for name in ("x.wav", "x.wav.npy/y.wav", "x.wav.safetensors/deep/z.wav"):
        path = audio_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, make_wave(1.5 if name == "x.wav" else 0.1), SAMPLE_RATE)
    assert extract(audio_folder, "--format", output_format) == 1
    assert list(errors_of(tmp_path / "out")) == ["x.wav"]
    assert f"x.wav.{output_format}, like a folder of other audio" in errors_of(tmp_path / "out")["x.wav"]
    others = {"x.wav.npy/y.wav", "x.wav.safetensors/deep/z.wav"}
    assert set(read_index(tmp_path / "out")) == {"a.flac", "a.wav", "deep/b.mp3", "deep/er/c.opus"} | others


def test_a_name_that_an_earlier_output_has(extract, audio_folder, make_wave, tmp_path):
    """Where an earlier run wrote a file, a later one cannot make a folder: only what would be in it is reported."""
    soundfile.write(audio_folder / "x.wav", make_wave(0.1), SAMPLE_RATE)
    assert extract(audio_folder) == 0
    (audio_folder / "x.wav.npy").mkdir()
    for name in ("x.wav.npy/y.wav", "z.wav"):
        soundfile.write(audio_folder / name, make_wave(0.1), SAMPLE_RATE)
    assert extract(audio_folder) == 1
    assert list(errors_of(tmp_path / "out")) == ["x.wav.npy/y.wav"]
    assert {"x.wav", "z.wav"} <= set(read_index(tmp_path / "out"))


def test_features_that_are_not_finite(extract, audio_folder, golden_checkpoint, tmp_path):
    """They are reported per file and not written; the exit status is 1."""
    model = s3prl_ofa.load(golden_checkpoint)
    torch.nn.init.constant_(model.encoder.layers[-1].final_norm.weight, 3e38)
    model.save(tmp_path / "large.safetensors")
    assert extract(audio_folder, ckpt=tmp_path / "large.safetensors") == 1
    errors = errors_of(tmp_path / "out")
    assert set(errors) == {"a.flac", "a.wav", "deep/b.mp3", "deep/er/c.opus"}
    assert all("NaN or infinite values" in reason for reason in errors.values())
    assert not list((tmp_path / "out").rglob("*.npy")) and not read_index(tmp_path / "out")


def test_one_utterance_that_is_not_finite(audio_folder, golden_model, tmp_path, monkeypatch):
    """The others of its batch are written."""
    extract = golden_model.extract

    def with_nan(waves, **options):
        out = extract(waves, **options)
        out.hidden_states[-1][1, 3, 5] = float("nan")
        return out

    monkeypatch.setattr(golden_model, "extract", with_nan)
    monkeypatch.setattr("s3prl_ofa.checkpoint.load", lambda *args, **options: golden_model)
    assert cli.main(["extract", str(audio_folder), "--ckpt", "any", "--out", str(tmp_path / "out")]) == 1
    assert len(errors_of(tmp_path / "out")) == 1 and len(read_index(tmp_path / "out")) == 3


def test_progress_is_shown(extract, audio_folder, monkeypatch, capsys):
    """On a terminal, and only there, a bar counts the audio."""
    assert extract(audio_folder) == 0
    assert "100%" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert extract(audio_folder, "--force") == 0
    said = capsys.readouterr().err
    assert "extract: 100%" in said and "00:03/00:03 of audio" in said and " x real time]" in said


def test_failing_disk_is_no_bad_file(extract, audio_folder, tmp_path, monkeypatch, capsys):
    """An error that makes every write fail ends the run and is not blamed on the audio."""

    def full(folder, file, features, times):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(writers.FORMATS, "npy", writers.Format(".npy", full))
    assert extract(audio_folder) == 1
    assert "error: the output: no room to write it (No space left on device)" in capsys.readouterr().err
    assert not (tmp_path / "out" / "errors.jsonl").exists()


def test_refused_before_work(extract, audio_folder, golden_checkpoint, tmp_path, capsys):
    """Bad rates, layers, devices, checkpoints, inputs and output folders: exit 2 and one line, nothing written."""
    out = tmp_path / "out"
    (tmp_path / "nothing").mkdir()
    for arguments, words in {
        (audio_folder, "--lambd", 2): "[0, 2)",
        (audio_folder, "--lambd", -0.1): "[0, 2)",
        (audio_folder, "--lambd", "nan"): "[0, 2)",
        (audio_folder, "--lambd", "fast"): "fast",
        (audio_folder, "--frame-period-ms", 19): "20",
        (audio_folder, "--lambd", 0.5, "--frame-period-ms", 40): "not allowed with",
        (audio_folder, "--layer", 3): "0 to 2",
        (audio_folder, "--layer", "top"): "0 to 2",
        (audio_folder, "--layer", "1,,2"): "0 to 2",
        (audio_folder, "--window-s", 3): "window_s must be finite and greater than overlap_s",
        (audio_folder, "--batch-seconds", 0): "above 0",
        (audio_folder, "--device", "abacus"): "abacus",
        (audio_folder, "--device", "meta"): "cannot be used",
        (audio_folder / "missing",): "no such file",
        (tmp_path / "nothing",): "no audio found",
    }.items():
        status = extract(*arguments)
        said = capsys.readouterr().err
        assert status == 2 and words in said and said.count("\n") == 1, (arguments, said)
    assert extract(audio_folder, ckpt=tmp_path / "missing.pt") == 2
    assert "no such file" in capsys.readouterr().err
    assert not out.exists()
    assert extract(audio_folder, out=golden_checkpoint / "below") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert extract(audio_folder, "--force", out=audio_folder) == 2
    assert "holds other files" in capsys.readouterr().err
    assert (audio_folder / "notes.txt").exists()


def test_no_compressor(extract, audio_folder, tmp_path, capsys):
    """A plain wav2vec 2.0 is extracted at 20 ms; other rates are refused before any work."""
    plain = tmp_path / "plain.safetensors"
    config = ModelConfig(((32, 10, 5), *((32, 3, 2),) * 4, *((32, 2, 2),) * 2), dim=32, ffn_dim=64, heads=4, layers=1)
    OFAWav2Vec2(config).save(plain)
    assert extract(audio_folder, "--lambd", 0.5, ckpt=plain) == 2
    assert "no compressor" in capsys.readouterr().err
    assert extract(audio_folder, ckpt=plain) == 0


def test_names_never_collide(tmp_path, make_wave):
    """The same relative path below two folders gives two names; a file that is given twice is done once."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "a.wav", make_wave(0.1), SAMPLE_RATE)
    both = find_utterances([tmp_path / "one", tmp_path / "two", tmp_path / "one" / "a.wav"])
    assert sorted(utterance.name for utterance in both) == ["one/a.wav", "two/a.wav"]
    with pytest.raises(UsageError, match="no such file"):
        find_utterances([tmp_path / "three"])


def test_batches_hold_similar_lengths():
    """Longest first, never above the limit unless one utterance alone is, every utterance once."""
    seconds = [1.0, 9.0, 2.0, 8.0, 3.0, 30.0, 0.5]
    pairs = [(Utterance(None, str(value), 0, 0), value) for value in seconds]
    batches = make_batches(pairs, 10.0)
    values = [[value for _, value in batch] for batch in batches]
    assert values == [[30.0], [9.0], [8.0], [3.0, 2.0, 1.0, 0.5]]


def test_failing_batch_is_split(audio_folder, golden_model, tmp_path, monkeypatch, capsys):
    """If a batch does not fit into memory its utterances are tried one by one, and only the failing one is reported."""
    extract = golden_model.extract

    def small_memory(waves, **options):
        if sum(map(len, waves)) > 15_000:
            raise torch.OutOfMemoryError("out of memory")
        return extract(waves, **options)

    monkeypatch.setattr(golden_model, "extract", small_memory)
    monkeypatch.setattr("s3prl_ofa.checkpoint.load", lambda *args, **options: golden_model)
    arguments = ["extract", str(audio_folder), "--ckpt", "any", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 1
    assert set(read_index(tmp_path / "out")) == {"a.wav", "deep/b.mp3", "deep/er/c.opus"}
    assert "a.flac: out of memory" in capsys.readouterr().err


def test_real_speech(extract, mini_librispeech, tmp_path):
    """On real speech every utterance that can reach the requested number of frames has it."""
    speaker = sorted((mini_librispeech / "audio").iterdir())[0]
    assert extract(speaker, "--frame-period-ms", 50) == 0
    rows = read_index(tmp_path / "out").values()
    assert len(rows) > 5 and all(row["frames"] == round(row["seconds"] * 20) for row in rows)
