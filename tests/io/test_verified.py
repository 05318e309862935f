"""Audio is decoded to its end once, by whichever command comes first; records are used only if they can be trusted."""

import logging
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest
import soundfile

from s3prl_ofa.io import scan, verified
from s3prl_ofa.io.audio import check_speech
from s3prl_ofa.io.files import cache_folder
from s3prl_ofa.io.locks import NoLocks
from s3prl_ofa.io.verified import RECORD, verify_audio


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "verdicts", {})
    return cache_folder()


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the files that are decoded, in any order."""
    names = []

    def check(path, verify=False):
        names.extend([path.name] * verify)
        return check_speech(path, verify)

    monkeypatch.setattr(scan, "check_speech", check)
    return names


@pytest.fixture
def files(tmp_path, make_wave) -> list[pathlib.Path]:
    paths = [tmp_path / "audio" / f"{index}.flac" for index in range(4)]
    paths[0].parent.mkdir()
    for index, path in enumerate(paths):
        soundfile.write(path, make_wave(0.5 + 0.1 * index), 16_000)
    return paths


def damage(path: pathlib.Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(200) + content[len(content) // 2 + 200 :])


def another_process() -> None:
    """Forgets what is known in memory."""
    verified.verdicts.clear()


def test_files_are_decoded_once(files, decoded):
    """Neither this process nor the next decodes a file again that is whole; one that is not is refused by each."""
    damage(files[1])
    for _ in range(2):
        for _ in range(2):
            found = verify_audio(files, 2, "audio")
            assert found.samples == {files[index]: round(16_000 * (0.5 + 0.1 * index)) for index in (0, 2, 3)}
            assert list(found.bad) == [files[1]] and found.bad[files[1]].startswith("damaged")
        another_process()
    assert sorted(decoded) == ["0.flac", "1.flac", "1.flac", "2.flac", "3.flac"]
    verify_audio(files, 2, "audio", again=True)
    assert len(decoded) == 9


def test_changed_and_moved_files_are_decoded(files, decoded, make_wave):
    """What was found counts for the same path, size and modification time only."""
    verify_audio(files, 1, "audio")
    another_process()
    soundfile.write(files[0], make_wave(0.3), 16_000)
    os.utime(files[1], ns=(0, 0))
    files[2] = files[2].rename(files[2].with_name("moved.flac"))
    decoded.clear()
    assert verify_audio(files, 1, "audio").samples[files[0]] == 4_800
    assert sorted(decoded) == ["0.flac", "1.flac", "moved.flac"]


def test_lines_that_cannot_be_read_are_skipped(files, decoded, cache):
    """Damaged, foreign and half written lines cost a file its entry and nothing else, and the record heals."""
    verify_audio(files, 1, "audio")
    record = cache / RECORD
    lines = record.read_bytes().splitlines(keepends=True)
    hostile = [
        b"\xff\xfe\x00\n",
        b"[" * 100_000 + b"\n",
        b"{}\n",
        b'["a", 1, 2]\n',
        b'[1, "x", null, 3]\n',
        b"3\n",
        b'["a", Infinity, NaN, 1]\n',
    ]
    record.write_bytes(b"".join([*hostile, *lines[:-1], lines[-1][: len(lines[-1]) // 2]]))
    decoded.clear()
    for _ in range(2):
        another_process()
        assert len(verify_audio(files, 1, "audio").samples) == 4
    assert decoded == ["3.flac"]


def test_a_record_is_never_code(files, cache, tmp_path):
    """The record is JSON: a pickle in its place is noise."""
    cache.mkdir(parents=True)
    (cache / RECORD).write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    assert len(verify_audio(files, 1, "audio").samples) == 4 and not (tmp_path / "ran").exists()


def test_the_record_of_prepare_counts(files, decoded, cache, tmp_path):
    """What ``prepare`` found is beside its files, for whoever has another cache folder, or none."""
    prepared = tmp_path / "prepared"
    verify_audio(files[:2], 1, "audio")
    verified.save(prepared, files[:2])
    verify_audio(files[2:], 1, "audio")
    verified.save(prepared, files[2:])
    assert len(verified.read(prepared / RECORD)) == 4
    (cache / RECORD).unlink()
    another_process()
    decoded.clear()
    assert len(verify_audio(files, 1, "audio", prepared).samples) == 4 and not decoded


def test_without_a_place_to_write(files, decoded, tmp_path, monkeypatch, caplog):
    """A cache folder that cannot be made is a warning: all is decoded, every time."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        another_process()
        assert len(verify_audio(files, 1, "audio").samples) == 4
    assert len(decoded) == 8 and f"{cache_folder() / RECORD} cannot be written" in caplog.text


def test_what_was_decoded_before_an_interrupt_is_kept(files, decoded, monkeypatch):
    """Ctrl-C loses nothing of what was decoded."""

    def interrupt(path, verify):
        if path == files[2]:
            raise KeyboardInterrupt
        return check_speech(path, verify)

    monkeypatch.setattr(scan, "check_speech", interrupt)
    with pytest.raises(KeyboardInterrupt):
        verify_audio(files, 1, "audio")
    another_process()
    verified.load_records(None)
    assert {pathlib.Path(path) for path, _, _ in verified.verdicts} == set(files[:2])


def test_what_was_decoded_before_a_kill_is_kept(files, decoded, cache):
    """A killed process has recorded what it decoded until seconds before; the next one decodes the rest."""
    program = f"""
import pathlib, time
from s3prl_ofa.io import scan, verified
check = scan.check_speech
def block(path, verify):
    if path.name == "2.flac":
        print("there", flush=True)
        time.sleep(600)
    return check(path, verify)
scan.check_speech, verified.SAVE_EVERY = block, 0
verified.verify_audio([pathlib.Path(path) for path in {list(map(str, files))}], 1, "audio")
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"there\n"
        while len(verified.read(cache / RECORD)) < 2:
            time.sleep(0.01)
        process.kill()
    assert len(verify_audio(files, 1, "audio").samples) == 4
    assert decoded == ["2.flac", "3.flac"]


def test_two_processes_at_once(files, decoded, cache, tmp_path, caplog):
    """While another process decodes, this one waits, and then takes what that one has found."""
    verify_audio(files, 1, "audio")
    record = (cache / RECORD).read_bytes()
    (cache / RECORD).unlink()
    another_process()
    decoded.clear()
    found = []
    thread = threading.Thread(target=lambda: found.append(verify_audio(files, 1, "audio")))
    with caplog.at_level(logging.INFO), verified.decoding_lock():
        thread.start()
        while "another process is decoding audio" not in caplog.text:
            assert thread.is_alive()
            time.sleep(0.01)
        (cache / RECORD).write_bytes(record)
    thread.join()
    assert len(found[0].samples) == 4 and not decoded


def test_where_there_are_no_locks(files, decoded, monkeypatch):
    """Some file systems have no locks: audio is decoded all the same."""

    def refuse(*arguments, **options):
        raise NoLocks("none here")

    monkeypatch.setattr(verified, "locked", refuse)
    assert len(verify_audio(files, 1, "audio").samples) == 4
    another_process()
    assert len(verify_audio(files, 1, "audio").samples) == 4 and len(decoded) == 4
