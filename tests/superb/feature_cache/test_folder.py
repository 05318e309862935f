"""The folder of a feature cache: never above its limit, intact after kills, a full disk and outside changes."""

import errno
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from cached import ALL, ask, assert_same, counted, on_disk
from paths import CKPT, ROOT

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.feature_cache import section
from s3prl_ofa.superb.feature_cache.cache import FeatureCache


def test_never_above_the_limit(alike, golden_model, opened, tmp_path, ran):
    """Entries never take more than the limit and the count is right; what did not fit is computed every time, and what
    is there is used."""
    folder, waves = tmp_path / "features", alike(8)
    with opened() as cache:
        ask(cache, waves[:1], golden_model)
    size = on_disk(folder)
    with opened(limit=3 * size + size // 2) as cache:
        for wave in waves:
            assert_same(ask(cache, [wave], golden_model), golden_model.extract([wave]))
            assert counted(folder) == on_disk(folder) <= 3 * size
        ran.clear()
        assert_same(ask(cache, waves, golden_model), golden_model.extract(waves))
        assert len(ran) == 5 + len(waves)  # the second is the plain one
    assert on_disk(folder) == 3 * size
    with opened(limit=size - 1, folder=tmp_path / "small") as cache:
        assert_same(ask(cache, waves, golden_model), golden_model.extract(waves))
    assert on_disk(tmp_path / "small") == 0


def test_the_least_recently_opened_section_makes_room(alike, golden_model, opened, tmp_path):
    """In a full folder the least recently opened section is deleted, even if it was filled last, and no more of them
    than necessary; sections in use stay."""
    folder, waves, sections = tmp_path / "features", alike(4), {}
    rates = {"a": 0.001, "b": 0.002, "c": 0.003, "d": 0.004}
    for name in "abca":
        with opened(lambd=rates[name]) as cache:
            ask(cache, waves, golden_model, lambd=rates[name])
        sections[name] = cache.section
        time.sleep(0.02)  # more than the grain of a file's time
    limit = on_disk(folder)
    with opened(limit=limit, lambd=rates["d"]) as cache:
        ask(cache, waves[:1], golden_model, lambd=rates["d"])
        assert [name for name in "abc" if not sections[name].exists()] == ["b"]
        assert counted(folder) == on_disk(folder) <= limit
    with opened(lambd=rates["c"]), opened(limit=on_disk(folder), lambd=rates["d"]) as cache:
        ask(cache, waves[1:], golden_model, lambd=rates["d"])
        assert [name for name in "ac" if not sections[name].exists()] == ["a"]  # c is older than a, and in use
        assert counted(folder) == on_disk(folder) <= limit


def test_a_lower_limit_holds_when_it_is_opened(alike, golden_model, opened, tmp_path, ran):
    """Opened with less room than the last time, other places go first, then entries of its own; the rest is used."""
    folder, waves = tmp_path / "features", alike(4)
    for lambd in (0.001, 0.002):
        with opened(lambd=lambd) as cache:
            ask(cache, waves, golden_model, lambd=lambd)
    both = on_disk(folder)
    with opened(limit=both // 4 + 10, lambd=0.002) as cache:
        assert counted(folder) == on_disk(folder) == on_disk(cache.section) == both // 4
        ran.clear()
        found = ask(cache, waves, golden_model, lambd=0.002)
        assert len(ran) == 2  # of four
        assert_same(found, golden_model.extract(waves, lambd=0.002))


def test_a_section_in_use_stays(alike, golden_model, opened, tmp_path, ran):
    """If all sections are in use nothing is deleted, and the newcomer continues without storing."""
    folder, waves = tmp_path / "features", alike(3)
    holder = opened(lambd=0.001)
    ask(holder, waves, golden_model, lambd=0.001)
    full = on_disk(folder)
    with opened(limit=full, lambd=0.5) as cache:
        assert_same(ask(cache, waves, golden_model, lambd=0.5), golden_model.extract(waves, lambd=0.5))
    assert on_disk(folder) == full
    ran.clear()
    ask(holder, waves, golden_model, lambd=0.001)
    assert not ran
    holder.close()
    with opened(limit=full, lambd=0.5) as cache:
        ask(cache, waves, golden_model, lambd=0.5)
    assert not holder.section.exists() and 0 < on_disk(folder) <= full


def test_other_files_in_the_folder_stay(alike, golden_model, opened, tmp_path):
    """A folder that also holds other things keeps them: they are neither counted nor deleted, whether the cache is
    full, is opened with less room, or looks for what a killed process left."""
    folder, waves = tmp_path / "features", alike(4)
    others = [folder / name for name in ("LibriSpeech/1.flac", "models/a/.b.safetensors", "model.safetensors")]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(10**6))
    for lambd in (0.001, 0.002):  # the first makes room for the second
        with opened(limit=3 * 10**4, lambd=lambd) as cache:
            ask(cache, waves, golden_model, lambd=lambd)
            assert counted(folder) == on_disk(cache.section) > 0
    with opened(limit=1) as cache:
        assert counted(folder) == on_disk(cache.section) == 0
    assert all(path.stat().st_size == 10**6 for path in others)


BROKEN = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "a byte short": lambda content: content[:-1],
    "too long": lambda content: content + b"x",
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"no entry " * 50,
    "endless header": lambda content: b"\xff" * 100,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_entry_is_computed_again(kind, waves, golden_model, opened, caplog, ran):
    """An entry that cannot be read is named in a warning, computed, and stored again; the others of its batch are used,
    and the next count is right."""
    cache, expected = opened(lambd=0.5), golden_model.extract(waves, lambd=0.5)
    ask(cache, waves, golden_model, lambd=0.5)
    path = cache.path(waves[2])
    good = path.read_bytes()
    path.write_bytes(BROKEN[kind](good))
    ran.clear()
    assert_same(ask(cache, waves, golden_model, lambd=0.5), expected)
    assert ran == [len(waves[2])]
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1 and str(path) in warned[0] and "computed again" in warned[0]
    assert_same(ask(cache, waves, golden_model, lambd=0.5), expected)
    assert len(ran) == 1 and len(path.read_bytes()) == len(good)
    cache.close()
    with opened(lambd=0.5) as cache:
        assert counted(cache.quota.folder) == on_disk(cache.quota.folder)


@pytest.mark.parametrize("left", ["SECTION/ab/.0123.x.safetensors", "SECTION/.key.x.json", ".bytes.x"])
def test_leftovers_of_a_kill_are_removed(left, waves, golden_model, opened, tmp_path):
    """Half-written files of a killed process are removed by the next that opens the folder alone, and not while
    another one, whose they may be, has it open; the count is right again."""
    with opened() as cache:
        ask(cache, waves, golden_model)
    half = tmp_path / "features" / left.replace("SECTION", cache.section.name)
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half of it")
    (tmp_path / "features" / "bytes").write_text("123456\n")  # taken for what was not written
    with opened(lambd=0.5):
        assert not half.exists()
        assert counted(tmp_path / "features") == on_disk(tmp_path / "features")
        half.write_bytes(b"half of it")
        with opened():
            assert half.exists()


def test_an_interrupted_deletion(alike, golden_model, opened, tmp_path, monkeypatch):
    """A section that a killed process has deleted in part still counts, and goes in the end."""
    folder, waves = tmp_path / "features", alike(4)
    with opened() as cache:
        ask(cache, waves, golden_model)
    size = on_disk(folder) // 4

    def cut_off(section, **options):
        (section / "key.json").unlink()  # folders come in any order
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, opened(limit=4 * size, lambd=0.001) as other:
        patch.setattr(shutil, "rmtree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            ask(other, waves, golden_model, lambd=0.001)
    with opened(limit=4 * size, lambd=0.001) as other:
        assert_same(ask(other, waves, golden_model, lambd=0.001), golden_model.extract(waves, lambd=0.001))
        assert on_disk(folder) <= 4 * size


CHILD = """
import pathlib, sys, time
import torch
import s3prl_ofa
from s3prl_ofa.superb.feature_cache.cache import FeatureCache

torch.set_num_threads(1)
folder, limit, lambd, ckpt, doing = sys.argv[1:]
model, lambd = s3prl_ofa.load(ckpt), float(lambd)
waves = list(0.1 * torch.randn(24, 4800, generator=torch.Generator().manual_seed(1)))

def hang(path, content):
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
    print("writing", flush=True)
    time.sleep(600)

with FeatureCache(folder, int(limit) / 10**9, model, {"lambd": lambd}, (0, 1, 2)) as cache:
    print("open", flush=True)
    sys.stdin.readline()
    for number, wave in enumerate(waves * 2):
        if doing == "hang" and number == 3:
            pathlib.Path.write_bytes = hang
        out = cache.extract([wave], lambda missing: model.extract(missing, lambd=lambd))
        assert torch.allclose(out.hidden_states[-1], model.extract([wave], lambd=lambd).hidden_states[-1], atol=1e-5)
"""


def start(folder, limit, lambd, doing="fill") -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(folder), str(limit), str(lambd), CKPT, doing]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes)


