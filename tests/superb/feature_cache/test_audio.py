"""Decoded audio is cached beside the features: the same samples, decoded once, and again when the file has changed."""

import os
import shutil

import numpy as np
import pytest
import soundfile
from cached import on_disk

from s3prl_ofa.io.audio import AudioError, load_speech
from s3prl_ofa.superb.feature_cache.audio import AudioCache


@pytest.fixture
def flac(tmp_path):
    """A function (name, seed) that writes a second of noise and returns the path."""

    def write(name: str, seed: int = 0):
        path = tmp_path / name
        soundfile.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, 16_000), 16_000)
        return path

    return write


def test_each_file_is_decoded_once(flac, tmp_path, decoded):
    """By this process and the next, and whatever link it is reached by."""
    one, other = flac("one.flac"), flac("other.flac", 1)
    link = tmp_path / "link.flac"
    link.symlink_to(one)
    for _ in range(2):
        with AudioCache(tmp_path / "cache", 1) as cache:
            for path in (one, other, str(one), link):
                found = cache.load(path)
                assert found.dtype == np.float32 and np.array_equal(found, load_speech(path))
    assert decoded == [one, other]


def test_a_changed_file_is_decoded_again(flac, tmp_path, decoded):
    """Even one with the same name, size and time of change, put in its place."""
    path, other = flac("a.wav"), flac("b.wav", 1)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    with AudioCache(tmp_path / "cache", 1) as cache:
        before = cache.load(path)
        shutil.copy2(other, path)
        after = cache.load(path)
    assert path.stat().st_mtime_ns == other.stat().st_mtime_ns and len(decoded) == 2
    assert np.array_equal(after, load_speech(other)) and not np.array_equal(after, before)


def test_a_missing_file_is_named(tmp_path):
    with AudioCache(tmp_path / "cache", 1) as cache, pytest.raises(AudioError, match=r"gone\.flac: "):
        cache.load(tmp_path / "gone.flac")


def test_a_damaged_file_is_not_kept(flac, tmp_path):
    path = flac("cut.wav")
    path.write_bytes(path.read_bytes()[:1000])
    with AudioCache(tmp_path / "cache", 1) as cache:
        for _ in range(2):
            with pytest.raises(AudioError, match=r"cut\.wav: "):
                cache.load(path)
    assert on_disk(tmp_path / "cache") == 0


def test_beyond_the_limit_files_are_decoded_every_time(flac, tmp_path, decoded):
    one, other = flac("one.flac"), flac("other.flac", 1)
    with AudioCache(tmp_path / "cache", 70_000e-9) as cache:  # one of them has 64,000 bytes
        for path in (one, other, one, other):
            assert np.array_equal(cache.load(path), load_speech(path))
    assert decoded == [one, other, other] and on_disk(tmp_path / "cache") <= 70_000
