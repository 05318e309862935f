"""Sweeps through real S3PRL, on the bundled audio: run, killed at chosen moments, failed and tried again."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from paths import ROOT

from s3prl_ofa import cli
from s3prl_ofa.io import locks
from s3prl_ofa.io.locks import locked
from s3prl_ofa.io.output_folder import LOCK
from s3prl_ofa.sweep.grid.jobs import prepare
from s3prl_ofa.sweep.grid.schema import read_grid
from s3prl_ofa.sweep.results import FEATURES, PointFolder, collect, numbered_lines
from s3prl_ofa.sweep.run import command

CKPT = str(ROOT / "tests" / "golden" / "ref_tiny.pt")
KILLER = pathlib.Path(__file__).parent / "killer"
SPEAKERS = ("id10001", "id10002")
MEASURED = ("upstream_seconds_per_second", "downstream_seconds_per_second", "peak_memory_mb", "duration_s")
OF_THE_RUN = (*MEASURED, "attempts", "finished", "commit")  # what another run of the same point may have otherwise


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Two of the bundled speakers, laid out as VoxCeleb1."""
    source, root = ROOT / "s3prl_ofa" / "demo" / "audio", tmp_path_factory.mktemp("voices")
    lines = (source / "veri_test_class.txt").read_text().splitlines()
    kept = [line for line in lines if any(speaker in line for speaker in SPEAKERS)]
    (root / "veri_test_class.txt").write_text("".join(f"{line}\n" for line in kept))
    for folder in ("dev", "test"):
        for speaker in SPEAKERS:
            if (source / folder / "wav" / speaker).is_dir():
                shutil.copytree(source / folder / "wav" / speaker, root / folder / "wav" / speaker)
    return root


def grid_of(voices, **changes) -> dict:
    """Speaker identification at two rates: 6 steps on random pieces of a second, 5 batches per epoch."""
    datarc = {"train_batch_size": 4, "max_timestep": 16_000}
    overrides = {f"downstream_expert.datarc.{key}": value for key, value in datarc.items()}
    overrides |= {"runner.eval_step": 3, "runner.save_step": 2, "optimizer.lr": 0.02}
    return {
        "checkpoints": {"tiny": CKPT},
        "tasks": {"sid": {"steps": 6, "overrides": overrides}},
        "rates": {"lambd": [0, 1]},
        "mini": True,
        "data": {"voxceleb1": str(voices)},
        "executor": {"kind": "local", "cpus": 1},
        **changes,
    }


def command_of(grid: dict, out: pathlib.Path) -> list[str]:
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(grid))
    return [sys.executable, "-m", "s3prl_ofa", "sweep", str(path), "--out", str(out)]