def child_waves() -> list[torch.Tensor]:
    return list(0.1 * torch.randn(24, 4800, generator=torch.Generator().manual_seed(1)))


def test_killed_while_writing(golden_model, opened, tmp_path, ran):
    """What one process has open another one leaves alone; killed while it writes, it leaves a cache with its complete
    entries, nothing half written, and the right count."""
    folder, waves = tmp_path / "features", child_waves()
    child = start(folder, 10**8, 0.0, "hang")
    try:
        child.stdin.write("go\n")
        child.stdin.flush()
        assert [child.stdout.readline(), child.stdout.readline()] == ["open\n", "writing\n"]
        with opened(limit=on_disk(folder), lambd=0.5) as cache:  # full, and nothing may go
            ask(cache, waves, golden_model, lambd=0.5)
            assert len(list(folder.rglob("*.safetensors"))) == 4
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    ran.clear()
    with opened() as cache:
        assert counted(folder) == on_disk(folder) and len(list(folder.rglob("*.safetensors"))) == 3
        ask(cache, waves, golden_model)
        assert len(ran) == len(waves) - 3
        assert counted(folder) == on_disk(folder)


def test_two_writers_of_one_entry(waves, golden_model, opened, tmp_path, monkeypatch):
    """Of two that store the same utterance at the same time one writes it, and its size counts once."""
    first, second, written, write = opened(), opened(), [], section.atomic_write
    other = threading.Thread(target=ask, args=(second, waves[:1], golden_model))

    def write_beside_the_other(path, content, sync):
        written.append(path)
        if len(written) == 1:
            other.start()
            other.join(0.5)  # it ends, unless it waits until this entry is there
        write(path, content, sync)

    monkeypatch.setattr(section, "atomic_write", write_beside_the_other)
    ask(first, waves[:1], golden_model)
    other.join()
    assert len(written) == 1
    assert counted(tmp_path / "features") == on_disk(tmp_path / "features")


