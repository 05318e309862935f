"""Sweeps whose grid changes: points of other settings never mix, and nothing that was done is lost or hidden."""

import copy
import json
import pathlib
import shutil

import pytest
import yaml
from paths import DEMO, REF_TINY
from sweep_rows import row

from s3prl_ofa import cli
from s3prl_ofa.io.files import write_json
from s3prl_ofa.sweep.grid.jobs import prepare
from s3prl_ofa.sweep.grid.schema import grid_from
from s3prl_ofa.sweep.job import Job
from s3prl_ofa.sweep.report.aggregation import summarize
from s3prl_ofa.sweep.results import PointFolder, collect, write_results
from s3prl_ofa.sweep.run.command import lay_out

ONE, TWO, THREE = (f"sid_tiny_lambd0_seed{seed}" for seed in (1, 2, 3))


def grid_of(ckpt=REF_TINY, steps=4, data=DEMO / "audio", **changes) -> dict:
    return {
        "checkpoints": {"tiny": str(ckpt)},
        "tasks": {"sid": {"steps": steps}},
        "rates": {"lambd": 0},
        "mini": True,
        "data": {"voxceleb1": str(data)},
        **changes,
    }


def jobs_of(given: dict) -> dict[str, Job]:
    """By label, which has no hash."""
    return {job.label: job for job in prepare(grid_from(copy.deepcopy(given))).values()}


def lay(out: pathlib.Path, given: dict) -> set[str]:
    """The labels of the points that are to be run."""
    jobs = {job.name: job for job in jobs_of(given).values()}
    return {jobs[name].label for name in lay_out(jobs, out, retry=False)}


def begin(out: pathlib.Path, job: Job, state: str | None = None, **found) -> PointFolder:
    """As if the point had been started, and with a state had ended."""
    folder = PointFolder(out / "points" / job.name)
    folder.log.write_text("$ s3prl-ofa run_downstream\n")
    if state:
        found = row("sid", "lambd", 0.0, 1) | found
        write_json(folder.result, found | job.row(state, error="x", log=[]))
    return folder


def folders(out: pathlib.Path) -> set[str]:
    return {path.name for path in (out / "points").iterdir()}


def test_other_settings_are_other_points(tmp_path):
    """Steps, checkpoint, limit of lambd and any key of the config decide a point's name; a label, its place or the
    machine's device do not."""
    ckpt, adaptive = tmp_path / "tiny.pt", {"rates": {"adaptive": 0}}
    shutil.copy(REF_TINY, ckpt)
    name = jobs_of(grid_of())[ONE].name
    batch = {"tasks": {"sid": {"steps": 4, "overrides": {"downstream_expert.datarc.train_batch_size": 2}}}}
    assert all(jobs_of(grid)[ONE].name != name for grid in (grid_of(steps=8), grid_of(**batch)))
    assert jobs_of(grid_of(ckpt))[ONE].name == jobs_of(grid_of(device="cpu"))[ONE].name == name
    limits = [{"sid": {"steps": 4, "lambd_max": limit}} for limit in (0.95, 0.5)]
    first, second = (jobs_of(grid_of(tasks=tasks, **adaptive)).popitem()[1].name for tasks in limits)
    assert first != second
    shutil.copy(DEMO / "tiny.safetensors", ckpt)
    assert jobs_of(grid_of(ckpt))[ONE].name != name


def test_a_corpus_that_was_moved_is_the_same(tmp_path):
    """Data counts by its folder's name, as it may lie elsewhere on another machine."""
    shutil.copytree(DEMO / "audio", tmp_path / "audio")
    shutil.copytree(DEMO / "audio", tmp_path / "other")
    name = jobs_of(grid_of())[ONE].name
    assert jobs_of(grid_of(data=tmp_path / "audio"))[ONE].name == name
    assert jobs_of(grid_of(data=tmp_path / "other"))[ONE].name != name


@pytest.mark.parametrize("steps", [4, 8])
def test_trainings_that_differ_are_no_seeds_of_one(steps, tmp_path):
    """In results and report both are there, told apart by what differs."""
    batch = {"sid": {"steps": steps, "overrides": {"downstream_expert.datarc.train_batch_size": 2}}}
    for given, name in ((grid_of(), ONE), (grid_of(tasks=batch, seeds=2), TWO)):
        lay(tmp_path, given)
        begin(tmp_path, jobs_of(given)[name], "finished", frame_period_ms=20.1)
    assert len(write_results(tmp_path)) == 2
    found = summarize(tmp_path, 0.05).settings
    assert sorted(found["seeds"]) == [(1,), (2,)] and found["detail"].nunique() == 2
    assert all(
        name.startswith(", config " if steps == 4 else f", {n} steps")
        for n, name in zip((4, 8), found["detail"], strict=True)
    )


def test_merged_rows_of_other_trainings(tmp_path):
    """Where results of two sweeps were put together, rows with other steps are settings of their own in the report."""
    rows = [row("sid", "lambd", 0.0, seed, steps=steps) for seed, steps in ((1, 100), (2, 9000))]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    summary = summarize(tmp_path, 0.05)
    assert list(summary.settings["detail"]) == [", 100 steps", ", 9000 steps"]
    assert list(summary.settings["seeds"]) == [(1,), (2,)]
    assert [found.curve for found in summary.longest_periods] == ["sid, tiny, 100 steps", "sid, tiny, 9000 steps"]


