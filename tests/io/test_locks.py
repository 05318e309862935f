"""Locks keep others out, end with their holder, and can remove their file."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from s3prl_ofa.io import locks


def test_a_lock_is_inherited_and_dies_with_its_holder(tmp_path):
    """A process that inherited the lock keeps it when its parent is gone, until it is killed."""
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


def test_a_forked_worker_does_not_hold_it(tmp_path):
    """A data worker that outlives its killed parent does not keep the lock."""
    code = (
        "import os, pathlib, sys, time; from s3prl_ofa.io import locks\n"
        "with locks.locked(pathlib.Path(sys.argv[1]), wait=False):\n"
        "    child = os.fork()\n"
        "    if child: print(child, locks.is_locked(pathlib.Path(sys.argv[1])), flush=True)\n"
        "    time.sleep(600)"
    )
    path = tmp_path / "lock"
    parent = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    child, held = parent.stdout.readline().split()
    try:
        assert held == "True" and locks.is_locked(path)
        parent.kill()
        parent.wait()
        for _ in range(600):  # the worker lets go once it runs, which can take a while where all cores are busy
            if not locks.is_locked(path):
                break
            time.sleep(0.1)
        assert not locks.is_locked(path)
        os.kill(int(child), 0)  # it lives
    finally:
        os.kill(int(child), signal.SIGKILL)
        parent.stdout.close()


def test_shared(tmp_path):
    """Several processes can share a lock, which excludes others."""
    path = tmp_path / "lock"
    with locks.locked(path, wait=False, shared=True), locks.locked(path, wait=False, shared=True):
        assert locks.is_locked(path)
    assert not locks.is_locked(path)


def test_a_file_that_goes_with_its_holder(tmp_path):
    """With remove the file exists only while it is locked; whoever waits for it then locks a file that others see."""
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
    """Without locks importing the package works, and taking a lock raises NoLocks."""
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.raises(locks.NoLocks, match="not on this operating system"), locks.locked(tmp_path / "lock", wait=True):
        pass
