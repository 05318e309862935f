"""The process of a shard: ``python -m s3prl_ofa.extract.shard FOLDER`` does what is left of the shard's work.

The shard is locked meanwhile. The process ends when the one that started it ends, for whatever reason.
"""

import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from s3prl_ofa.cli import guarded
from s3prl_ofa.errors import UsageError
from s3prl_ofa.extract.extraction import Extraction
from s3prl_ofa.extract.inputs import Utterance
from s3prl_ofa.extract.store import ERRORS, WORK, Store, read_index
from s3prl_ofa.extract.tally import Tally
from s3prl_ofa.extract.writers import get_format
from s3prl_ofa.io.files import read_json
from s3prl_ofa.io.locks import locked
from s3prl_ofa.io.output_folder import LOCK
from s3prl_ofa.jobs.slots import process_environment
from s3prl_ofa.signals import wait_for

COMMAND = "s3prl-ofa extract"
LOG = "run.log"


class ShardProcess:
    """A process on this machine for the shard in ``folder``; its output is appended to the shard's log.

    gpu: the one to use, empty for none; None leaves it to the environment.
    """

    def __init__(self, folder: pathlib.Path, gpu: str | None, threads: int) -> None:
        command = [sys.executable, "-m", "s3prl_ofa.extract.shard", str(folder)]
        self.log = folder / LOG
        with self.log.open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=process_environment(gpu, threads)
            )

    def done(self) -> bool:
        return self.process.poll() is not None

    def end(self) -> str | None:
        """Waits for the process, which Ctrl-C or a cluster's signal also ends. None, or why it did not finish."""
        status = wait_for(self.process)
        self.process.communicate()  # closes its standard input
        if status == 0:
            return None
        if status < 0:
            return signal.strsignal(-status) or f"signal {-status}"
        lines = self.log.read_text("utf-8", "replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), f"exit status {status}")


def main(argv: Sequence[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    threading.Thread(target=end_with_parent, daemon=True).start()
    return guarded(COMMAND, lambda: run(pathlib.Path(argv[0])))


def end_with_parent() -> None:
    """Exits at the end of standard input, a pipe whose other end only the parent holds."""
    os.read(sys.stdin.fileno(), 1)  # sys.stdin.read would hold a lock that the interpreter needs at its end
    os.kill(os.getpid(), signal.SIGTERM)


def run(folder: pathlib.Path) -> int:

    from s3prl_ofa.checkpoint import load

    with locked(folder / LOCK, wait=True):
        try:
            work = read_json(folder / WORK)
        except FileNotFoundError:
            return 0  # it waited in a queue, and its work was divided again
        model = load(work["ckpt"], device=work["device"], dtype=work["dtype"])
        if model.fingerprint() != work["checkpoint"]:
            raise UsageError(f"{work['ckpt']} is not the checkpoint that extract was started with; start it again")
        store = Store(pathlib.Path(work["out"]), folder, read_index(folder))
        (folder / ERRORS).unlink(missing_ok=True)  # these files are tried again
        utterances = [
            (Utterance(pathlib.Path(path), *fields), seconds) for path, *fields, seconds in work["utterances"]
        ]
        tally = Tally(store, period_ms=None)
        extraction = Extraction(model, work["options"], get_format(work["format"]), tally, **work["mix"])
        left = [(utterance, seconds) for utterance, seconds in utterances if not store.is_finished(utterance)]
        extraction.run(left, work["batch_seconds"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