def test_results_of_earlier_grids_stay(tmp_path, corpora):
    """Other learning rates and tasks join those that are there."""
    first = grid_of(learning_rates=[0.1])
    lay(tmp_path, first)
    (job,) = jobs_of(first).values()
    begin(tmp_path, job, "finished")
    lay(tmp_path, grid_of(learning_rates=[0.2]))
    data = {"librispeech": str(corpora / "LibriSpeech"), "prepared": str(corpora / "prepared")}
    lay(tmp_path, {**grid_of(tasks={"asr": {"steps": 9}}), "data": data})
    assert collect(tmp_path).keys() == {job.name}
    assert lay(tmp_path, grid_of(learning_rates=[0.1, 0.2])) == {"sid_tiny_lambd0_lr0.2_seed1"}


def test_what_is_not_wanted_any_more(tmp_path):
    """A point that was never begun goes, so that a job in a queue runs nothing; one that was begun stays, is no longer
    missing in a report, and is resumed when it is wanted again."""
    jobs = jobs_of(grid_of(seeds=[1, 2, 3]))
    lay(tmp_path, grid_of(seeds=[1, 2, 3]))
    begin(tmp_path, jobs[ONE], "finished")
    begin(tmp_path, jobs[TWO])
    assert summarize(tmp_path, 0.05).missing == [jobs[TWO].name, jobs[THREE].name]
    assert lay(tmp_path, grid_of(seeds=1)) == set()
    assert summarize(tmp_path, 0.05).missing == [] and folders(tmp_path) == {jobs[ONE].name, jobs[TWO].name}
    assert lay(tmp_path, grid_of(seeds=[1, 2])) == {TWO}


def test_a_slip_in_how_a_score_is_read_can_be_put_right(tmp_path):
    """The metric may change at any time: the same point is scored again, and not trained again."""
    lay(tmp_path, grid_of())
    job = jobs_of(grid_of())[ONE]
    folder = begin(tmp_path, job, "finished")
    for key, value in (("metric", "loss"), ("test", "dev")):
        other = grid_of()
        other["tasks"]["sid"][key] = value
        assert lay(tmp_path, other) == {ONE} and folders(tmp_path) == {job.name}
        stored = folder.job()
        assert {"metric": stored.metric, "test": stored.test_split}[key] == value
    assert lay(tmp_path, grid_of()) == set()


def test_rows_without_folders(tmp_path):
    """A finished row whose folder is gone is done and stays; one with other settings is no obstacle."""
    lay(tmp_path, grid_of())
    job = jobs_of(grid_of())[ONE]
    begin(tmp_path, job, "finished")
    write_results(tmp_path)
    shutil.rmtree(tmp_path / "points")
    assert lay(tmp_path, grid_of(seeds=[1, 2])) == {TWO}
    assert folders(tmp_path) == {jobs_of(grid_of(seeds=2))[TWO].name}
    assert lay(tmp_path, grid_of(steps=8)) == {ONE}
    assert collect(tmp_path).keys() == {job.name}


def test_failed_points_are_left_alone(tmp_path):
    """Unless --retry is given, which forgets the failure."""
    job = jobs_of(grid_of())[ONE]
    lay(tmp_path, grid_of())
    folder = begin(tmp_path, job, "failed")
    assert lay(tmp_path, grid_of()) == set()
    assert lay_out({job.name: job}, tmp_path, retry=True).keys() == {job.name}
    assert not folder.result.exists()


def test_dry_run(tmp_path, monkeypatch, capsys):
    """The points, their number, and an estimate where finished points give one, also from rows without folders; nothing
    is written."""
    monkeypatch.chdir(tmp_path)
    given = grid_of(seeds=[1, 2], baselines=["mfcc"])
    pathlib.Path("my.yaml").write_text(yaml.safe_dump(given))
    jobs = jobs_of(given)
    assert cli.main(["sweep", "my.yaml", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("".join(f"{job.name}\n" for job in jobs.values()))
    assert "4 points, 0 of them finished" in printed and "sid: 4 points; no estimate before one finishes" in printed
    assert "in all" not in printed and [path.name for path in tmp_path.iterdir()] == ["my.yaml"]
    done = [jobs[ONE].row("finished", duration_s=100.0), jobs["sid_mfcc_seed1"].row("finished", duration_s=20.0)]
    out = pathlib.Path("sweeps", "my")
    out.mkdir(parents=True)
    (out / "results.jsonl").write_text("".join(json.dumps(item) + "\n" for item in done))
    assert cli.main(["sweep", "my.yaml", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"{jobs[ONE].name}  (finished)" in printed and "4 points, 2 of them finished" in printed
    assert "sid: 2 points of about 0:01:00\nabout 0:02:00 in all\n" in printed
    assert [path.name for path in out.iterdir()] == ["results.jsonl"]
