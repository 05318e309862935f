"""``s3prl-ofa prepare`` and the audio that it leaves out: every file is named with its reason."""

import os
import pathlib
import re
import sys

import numpy as np
import pytest
import soundfile
from superb_corpora import make_corpora, noise

from s3prl_ofa import cli
from s3prl_ofa.guidance.layout import read_manifest
from s3prl_ofa.io import verified


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def prepare(*arguments) -> int:
    return cli.main(["prepare", *map(str, arguments)])


def reasons(out: pathlib.Path) -> dict[str, str]:
    """The reasons in bad_audio.tsv, by the last part of each path; every line has one tab."""
    rows = [line.split("\t") for line in (out / "bad_audio.tsv").read_text("utf-8").splitlines()]
    return {path.rpartition("/")[2]: reason for path, reason in rows}


def damage(path: pathlib.Path) -> None:
    """Overwrites bytes in the middle of a file with zeros."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(200) + content[len(content) // 2 + 200 :])


def write_all(folder: pathlib.Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        soundfile.write(folder / name, noise(0.2, 0), 16_000, format="WAV")


def test_what_is_too_short(tmp_path, out):
    """400 samples are used, 399 are not: they would end a training."""
    write_all(tmp_path / "audio", "a.wav", "b.wav")
    for samples in (300, 399, 400):
        soundfile.write(tmp_path / "audio" / f"{samples}.wav", noise(samples / 16_000, 1), 16_000)
    assert prepare("manifest", tmp_path / "audio", "--out", out) == 1
    assert reasons(out) == {
        f"{samples}.wav": f"{samples} samples; at least 400 are needed (25 ms)" for samples in (300, 399)
    }


def test_transcripts_without_a_line(tmp_path, out, capsys):
    """A split of which no utterance has a text says so; its audio is there."""
    make_corpora(tmp_path / "data")
    transcript = next((tmp_path / "data" / "LibriSpeech" / "dev-mini").rglob("*.trans.txt"))
    transcript.write_text("\n")
    assert prepare("bucket", "--librispeech", tmp_path / "data", "--out", out) == 2
    said = r"dev-mini: none of 2 audio files can be used.*: no line in a \*.trans.txt"
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize("what", ["bucket", "voxceleb1", "manifest"])
def test_all_of_it_is_decoded(tmp_path, out, what, monkeypatch, capsys):
    """A FLAC damaged in its middle passes by its header; it is decoded, with a progress bar, left out and named."""
    make_corpora(tmp_path / "data")
    bad = next((tmp_path / "data" / "LibriSpeech" / "dev-mini").rglob("*.flac"))
    arguments = ["bucket", "--librispeech", tmp_path / "data"]
    if what == "voxceleb1":
        files = sorted((tmp_path / "data" / "VoxCeleb1").rglob("*.wav"))
        soundfile.write(files[0], noise(2.0, 1), 16_000, format="FLAC")
        bad, arguments = files[0], ["voxceleb1", "--voxceleb1", tmp_path / "data"]
    elif what == "manifest":
        arguments = ["manifest", tmp_path / "data" / "LibriSpeech"]
    damage(bad)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert prepare(*arguments, "--out", out) == 1
    assert "100%" in capsys.readouterr().err
    assert list(reasons(out)) == [bad.name] and reasons(out)[bad.name].startswith("damaged")
    listed = [path for path in out.rglob("*.*") if path.name != "bad_audio.tsv"]
    assert listed and not any(bad.name in path.read_text() for path in listed)


def test_verify_decodes_again(tmp_path, out):
    """Only --verify finds a file that was damaged without a change of its size and time."""
    write_all(tmp_path / "audio", "a.flac", "b.flac")
    path = tmp_path / "audio" / "b.flac"
    soundfile.write(path, noise(2.0, 1), 16_000)
    whole, times = path.read_bytes(), path.stat().st_mtime_ns

    def run(*options) -> int:
        verified.verdicts.clear()  # as in another process
        return prepare("manifest", tmp_path / "audio", "--out", out, "--force", *options)

    assert run() == 0
    damage(path)
    os.utime(path, ns=(times, times))
    assert run() == 0
    assert run("--verify") == 1 and list(reasons(out)) == ["b.flac"]
    path.write_bytes(whole)
    assert run() == 0 and not (out / "bad_audio.tsv").exists()


def test_a_clean_run_removes_the_report(tmp_path, out):
    """A clean run removes the report of an earlier one, unless it keeps files that were made then."""
    make_corpora(tmp_path / "data")
    bad = next((tmp_path / "data" / "LibriSpeech" / "dev-mini").rglob("*.flac"))
    whole = bad.read_bytes()
    bad.write_bytes(b"")
    command = ["bucket", "--librispeech", tmp_path / "data", "--out", out]
    assert prepare(*command) == 1 and list(reasons(out)) == [bad.name]
    bad.write_bytes(whole)
    assert prepare(*command) == 0 and list(reasons(out)) == [bad.name]
    assert prepare(*command, "--force") == 0 and not (out / "bad_audio.tsv").exists()


def test_other_formats_rates_and_closed_folders(tmp_path, out, closed_folders):
    """Formats that soundfile does not read, folders that cannot be searched and absurd rates are left out and named."""
    write_all(tmp_path / "audio", "a.wav", "b.wav")
    for name in ("c.m4a", "d.amr", "e.webm", "h.pcm", "i.raw"):
        (tmp_path / "audio" / name).write_bytes(b"no audio")
    soundfile.write(tmp_path / "audio" / "f.wav", np.zeros(2000, np.int16), 2)
    write_all(tmp_path / "audio" / "closed", "g.wav")
    assert prepare("manifest", tmp_path / "audio", "--out", out) == 1
    found = reasons(out)
    assert set(found) == {"c.m4a", "d.amr", "e.webm", "f.wav", "h.pcm", "i.raw", "closed"}
    assert all(f"ffmpeg -i {name}" in found[name] for name in ("c.m4a", "d.amr", "e.webm"))
    assert "Permission denied" in found["closed"] and "2 Hz" in found["f.wav"]


def test_names_that_no_manifest_can_hold(tmp_path, out, capsys):
    """Tabs, line breaks and white space at the start of a name are left out and named on one line; the other files
    are listed."""
    bad = ["a\nb.wav", "a\tb.wav", "a\rb.wav", "line\r\n9\t5.wav", " first.wav", "\x0bfirst.wav"]
    good = ["in the middle.wav", "é ДЖ 你.wav", "next\x85line.wav", "a b c.wav"]
    write_all(tmp_path / "audio", *bad, *good)
    assert prepare("manifest", tmp_path / "audio", "--out", out, "--valid-fraction", 0.25) == 1
    assert set(reasons(out)) == {
        r"a\nb.wav",
        r"a\tb.wav",
        r"a\rb.wav",
        r"line\r\n9\t5.wav",
        " first.wav",
        r"\x0bfirst.wav",
    }
    said = capsys.readouterr().err
    assert said.count("left out: ") == 6 and said.count("rename it\n") == 6
    listed = []
    for part in ("train", "valid"):
        root, rows = read_manifest(out / f"{part}.tsv")
        listed += [name for name, samples in rows if (root / name).is_file() and samples == 3200]
        # as fairseq reads it
        with open(out / f"{part}.tsv") as file:
            assert file.readline().strip() == str(root)
            assert [line.strip().split("\t")[0] for line in file] == [name for name, _ in rows]
    assert sorted(listed) == sorted(good)


def test_a_root_that_no_manifest_can_hold(tmp_path, out, capsys):
    """The folder's own path is in the first line."""
    write_all(tmp_path / "my\naudio", "a.wav")
    assert prepare("manifest", tmp_path / "my\naudio", "--out", out) == 2
    assert r"my\naudio: its path holds a tab or a line break; rename it" in capsys.readouterr().err
    assert not out.exists()
