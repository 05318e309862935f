"""SIGTERM, as from Slurm, ends a command as Ctrl-C does: one line, status 128 + 15, no process left, resumable."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types
import uuid
import weakref

import pytest
import soundfile
from guidance_data import write_ctm, write_manifest
from paths import ROOT
from pretraining import corpus_settings, make_corpus, read_checkpoint, write_config

from s3prl_ofa import cli, signals

PATIENCE = 300  # seconds
MARK = "OFA_TEST_MARK"


class Running:
    """``s3prl-ofa`` with these arguments, in a process; whatever comes of it can be told by its environment."""

    def __init__(self, folder: pathlib.Path, *arguments: object) -> None:
        self.mark, self.log = f"{MARK}={uuid.uuid4()}", folder / "log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", MARK: self.mark.partition("=")[2]}
        command = [sys.executable, "-m", "s3prl_ofa", *map(str, arguments)]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True, cwd=ROOT
            )

    def until(self, found) -> None:
        give_up = time.monotonic() + PATIENCE
        while not found() and self.process.poll() is None and time.monotonic() < give_up:
            time.sleep(0.02)
        assert found() and self.process.poll() is None, self.log.read_text()[-3000:]

    def alive(self) -> list[int]:
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            try:  # a process that has ended and is not yet collected has no environment
                if self.mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
            except OSError:
                pass
        return found

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        try:
            status = self.process.wait(PATIENCE)
            give_up = time.monotonic() + 30  # multiprocessing's resource tracker ends a moment after its parent
            while self.alive() and time.monotonic() < give_up:
                time.sleep(0.02)
            assert self.alive() == []
        finally:
            for process in self.alive():
                os.kill(process, signal.SIGKILL)
        return status, self.log.read_text()


def test_extract_and_again(golden_checkpoint, tmp_path, make_wave):
    """In the middle of real work: one line and 143; finished files are kept, and none is half written."""
    soundfile.write(tmp_path / "0.wav", make_wave(60.0, 0), 16_000)
    for index in range(1, 200):
        os.link(tmp_path / "0.wav", tmp_path / f"{index}.wav")
    out = tmp_path / "out"
    running = Running(
        tmp_path,
        "extract",
        tmp_path,
        "--ckpt",
        golden_checkpoint,
        "--out",
        out,
        "--batch-seconds",
        1,
        "--device",
        "cpu",
    )
    index = out / "index.jsonl"
    running.until(lambda: index.exists() and index.stat().st_size)
    status, said = running.end()
    assert status == 143 and said.splitlines()[-1].endswith("s3prl-ofa extract: terminated")
    assert "Traceback" not in said
    done = len(index.read_text().splitlines())
    assert 0 < done < 200 and not list((out / "features").glob(".*"))
    for number in range(10, 200):
        (tmp_path / f"{number}.wav").unlink()
    assert cli.main(["extract", str(tmp_path), "--ckpt", str(golden_checkpoint), "--out", str(out)]) == 0
    assert len(list((out / "features").glob("*.npy"))) >= 10


@pytest.mark.slow
def test_guidance(tmp_path):
    """Its processes end with it."""
    manifest = write_manifest(tmp_path / "train.tsv", tmp_path, {f"{number}.flac": 320_000 for number in range(3000)})
    ctm = write_ctm(
        tmp_path / "train.ctm", {str(number): [(0.0, 10.0, "A"), (10.0, 20.0, "B")] for number in range(3000)}
    )
    out = tmp_path / "out"
    running = Running(tmp_path, "guidance", "ctm", ctm, "--manifest", manifest, "--out", out, "--jobs", 2)
    running.until(lambda: any(out.rglob("*.pt")))
    status, said = running.end()
    assert status == 143 and said.splitlines()[-1].endswith("s3prl-ofa guidance: terminated")
    assert "Traceback" not in said and not list(out.rglob(".*.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_pretrain_and_again(tmp_path, processes):
    """Also with several processes and their data workers, and it resumes."""
    out, settings = tmp_path / "out", ["dataset.num_workers=1", "checkpoint.save_interval_updates=1"]
    config = write_config(tmp_path / "tiny.yaml", dataset={"disable_validation": True})
    command = ["pretrain", "--nproc", processes, "--config", config]
    command += [*corpus_settings(make_corpus(tmp_path / "corpus"), out), *settings]
    running = Running(tmp_path, *command, "optimization.max_update=100000")
    last = out / "checkpoints" / "checkpoint_last.pt"
    running.until(last.exists)
    status, said = running.end()
    assert status == 143 and said.splitlines()[-1] == "s3prl-ofa pretrain: terminated"
    if processes == 1:  # torchrun tells of its own end
        assert "Traceback" not in said
    assert not list(last.parent.glob(".*"))
    updates = read_checkpoint(last)["optimizer_history"][-1]["num_updates"] + 1
    assert cli.main(["pretrain", *map(str, command[3:]), f"optimization.max_update={updates}"]) == 0
    assert read_checkpoint(last)["optimizer_history"][-1]["num_updates"] == updates


@pytest.fixture
def fake(monkeypatch):
    """Makes ``s3prl-ofa fake`` run the given function in this process."""

    def install(function):
        work, arguments = types.ModuleType("fake_work"), types.ModuleType("s3prl_ofa.arguments.fake")
        work.run, arguments.add_arguments = function, lambda parser: None
        for module in (work, arguments):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "fake", cli.Command(work.__name__, ""))
        return lambda: cli.main(["fake"])

    return install


def test_handlers_are_put_back(fake):
    """The command takes SIGTERM while it runs and no longer; as a library the package takes none at all."""
    seen = []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    fake(lambda arguments: seen.append(signal.getsignal(signal.SIGTERM)))()
    assert callable(seen[0]) and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    code = "import signal, s3prl_ofa, s3prl_ofa.superb, s3prl_ofa.pretrain, s3prl_ofa.sweep.run.command; "
    code += "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_hosts_handler_stays(fake):
    """A program that calls the command line keeps its own handler, as submitit does on a cluster."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *arguments: heard.append(arguments))
    try:
        assert fake(lambda arguments: os.kill(os.getpid(), signal.SIGTERM))() == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(heard) == 1