def start(grid: dict, out: pathlib.Path, kill: str | None = None) -> tuple[int, str]:
    """Runs a sweep in its own process group, killed as killer/sitecustomize.py says; its exit status and output."""
    environment = dict(os.environ)
    if kill is not None:
        environment |= {"OFA_KILL": kill, "OFA_TOLD": str(out.with_suffix(".told"))}
        environment["PYTHONPATH"] = os.pathsep.join([str(KILLER), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = command_of(grid, out)
    # files, not pipes: a process that outlives the sweep would keep a pipe open
    with out.with_suffix(".txt").open("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment, cwd=ROOT, start_new_session=True)
        status = process.wait(600)
        if status >= 0:
            give_up = time.monotonic() + 30  # a job's processes end a moment after its result is there
            while left_of(process.pid) and time.monotonic() < give_up:
                time.sleep(0.05)
            assert left_of(process.pid) == []
        said.seek(0)
        return status, said.read()


def left_of(group: int) -> list[str]:
    """The processes of a process group, without those that are dead and not yet collected."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (path / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append((path / "cmdline").read_text().replace("\0", " "))
        except OSError:
            pass
    return found


def points(out: pathlib.Path) -> dict[str, dict]:
    """The rows of results.jsonl by point, without the hash of its name; no row is there twice."""
    rows = [row for _, row in numbered_lines(out)]
    assert {row["point"]: row for row in rows} == collect(out) and len(rows) == len(collect(out))
    return {row["point"].rpartition("-")[0]: row for row in rows}


def same_of_any_run(rows: dict[str, dict]) -> dict[str, dict]:
    return {name: {key: row[key] for key in row.keys() - set(OF_THE_RUN)} for name, row in rows.items()}


@pytest.fixture(scope="module")
def undisturbed(voices, tmp_path_factory):
    """An undisturbed sweep, both points at once."""
    out = tmp_path_factory.mktemp("undisturbed") / "sweep"
    status, said = start(grid_of(voices, executor={"kind": "local", "cpus": 1, "parallel": 2}), out)
    assert status == 0, said
    return out


def test_rows(undisturbed):
    """A row per point with grid keys, scores, measured period, cost, speed, memory, versions and exit state."""
    rows = points(undisturbed)
    assert rows.keys() == {"sid_tiny_lambd0_seed1", "sid_tiny_lambd1_seed1"}
    slow, fast = rows["sid_tiny_lambd0_seed1"], rows["sid_tiny_lambd1_seed1"]
    for row in rows.values():
        assert row["state"] == "finished" and row["scores"]["acc"] == row["score"] and 0 <= row["dev_score"] <= 1
        assert row["seed"] == 1 and row["steps"] == 6 and row["learning_rate"] == 0.02 and row["attempts"] == 1
        assert row["device"] and row["versions"]["torch"] and row["peak_memory_mb"] > 50 and row["duration_s"] > 0
        assert min(row["upstream_seconds_per_second"], row["downstream_seconds_per_second"]) > 0
    assert slow["frame_period_ms"] == pytest.approx(20.1, abs=0.1)
    assert fast["frame_period_ms"] == pytest.approx(79.7, abs=3)
    assert slow["frame_count"] > 3 * fast["frame_count"] and slow["macs_per_second"] > fast["macs_per_second"]
    assert {path.name for path in (undisturbed / "points").iterdir()} == {row["point"] for row in rows.values()}
    assert not (undisturbed / FEATURES).exists()  # as no cache was asked for


def test_finished_points_are_not_run_again(undisturbed, capsys):
    """The same sweep again has nothing to do and changes nothing; a row that got lost, or was cut off, comes back."""
    text = (undisturbed / "results.jsonl").read_bytes()
    logs = {path: path.stat().st_mtime_ns for path in undisturbed.glob("points/*/run.log")}
    for lost in (b"", text.splitlines(keepends=True)[0], text[:100]):
        (undisturbed / "results.jsonl").write_bytes(text.removeprefix(lost))
        assert cli.main(["sweep", str(undisturbed.with_suffix(".yaml")), "--out", str(undisturbed)]) == 0
        assert sorted((undisturbed / "results.jsonl").read_bytes().splitlines()) == sorted(text.splitlines())
    assert "2 of 2 points are finished" in capsys.readouterr().out
    assert logs == {path: path.stat().st_mtime_ns for path in undisturbed.glob("points/*/run.log")}


KILLS = (
    "states-4.ckpt before all",  # in training, in the middle of an epoch
    "measured_test.json before others",  # the point goes on alone, and the next sweep waits for it
    "results.jsonl before all",  # at its start, before the row is in the file
)


@pytest.mark.slow
def test_killed_and_the_same(voices, undisturbed, tmp_path):
    """Killed with SIGKILL in training, in evaluation and in the middle of writing a row, and started again each time, a
    sweep ends with the row of the one that was not disturbed: the same scores, not lost, not twice."""
    out = tmp_path / "sweep"
    grid = grid_of(voices, rates={"lambd": 1})
    for kill in KILLS:
        status, said = start(grid, out, kill)
        assert status == -signal.SIGKILL, said
    status, said = start(grid, out)
    assert status == 0 and "1 of 1 points are finished" in said
    found, expected = same_of_any_run(points(out)), same_of_any_run(points(undisturbed))
    assert found == {name: expected[name] for name in ["sid_tiny_lambd1_seed1"]}
    assert points(out)["sid_tiny_lambd1_seed1"]["attempts"] == 2  # it was trained in two goes


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "workers"), [("states-4.ckpt", 2), ("measured_test.json", 0)])
def test_terminated(voices, undisturbed, tmp_path, moment, workers):
    """SIGTERM to the sweep alone, in the middle of writing a checkpoint or a result: one line, status 143, its points
    have ended with their data workers, nothing half-written is left, and the same command ends with the same rows."""
    out = tmp_path / "sweep"
    grid = grid_of(voices, executor={"kind": "local", "cpus": 1, "parallel": 2})
    grid["tasks"]["sid"]["overrides"]["downstream_expert.datarc.num_workers"] = workers
    status, said = start(grid, out, f"{moment} before told")
    assert status == 143 and said.endswith("s3prl-ofa sweep: terminated\n") and "Traceback" not in said
    assert not [path for path in (out / "points").rglob(f".*{pathlib.Path(moment).suffix}")]
    logs = "".join(path.read_text() for path in out.glob("points/*/run.log"))
    assert "s3prl-ofa run_downstream: terminated" in logs and "Traceback" not in logs
    status, said = start(grid, out)
    assert status == 0 and "2 of 2 points are finished" in said
    if not workers:  # which would draw other pieces of the utterances
        assert same_of_any_run(points(out)) == same_of_any_run(points(undisturbed))


@pytest.mark.slow
def test_killed_at_random_moments(voices, undisturbed, tmp_path):
    """Killed with SIGKILL at random moments, with its points or without them, a sweep ends the same."""
    out, seed = tmp_path / "sweep", random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    command = command_of(grid_of(voices, executor={"kind": "local", "cpus": 1, "parallel": 2}), out)
    for _ in range(3):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, start_new_session=True
        )
        time.sleep(draw.uniform(2, 14))  # an undisturbed sweep takes some fifteen seconds
        kill = draw.choice([os.kill, os.killpg])
        kill(process.pid, signal.SIGKILL)
        process.wait()
    status, said = start(grid_of(voices), out)
    assert status == 0 and "2 of 2 points are finished" in said, f"seed {seed}: {said}"
    assert same_of_any_run(points(out)) == same_of_any_run(points(undisturbed)), f"seed {seed}"


def test_one_sweep_a_folder(voices, tmp_path, capsys):
    """A second sweep in the same folder is refused, and does nothing."""
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid_of(voices)))
    with locked(tmp_path / "out" / LOCK, wait=False):
        assert cli.main(["sweep", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert "is in use by another process" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]


def test_no_locks(voices, tmp_path, monkeypatch, capsys):
    """A file system without locks is refused, as two sweeps could write the same results there."""

    def refuse(file, operation):
        raise OSError(37, "No locks available")

    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid_of(voices)))
    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    assert cli.main(["sweep", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert "has no locks" in capsys.readouterr().err


def test_no_folder(voices, tmp_path, capsys):
    """A folder that cannot be written is bad use."""
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid_of(voices)))
    (tmp_path / "file").write_text("")
    assert cli.main(["sweep", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("finished", [True, False])
def test_other_data_under_the_same_names(finished, voices, tmp_path, monkeypatch, caplog):
    """A point that was begun with another list of speakers is named, and what it has stays."""
    root, out, grid = tmp_path / "voices", tmp_path / "out", tmp_path / "grid.yaml"
    shutil.copytree(voices, root)
    grid.write_text(yaml.safe_dump(grid_of(root, rates={"lambd": 1})))
    (job,) = prepare(read_grid(grid)).values()
    folder = PointFolder(out / "points" / job.name)
    folder.save(job)
    folder.experiment.mkdir()
    if finished:
        folder.result.write_text(json.dumps(job.row("finished", score=0.5)))
    monkeypatch.setattr(command.Launcher, "run", lambda *_, **__: (end for end in ()))
    for lines, warnings in ((lambda text: text, 0), (lambda text: text[: text.rindex("3 ")], 1)):
        listed = root / "veri_test_class.txt"
        listed.write_text(lines(listed.read_text()))
        caplog.clear()
        cli.main(["sweep", str(grid), "--out", str(out)])
        assert caplog.text.count(f"1 points, such as {job.name}, were begun with other lists") == warnings
    assert folder.experiment.exists() and folder.result.exists() is finished


@pytest.mark.parametrize(("name", "text"), [("grid.yaml", "mine: 1\n"), ("results.jsonl", "mine\n")])
def test_a_folder_with_files_of_others(name, text, voices, tmp_path, capsys):
    """A file under the name of one of ours is not replaced, and hidden files of others are not taken for leftovers."""
    out = tmp_path / "out"
    out.mkdir()
    others = [out / other for other in (".gitlab-ci.template.yml", ".vimrc.20240101", ".cfg.settings/x")]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (out / name).write_text(text)
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid_of(voices)))
    assert cli.main(["sweep", str(tmp_path / "grid.yaml"), "--out", str(out)]) == 2
    assert f"{out / name} is no" in capsys.readouterr().err and (out / name).read_text() == text
    assert all(path.exists() for path in others)


@pytest.mark.slow
def test_failed_and_tried_again(voices, tmp_path, capsys):
    """A point that fails is listed with the end of its log and status 1, is left alone the next time, and --retry runs
    it again; its row is then replaced."""
    root = tmp_path / "voices"
    shutil.copytree(voices, root)
    hidden = root / "test" / "wav" / SPEAKERS[0]
    grid = grid_of(root, rates={"lambd": 1})
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    command = ["sweep", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]
    hidden.rename(tmp_path / "hidden")
    for _ in range(2):
        assert cli.main(command) == 1
        printed = capsys.readouterr().out
        assert "0 of 1 points are finished" in printed and "--retry" in printed
        (row,) = points(tmp_path / "out").values()
        assert f"{row['point']} failed: status 2" in printed and "lists files that are not in" in printed
        assert row["state"] == "failed" and row["log"] and row["value"] == 1
    log = tmp_path / "out" / "points" / row["point"] / "run.log"
    assert log.read_text().count("$ s3prl-ofa run_downstream") == 1
    (tmp_path / "hidden").rename(hidden)
    assert cli.main([*command, "--retry"]) == 0
    (row,) = points(tmp_path / "out").values()
    assert row["state"] == "finished" and row["attempts"] == 2
    assert "1 of 1 points are finished" in capsys.readouterr().out