@pytest.mark.slow
def test_several_processes_at_once(golden_model, opened, tmp_path, ran):
    """Two processes that fill the same section, and one of another rate, get correct features, never exceed the limit
    together, and leave a right count."""
    folder, waves = tmp_path / "features", child_waves()
    with opened(folder=tmp_path / "one") as cache:
        ask(cache, waves[:1], golden_model)
    limit = 30 * on_disk(tmp_path / "one")
    children = [start(folder, limit, lambd) for lambd in (0.0, 0.0, 0.001)]
    try:
        assert [child.stdout.readline() for child in children] == ["open\n"] * 3
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        while any(child.poll() is None for child in children):
            assert on_disk(folder) <= limit
            time.sleep(0.01)
        assert [child.returncode for child in children] == [0, 0, 0]
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert on_disk(folder) == counted(folder) <= limit
    ran.clear()
    with opened(limit=limit) as cache:
        assert counted(folder) == on_disk(folder)
        assert_same(ask(cache, waves, golden_model), golden_model.extract(waves))


@pytest.mark.parametrize("below", ["file", "file/features", "file/a/b"])
def test_a_folder_that_cannot_be_written(below, golden_model, tmp_path):
    """A folder that cannot be made is reported in one sentence that names it."""
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UsageError, match=r"cannot be written \(.+\); choose another") as error:
        FeatureCache(tmp_path / below, 1, golden_model, {"lambd": 0.0}, ALL)
    assert str(tmp_path / below) in str(error.value) and "\n" not in str(error.value)


def full_disk(monkeypatch, *methods):
    def fail(path, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    for method in methods:
        monkeypatch.setattr(pathlib.Path, method, fail)


@pytest.mark.parametrize("methods", [("write_bytes",), ("write_text",), ("write_bytes", "write_text")], ids=str)
def test_a_full_disk_stops_nothing(methods, waves, golden_model, opened, monkeypatch, caplog, ran):
    """Where the disk is full, for entries, for their count or both, one warning says so, the features still come, what
    is there is used, and nothing half written stays."""
    cache = opened()
    ask(cache, waves[:1], golden_model)
    expected = golden_model.extract(waves)
    with monkeypatch.context() as patch:
        full_disk(patch, *methods)
        ran.clear()
        for _ in range(2):
            assert_same(ask(cache, waves, golden_model), expected)
    assert len(ran) == 2 * (len(waves) - 1)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1 and "No space left on device" in warned[0]
    assert not list(cache.quota.folder.rglob(".*.safetensors"))
    cache.close()
    with opened() as cache:
        assert counted(cache.quota.folder) == on_disk(cache.quota.folder)


def test_a_folder_that_someone_removes(waves, golden_model, opened, ran):
    """Caches get emptied by hand: a training that uses one continues."""
    cache = opened()
    ask(cache, waves[:2], golden_model)
    shutil.rmtree(cache.quota.folder)
    for _ in range(2):
        assert_same(ask(cache, waves, golden_model), golden_model.extract(waves))


def test_a_section_that_cannot_be_deleted(alike, golden_model, opened, tmp_path, monkeypatch):
    """If the section that should make room cannot be deleted, the newcomer continues without storing."""
    waves = alike(2)
    with opened() as cache:
        ask(cache, waves, golden_model)

    def refuse(section, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(section))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with opened(limit=on_disk(tmp_path / "features"), lambd=0.5) as cache:
        assert_same(ask(cache, waves, golden_model, lambd=0.5), golden_model.extract(waves, lambd=0.5))
