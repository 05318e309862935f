"""``s3prl-ofa prepare audio``: a copy of a corpus that the tasks can read, whatever its audio was."""

import pathlib

import numpy as np
import pytest
import soundfile
from superb_corpora import make_librispeech, noise

from s3prl_ofa import cli
from s3prl_ofa.io.audio import load_audio
from s3prl_ofa.superb.prepare import audio


@pytest.fixture
def corpus(tmp_path) -> pathlib.Path:
    """A LibriSpeech of other rates, channels and formats."""
    make_librispeech(tmp_path)
    folder = tmp_path / "LibriSpeech" / "train-mini" / "11" / "22"
    soundfile.write(folder / "11-22-0000.flac", np.stack([noise(2.0, 0)] * 2, 1), 16_000)
    soundfile.write(folder / "11-22-0001.flac", noise(3.0, 1), 48_000)
    soundfile.write(folder / "11-22-0002.wav", noise(3.0, 2), 44_100, subtype="FLOAT")
    soundfile.write(folder / "11-22-0003.ogg", noise(2.0, 3), 8_000)
    for name in ("11-22-0002.flac", "11-22-0003.flac"):
        (folder / name).unlink()
    (tmp_path / "LibriSpeech" / "SPEAKERS.TXT").write_text("11 | F\n")
    return tmp_path / "LibriSpeech"


@pytest.fixture
def out(tmp_path) -> pathlib.Path:
    return tmp_path / "copy"


def prepare(*arguments) -> int:
    return cli.main(["prepare", *map(str, arguments)])


def test_a_copy_that_every_command_reads(corpus, out, tmp_path, capsys):
    """Audio becomes 16 kHz mono as ``extract`` reads it, transcripts and lists are copied, nothing is left out."""
    assert prepare("bucket", "--librispeech", corpus, "--out", tmp_path / "before") == 1
    assert "`s3prl-ofa prepare audio CORPUS --out DIR`" in capsys.readouterr().err
    assert prepare("audio", corpus, "--out", out) == 0
    assert f"{out}: 10 audio files converted, 4 other files copied" in capsys.readouterr().out
    assert (out / "SPEAKERS.TXT").read_text() == "11 | F\n"
    for source in corpus.rglob("11-22-*.*"):
        if source.suffix == ".txt":
            assert (out / source.relative_to(corpus)).read_text() == source.read_text()
            continue
        copy = (out / source.relative_to(corpus)).with_suffix(".wav" if source.suffix == ".wav" else ".flac")
        info = soundfile.info(copy)
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        wave = load_audio(source)
        np.testing.assert_allclose(soundfile.read(copy, dtype="float32")[0], wave, atol=2**-15)
        if soundfile.info(source).samplerate == 16_000:  # what was right is unchanged
            np.testing.assert_array_equal(soundfile.read(copy, dtype="float32")[0], wave)
    assert prepare("bucket", "--librispeech", out, "--out", tmp_path / "after") == 0


def test_it_resumes(corpus, out, capsys):
    """Files that exist are kept, --force replaces them."""
    assert prepare("audio", corpus, "--out", out) == 0
    paths = sorted(out.rglob("*.flac"))
    paths[0].unlink()
    times = {path: path.stat().st_mtime_ns for path in paths[1:]}
    capsys.readouterr()
    assert prepare("audio", corpus, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "1 audio files converted, 9 kept (--force converts them again), 0 other files copied" in printed
    assert {path: path.stat().st_mtime_ns for path in paths[1:]} == times
    assert prepare("audio", corpus, "--out", out, "--force") == 0
    assert "10 audio files converted, 4 other files copied" in capsys.readouterr().out


def test_what_is_not_copied_is_named(corpus, out, monkeypatch, closed_folders):
    """Damaged, short and foreign audio, files at another scale, second versions and archives."""
    folder = corpus / "train-mini" / "11" / "22"
    content = (folder / "11-22-0004.flac").read_bytes()
    (folder / "11-22-0004.flac").write_bytes(content[: len(content) // 2])
    soundfile.write(folder / "11-22-0005.flac", noise(0.02, 1), 16_000)
    (folder / "11-22-0000.aac").write_bytes(b"no audio")
    (folder / "11-22-0006.m4a").write_bytes(b"no audio")
    soundfile.write(folder / "11-22-0007.wav", 32_768 * noise(1.0, 1), 16_000, subtype="FLOAT")
    (corpus / "closed").mkdir()
    (corpus / ".hidden.flac").write_bytes(b"")
    (corpus / "archive.tar.gz").write_bytes(bytes((1 << 20) + 1))
    monkeypatch.setattr(audio, "LARGEST_COPIED", 1 << 20)
    assert prepare("audio", corpus, "--out", out) == 1
    rows = [line.split("\t") for line in (out / "bad_audio.tsv").read_text().splitlines()]
    found = {pathlib.Path(path).name: reason for path, reason in rows}
    for name, words in {
        "11-22-0004.flac": "damaged",
        "11-22-0005.flac": "320 samples; at least 400",
        "11-22-0000.aac": "11-22-0000.flac beside it has the same name in the copy",
        "11-22-0006.m4a": "ffmpeg -i 11-22-0006.m4a",
        "11-22-0007.wav": "expected -1 to 1",
        "closed": "a folder that cannot be searched",
        "archive.tar.gz": "not audio, and above 1 MiB",
    }.items():
        assert words in found.pop(name)
    assert not found and not [path for path in out.rglob(".*")]
    (corpus / "train-mini" / "11" / "22" / "11-22-0007.wav").unlink()
    assert len(list(out.rglob("*.flac"))) == 7 and len(list(out.rglob("*.wav"))) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--out", "copy"], "there is no folder nowhere"),
        (["LibriSpeech", "--out", "LibriSpeech/copy"], "expected a folder that neither holds LibriSpeech nor is in it"),
        (["LibriSpeech/train-mini", "--out", "LibriSpeech"], "expected a folder that neither holds"),
        (["empty", "--out", "copy"], "empty holds no audio files"),
        (["useless", "--out", "copy"], "useless: none of 1 audio files can be used, the first"),
    ],
)
def test_bad_use_is_one_line(arguments, words, corpus, tmp_path, monkeypatch, capsys):
    """What was found and expected, status 2, nothing written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "useless").mkdir()
    (tmp_path / "useless" / "a.wav").write_bytes(b"")
    (tmp_path / "useless" / "a.txt").write_text("A")
    before = sorted(tmp_path.rglob("*"))
    assert prepare("audio", *arguments) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert words in message and "Traceback" not in message
    assert sorted(tmp_path.rglob("*")) == before