def test_in_another_thread(fake):
    """Where Python allows no handlers, the command runs without one."""
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(fake(lambda arguments: 3)()))
    thread.start()
    thread.join()
    assert statuses == [3]


def test_an_error_that_the_end_brings(fake, capsys):
    """An error caused by the signal, as from a data worker that ended first, is not reported."""

    def run(arguments):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.") from None

    assert fake(run)() == 143
    assert capsys.readouterr().err == "s3prl-ofa fake: terminated\n"


def test_a_second_signal_while_ending(fake, capsys):
    """The child was told to end at the first; the second does not wait for it."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child.stdout.readline()
    timers = [threading.Timer(delay, os.kill, (os.getpid(), signal.SIGTERM)) for delay in (0.2, 0.6)]

    def run(arguments):
        for timer in timers:
            timer.start()
        return signals.wait_for(child)

    try:
        assert fake(run)() == 143
        assert capsys.readouterr().err == "s3prl-ofa fake: terminated\n" and child.poll() is None
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_signal_while_a_process_is_started():
    """It counts when the process is known, so that none is left behind."""
    known = []
    with pytest.raises(signals.Terminated), signals.termination(), signals.delayed_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        known.append("started")
    assert known == ["started"]


def test_a_signal_that_python_drops(fake, capsys):
    """An exception in the callback of a weak reference is dropped, as when a model is freed: the signal counts all the
    same, and nothing but the usual line is printed."""
    hook = sys.unraisablehook

    class Model:
        pass

    def run(arguments):
        model, times = Model(), []

        def freed(reference):
            times.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)

        reference = weakref.ref(model, freed)
        del model
        assert reference() is None and len(times) == 1  # the exception of the first signal did not get here
        time.sleep(PATIENCE)
        return 0

    assert fake(run)() == 143
    assert capsys.readouterr().err == "s3prl-ofa fake: terminated\n" and sys.unraisablehook is hook
