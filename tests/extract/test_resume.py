"""``s3prl-ofa extract`` stopped, killed and started again: finished files stay, and results do not mix."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from conftest import read_index

from s3prl_ofa import cli
from s3prl_ofa.extract import writers
from s3prl_ofa.model import SAMPLE_RATE, ModelConfig, OFAWav2Vec2


def test_resume(extract, audio_folder, make_wave, tmp_path, capsys):
    """Finished files are skipped; new and changed files, and those whose output is missing, are done."""
    assert extract(audio_folder, "--lambd", 0.5) == 0
    out = tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for path in (out / "features").rglob("*.npy")}
    assert extract(audio_folder, "--lambd", 0.5) == 0
    assert "0 of 4 files extracted" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (out / "features").rglob("*.npy")}
    soundfile.write(audio_folder / "a.flac", make_wave(0.4, 9), SAMPLE_RATE)
    soundfile.write(audio_folder / "new.flac", make_wave(0.4, 9), SAMPLE_RATE)
    (out / "features" / "a.wav.npy").unlink()
    assert extract(audio_folder, "--lambd", 0.5) == 0
    assert "3 of 5 files extracted" in capsys.readouterr().err
    assert read_index(out)["a.flac"]["seconds"] == 0.4
    assert len((out / "index.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize("output_format", writers.FORMATS)
def test_resume_needs_all_files(extract, audio_folder, tmp_path, capsys, output_format):
    """An utterance is done again if any of its files is missing, such as its times."""
    if output_format == "hdf5":
        pytest.importorskip("h5py")
    assert extract(audio_folder, "--format", output_format) == 0
    written = [path for path in (tmp_path / "out").rglob("c.opus.*") if path.is_file()]
    assert len(written) == (2 if output_format == "npy" else 1)
    for path in written:
        path.unlink()
        capsys.readouterr()
        assert extract(audio_folder, "--format", output_format) == 0
        assert "1 of 4 files extracted" in capsys.readouterr().err and path.exists()


def test_other_corpus_of_the_same_names(extract, make_wave, tmp_path, capsys):
    """Features of another corpus are not overwritten, and nothing is done; a corpus that was moved is resumed."""
    for number, folder in enumerate(("one", "two")):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "001.wav", make_wave(0.3 + number, number), SAMPLE_RATE)
    soundfile.write(tmp_path / "two" / "000.wav", make_wave(0.3), SAMPLE_RATE)
    assert extract(tmp_path / "one") == 0
    before = (tmp_path / "out" / "features" / "001.wav.npy").read_bytes()
    capsys.readouterr()
    assert extract(tmp_path / "two") == 2
    said = capsys.readouterr().err
    assert f"001.wav was already made from {tmp_path / 'one' / '001.wav'}; give another --out" in said
    assert [path.name for path in (tmp_path / "out" / "features").iterdir()] == ["001.wav.npy"]
    assert (tmp_path / "out" / "features" / "001.wav.npy").read_bytes() == before
    (tmp_path / "one").rename(tmp_path / "moved")
    assert extract(tmp_path / "moved") == 0
    assert "0 of 1 files extracted" in capsys.readouterr().err


def test_torn_index_and_leftovers(extract, audio_folder, tmp_path, capsys):
    """Leftovers of a killed process (half a line, a temporary file) do no harm and are removed."""
    assert extract(audio_folder) == 0
    index = tmp_path / "out" / "index.jsonl"
    index.write_text(index.read_text()[:-20])
    leftover = tmp_path / "out" / "features" / ".a.flac.abcd_123.npy"
    leftover.write_bytes(b"half")
    capsys.readouterr()
    assert extract(audio_folder) == 0
    assert "1 of 4 files extracted" in capsys.readouterr().err
    assert len(read_index(tmp_path / "out")) == 4 and not leftover.exists()


def test_other_settings_are_refused(extract, audio_folder, tmp_path, capsys):
    """Another checkpoint, rate, layer, dtype, format or window in the same folder is refused by name; --force starts
    again."""
    assert extract(audio_folder, "--lambd", 0.5) == 0
    other = tmp_path / "other.safetensors"
    shape = {"dim": 32, "ffn_dim": 64, "heads": 4, "layers": 2, "compressor": "cif"}
    OFAWav2Vec2(ModelConfig(((32, 10, 5), *((32, 3, 2),) * 6), **shape)).save(other)
    for arguments, name in {
        ("--lambd", 0.6): "lambd",
        ("--lambd", 0.5, "--layer", 1): "layer",
        ("--lambd", 0.5, "--dtype", "bfloat16"): "dtype",
        ("--lambd", 0.5, "--format", "safetensors"): "format",
        ("--frame-period-ms", 40): "frame_period_ms",
        ("--lambd", 0.5, "--window-s", 1, "--overlap-s", 0.2): "window_s",
    }.items():
        assert extract(audio_folder, *arguments) == 2
        said = capsys.readouterr().err
        assert f" {name} " in said and "--force" in said
    assert extract(audio_folder, "--lambd", 0.5, ckpt=other) == 2
    assert " checkpoint " in capsys.readouterr().err
    assert extract(audio_folder, "--lambd", 0.6, "--format", "safetensors", "--force") == 0
    assert {path.suffix for path in (tmp_path / "out" / "features").rglob("*.*")} == {".safetensors"}
    assert {row["lambd"] for row in read_index(tmp_path / "out").values()} == {0.6}
    assert extract(audio_folder, "--window-s", 1, "--overlap-s", 0.2, "--force") == 0
    capsys.readouterr()
    assert extract(audio_folder) == 2
    assert "holds results made with window_s 1.0, not None; give --force" in capsys.readouterr().err


def test_other_audio_of_the_same_size_and_time(extract, make_wave, tmp_path, capsys):
    """Clips of one length from archives without times: another one is refused, a copy is resumed, one that is gone was
    moved."""
    for number, folder in enumerate(("one", "two", "copy")):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "001.wav", make_wave(0.3, number % 2), SAMPLE_RATE)
        os.utime(tmp_path / folder / "001.wav", (0, 0))
    assert extract(tmp_path / "one") == 0
    capsys.readouterr()
    assert extract(tmp_path / "two") == 2
    assert f"001.wav was already made from {tmp_path / 'one' / '001.wav'}; give another" in capsys.readouterr().err
    for _ in range(2):
        assert extract(tmp_path / "copy") == 0
        assert "0 of 1 files extracted" in capsys.readouterr().err
        shutil.rmtree(tmp_path / "one", ignore_errors=True)


def test_a_file_that_can_no_longer_be_used(extract, audio_folder, tmp_path):
    """Audio that has changed and is broken now has no row, so that nobody reads its old features; the others keep
    theirs."""
    assert extract(audio_folder) == 0
    rows = read_index(tmp_path / "out")
    name = next(name for name in rows if name.endswith(".wav"))
    (audio_folder / name).write_bytes(b"broken")
    assert extract(audio_folder) == 1
    assert read_index(tmp_path / "out") == {key: row for key, row in rows.items() if key != name}


def test_other_files_in_a_folder_of_shards(extract, audio_folder, tmp_path):
    """What someone else has put into the output folder's ``shards`` stays there."""
    assert extract(audio_folder) == 0
    others = [tmp_path / "out" / "shards" / name for name in ("000.tar", "7/000.tar")]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert extract(audio_folder) == extract(audio_folder, "--force") == 0
    assert all(path.exists() for path in others)


