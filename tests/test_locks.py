"""Locks: they keep others out, die with their holder, and can leave no file behind."""

import subprocess
import sys
import threading

import pytest

from s3prl_ofa import locks


def test_a_lock_is_inherited_and_dies_with_its_holder(tmp_path):
    """A process that was given the lock keeps it when its parent is gone; killed, it lets go."""
    path = tmp_path / "lock"
    with locks.locked(path, wait=False) as lock:
        with pytest.raises(locks.InUse), locks.locked(path, wait=False):
            pass
        code = "import sys; print('ready', flush=True); sys.stdin.read()"
        child = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=[lock.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        child.stdout.readline()
    assert locks.is_locked(path)
    child.kill()
    child.wait()
    child.stdin.close(), child.stdout.close()
    assert not locks.is_locked(path)


def test_shared(tmp_path):
    """Those who share a lock hold it together, and keep out who wants it alone."""
    path = tmp_path / "lock"
    with locks.locked(path, wait=False, shared=True), locks.locked(path, wait=False, shared=True):
        assert locks.is_locked(path)
    assert not locks.is_locked(path)


def test_a_file_that_goes_with_its_holder(tmp_path):
    """With remove the file is there only while it is held; one who waits for it then holds a file that others see."""
    path, seen = tmp_path / "lock", []

    def wait():
        with locks.locked(path, wait=True, remove=True):
            seen.append(locks.is_locked(path))

    with locks.locked(path, wait=False, remove=True):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
    waiting.join(10)
    assert seen == [True] and not path.exists()


def test_a_system_without_locks(tmp_path, monkeypatch):
    """Where there are no locks at all the importing of this package works, and taking one says so."""
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.raises(locks.NoLocks, match="not on this operating system"), locks.locked(tmp_path / "lock", wait=True):
        pass
