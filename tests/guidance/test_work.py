"""Many utterances: skipped, killed, in parallel, and never with mixed settings."""

import fcntl
import pathlib
import subprocess
import sys
import time

import pytest
from guidance_data import contents, guidance, write_ctm, write_manifest

from s3prl_ofa.guidance.layout import read_alpha, read_boundaries

SECONDS = 6
SAMPLES = SECONDS * 16_000


@pytest.fixture
def many(tmp_path):
    """Manifest and CTM of many utterances; none of them needs audio."""

    def make(count: int) -> tuple[pathlib.Path, pathlib.Path]:
        names = [f"v1.{number % 7}/u.{number}" for number in range(count)]
        manifest = write_manifest(tmp_path / "m.tsv", tmp_path, {f"{name}.flac": SAMPLES for name in names})
        alignments = {
            name.split("/")[1]: [(0.1 * i, 0.1 * (i + 1), f"P{(i + number) % 9}") for i in range(10 * SECONDS)]
            for number, name in enumerate(names)
        }
        return write_ctm(tmp_path / "x.ctm", alignments), manifest

    return make


def test_parallel_equals_serial(many, tmp_path):
    """Two processes write what one writes, byte for byte."""
    ctm, manifest = many(40)
    for jobs in (1, 2):
        assert guidance("ctm", ctm, "--manifest", manifest, "--out", tmp_path / str(jobs), "--jobs", jobs) == 0
    assert len(contents(tmp_path / "1")) == 80 and contents(tmp_path / "1") == contents(tmp_path / "2")


def test_whole_pairs_are_skipped(many, tmp_path, capsys):
    """A pair that is incomplete, or is not what the alignments say, is made again; the others are left alone."""
    ctm, manifest = many(5)
    options = ("ctm", ctm, "--manifest", manifest, "--out", tmp_path / "out", "--jobs", 1)
    assert guidance(*options) == 0
    before = contents(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.pt")}
    touched, half = tmp_path / "out" / "alpha" / "v1.0" / "u.0.pt", tmp_path / "out" / "boundaries" / "v1.1" / "u.1.pt"
    touched.write_bytes(b"touched")
    half.unlink()
    assert guidance(*options) == 0
    assert "2 of 5 utterances written, 3 already done" in capsys.readouterr().out
    assert contents(tmp_path / "out") == before
    same = {path.stem for path, moment in times.items() if path.stat().st_mtime_ns == moment}
    assert same == {"u.2", "u.3", "u.4"}


def test_other_alignments(tmp_path, capsys):
    """Guidance of an earlier CTM does not count as done: changed utterances are made again. One that the new CTM lacks
    is left out and keeps its guidance, which may be of another CTM for the same folder, unless --force is given."""
    manifest = write_manifest(tmp_path / "train.tsv", tmp_path / "audio", {"a.flac": 16_000, "b.flac": 16_000})
    phones, words = [(0.0, 0.2, "A"), (0.2, 0.5, "B")], [(0.0, 0.5, "AB")]
    ctm = write_ctm(tmp_path / "x.ctm", {"a": phones, "b": phones})
    options = ("ctm", ctm, "--manifest", manifest, "--out", tmp_path / "out")
    assert guidance(*options) == 0
    write_ctm(ctm, {"a": words})
    assert guidance(*options) == 1
    assert "1 of 2 utterances written, 0 already done" in capsys.readouterr().out
    assert read_boundaries(tmp_path / "out" / "boundaries", "a.flac").tolist()[0] == 25
    assert (tmp_path / "out" / "left_out.tsv").read_text().startswith("b.flac\t")
    assert len(list((tmp_path / "out").rglob("b.pt"))) == 2
    assert guidance(*options, "--force") == 1
    assert not list((tmp_path / "out").rglob("b.pt"))


def test_settings_are_not_mixed(many, tmp_path, capsys):
    """A folder holds guidance of one kind: another kind is refused, or replaces all with --force; guidance that was
    not made here is never touched."""
    ctm, manifest = many(3)
    options = ("ctm", ctm, "--manifest", manifest, "--out", tmp_path / "out")
    assert guidance(*options) == 0
    assert guidance(*options, "--silence", "merge") == 2
    assert "holds results made with silence keep, not merge" in capsys.readouterr().err
    write_manifest(manifest, tmp_path, {"v1.0/u.0.flac": SAMPLES})
    assert guidance(*options, "--silence", "merge", "--force") == 0
    assert set(contents(tmp_path / "out")) == {"alpha/v1.0/u.0.pt", "boundaries/v1.0/u.0.pt"}
    (tmp_path / "out" / "settings.json").write_text("no json")
    assert guidance(*options) == 2
    (tmp_path / "out" / "settings.json").unlink()
    assert guidance(*options, "--force") == 2
    assert "not made here" in capsys.readouterr().err and len(contents(tmp_path / "out")) == 2


def test_one_process_at_a_time(many, tmp_path, capsys):
    """A folder in use is refused; leftovers of a killed process are removed."""
    ctm, manifest = many(1)
    options = ("ctm", ctm, "--manifest", manifest, "--out", tmp_path / "out")
    assert guidance(*options) == 0
    leftover = tmp_path / "out" / "alpha" / "v1.0" / ".u.0.abcdefgh.pt"
    leftover.touch()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert guidance(*options) == 2
        assert "in use" in capsys.readouterr().err and leftover.exists()
    assert guidance(*options) == 0 and not leftover.exists()


def test_too_short_and_too_long_a_name(many, tmp_path, capsys):
    """An utterance without a frame and one with an impossible file name are reported, and the rest is done."""
    ctm, manifest = many(1)
    long_name = f"{'n' * 300}.flac"
    write_manifest(manifest, tmp_path, {"v1.0/u.0.flac": SAMPLES, "short.flac": 399, long_name: SAMPLES})
    ctm.write_text(ctm.read_text() + f"{'n' * 300} 1 0 1 A\n")
    assert guidance("ctm", ctm, "--manifest", manifest, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "short.flac: too short: 399 samples, at least 400" in error and "name is too long" in error
    assert len(contents(tmp_path / "out")) == 2


def children(pid: int) -> list[int]:
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="needs /proc")
def test_killed(many, tmp_path):
    """kill -9 leaves only whole files and no process; the next run does the rest, with the same result as an
    undisturbed one."""
    ctm, manifest = many(600)
    out = tmp_path / "out"
    options = ["ctm", str(ctm), "--manifest", str(manifest), "--out"]
    command = [sys.executable, "-m", "s3prl_ofa", "guidance", *options, str(out), "--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(list(out.glob("boundaries/*/*.pt"))) > 20)
        workers = children(process.pid)
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not any(is_running(worker) for worker in workers))
    left = [name for name in contents(out) if not pathlib.PurePath(name).name.startswith(".")]
    assert workers and 40 < len(left) < 1200
    for name in left:
        folder, relative = name.split("/", 1)
        frames = read_alpha(out / folder, relative) if folder == "alpha" else read_boundaries(out / folder, relative)
        assert len(frames) == {"alpha": 299, "boundaries": 60}[folder]
    assert guidance(*options, out, "--jobs", 1) == guidance(*options, tmp_path / "whole", "--jobs", 1) == 0
    assert contents(out) == contents(tmp_path / "whole")
