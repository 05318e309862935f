"""Kills a sweep's processes at a chosen moment; Python imports this at its start if its folder is in PYTHONPATH.

OFA_KILL is "FILE MOMENT WHOM". FILE: the name of a file that a process of the sweep is about to write. MOMENT: before
or after it is in place. WHOM: all of the process group, or others, all of it but the process that writes; or told,
which sends SIGTERM to the sweep alone.
"""

import contextlib
import os
import pathlib
import signal
import time


def kill(whom: str) -> None:
    if whom == "all":
        os.killpg(0, signal.SIGKILL)
    if whom == "told":
        with contextlib.suppress(FileExistsError):  # once: a sweep does not wait for its points at a second signal
            os.close(os.open(os.environ["OFA_TOLD"], os.O_CREAT | os.O_EXCL))
            os.kill(os.getpgid(0), signal.SIGTERM)
        time.sleep(60)  # it is to end here
    others = (int(path.name) for path in pathlib.Path("/proc").glob("[0-9]*") if int(path.name) != os.getpid())
    for other in others:
        try:
            if os.getpgid(other) == os.getpgid(0):
                os.kill(other, signal.SIGKILL)
        except ProcessLookupError:
            pass
    time.sleep(6)  # so that the next sweep finds this one still at work


if "OFA_KILL" in os.environ:
    file, moment, whom = os.environ["OFA_KILL"].split()
    replace = os.replace

    def replace_and_kill(source, target, **options):
        hit = pathlib.Path(target).name == file
        if hit and moment == "before":
            kill(whom)
        replace(source, target, **options)
        if hit and moment == "after":
            kill(whom)

    os.replace = replace_and_kill