def test_same_model_in_another_format(extract, audio_folder, golden_model, tmp_path, capsys):
    """The checkpoint is identified by its weights: a converted file resumes where the original stopped."""
    assert extract(audio_folder) == 0
    golden_model.save(tmp_path / "same.safetensors")
    capsys.readouterr()
    assert extract(audio_folder, ckpt=tmp_path / "same.safetensors") == 0
    assert "0 of 4 files extracted" in capsys.readouterr().err


def test_in_use(extract, audio_folder, tmp_path, capsys):
    """Two runs do not write into one folder at the same time."""
    from s3prl_ofa.extract.store import open_store

    with open_store(tmp_path / "out", {}, False):
        assert extract(audio_folder) == 2
    assert "in use" in capsys.readouterr().err


def test_killed(golden_checkpoint, make_wave, tmp_path):
    """After kill -9 every file in place is whole, the index holds what was finished, and a new run does the rest."""
    folder, out = tmp_path / "audio", tmp_path / "out"
    folder.mkdir()
    for index in range(150):
        soundfile.write(folder / f"{index:03}.wav", make_wave(1.0 + index / 1000, index), SAMPLE_RATE)
    arguments = ["extract", str(folder), "--ckpt", str(golden_checkpoint), "--out", str(out), "--batch-seconds", "2"]
    process = subprocess.Popen([sys.executable, "-m", "s3prl_ofa", *arguments], stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list((out / "features").glob("[0-9]*.npy"))) < 5:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "finished before it could be killed"
    done = list((out / "features").glob("[0-9]*.npy"))
    assert 5 <= len(done) < 150
    for path in done:
        assert len(np.load(path)) == len(np.load(out / "times" / path.name))
    before = {path: path.stat().st_mtime_ns for path in done}
    names = set(read_index(out))
    assert cli.main(arguments) == 0
    assert len(read_index(out)) == 150
    untouched = [path for path in done if path.name.removesuffix(".npy") in names]
    assert untouched and all(before[path] == path.stat().st_mtime_ns for path in untouched)
