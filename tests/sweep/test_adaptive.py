"""The adaptive rate as a rate of a sweep: its points, how they are trained, and its rows in a report."""

import json

import pytest
import yaml
from paths import DEMO, GOLDEN
from sweep_rows import grid_rows, row, write_sweep

from s3prl_ofa import cli
from s3prl_ofa.errors import UsageError
from s3prl_ofa.sweep.grid.jobs import points_of, prepare
from s3prl_ofa.sweep.grid.schema import Rates, grid_from
from s3prl_ofa.sweep.job import Point
from s3prl_ofa.sweep.report.aggregation import summarize
from s3prl_ofa.sweep.report.settings import Kind
from s3prl_ofa.sweep.results import PointFolder
from s3prl_ofa.sweep.run.point import chosen_checkpoint, new_experiment

DATARC = "downstream_expert.datarc"
GRID = {
    "checkpoints": {"tiny": str(GOLDEN / "ref_tiny.pt")},
    "tasks": {"sid": {"steps": 4, "overrides": {f"{DATARC}.train_batch_size": 2, f"{DATARC}.max_timestep": 16_000}}},
    "rates": {"adaptive": [0.25]},
    "mini": True,
    "device": "cpu",
    "data": {"voxceleb1": str(DEMO / "audio")},
    "executor": {"kind": "local", "cpus": 1},
}


def test_points():
    """Weights are values of a rate like others, 0 among them."""
    grid = grid_from({**GRID, "rates": {"lambd": 0, "adaptive": [0, "1e-1"]}})
    assert grid.tasks["sid"].rates == Rates(lambd=(0.0,), adaptive=(0.0, 0.1))
    names = ["sid_tiny_lambd0_seed1", "sid_tiny_adaptive0_seed1", "sid_tiny_adaptive0.1_seed1"]
    assert [point.label for point in points_of(grid)] == names


@pytest.mark.slow
def test_a_point_through_s3prl(tmp_path):
    """A point trains with its weight and is evaluated at what it learned, which is in its row."""
    path, out = tmp_path / "grid.yaml", tmp_path / "sweep"
    path.write_text(yaml.safe_dump(GRID))
    assert cli.main(["sweep", str(path), "--out", str(out)]) == 0
    (found,) = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    assert (found["rate"], found["value"]) == ("adaptive", 0.25)
    assert found["point"].startswith("sid_tiny_adaptive0.25_seed1-")
    assert 0.45 < found["learnt_lambd"] < 0.55 and found["learnt_lambd"] != 0.5
    assert found["frame_period_ms"] == pytest.approx(32, abs=4)
    experiment = out / "points" / found["point"] / "experiment"
    assert json.loads((experiment / "measured_test.json").read_text())["options"]["rate_weight"] == 0.25


def test_in_a_report(tmp_path):
    """Learned rates are a kind of their own, at the period that was measured, off the curve of given rates."""
    learnt = row("sid", "lambd", 0.5, 1) | {"rate": "adaptive", "value": 0.1, "point": "sid_tiny_adaptive0.1_seed1"}
    summary = summarize(write_sweep(tmp_path, [*grid_rows(), learnt]), tolerance=0.05)
    (setting,) = [setting for setting in summary.settings.itertuples() if setting.kind == Kind.LEARNED]
    assert setting.label == "adaptive 0.1" and setting.frame_period_ms == pytest.approx(32.3)
    assert (
        summary.longest_periods
        == summarize(write_sweep(tmp_path / "without", grid_rows()), tolerance=0.05).longest_periods
    )
    assert cli.main(["report", str(tmp_path)]) == 0
    assert "adaptive 0.1" in "".join(path.read_text() for path in tmp_path.rglob("*.md"))


def test_starts_of_an_adaptive_rate_are_points_of_their_own(tmp_path):
    """lambd_starts varies where adaptive rates begin, and nothing else: other rates have one point all the same."""
    grid = {"rates": {"lambd": [0], "adaptive": [0, 0.5]}, "lambd_starts": [0.1, 0.9], "tasks": {"sid": {}}}
    read = grid_from({"checkpoints": {"tiny": "tiny.pt"}, **grid})
    names = [point.label for point in points_of(read)]
    assert names == [
        "sid_tiny_lambd0_seed1",
        *(f"sid_tiny_adaptive{weight}_start{start}_seed1" for weight in (0, 0.5) for start in (0.1, 0.9)),
    ]
    (*_, job) = prepare(grid_from({**GRID, **grid})).values()
    arguments = new_experiment(PointFolder(tmp_path), job, tmp_path)
    assert arguments[arguments.index("--lambd-start") + 1] == "0.9" and "--lambd-max" not in arguments


def test_the_largest_lambd_of_a_task(tmp_path):
    """A task's lambd_max reaches run_downstream for its adaptive rates alone, and the row of each."""
    tasks = {"sid": {"rates": {"lambd": 1, "adaptive": 0}, "lambd_max": 0.8, "lambd_starts": 0.1}}
    read = grid_from({**GRID, "tasks": tasks})
    fixed, adaptive = prepare(read).values()
    arguments = [new_experiment(PointFolder(tmp_path), settings, tmp_path) for settings in (fixed, adaptive)]
    assert "--lambd-max" not in arguments[0]
    assert arguments[1][arguments[1].index("--lambd-max") + 1] == "0.8"
    assert (fixed.settings["lambd_max"], adaptive.settings["lambd_max"]) == (None, 0.8)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lambd_max": 0}, "tasks.sid.lambd_max should be greater than 0"),
        ({"lambd_max": 1.5}, "tasks.sid.lambd_max should be less than or equal to 1"),
        ({"lambd_max": 0.8, "rates": {"lambd": 1}}, "tasks.sid.lambd_max is for adaptive rates, and sid has none"),
        (
            {"lambd_max": 0.8, "lambd_starts": [0.1, 0.9]},
            "tasks.sid: lambd_start must be at most lambd_max, 0.8, found 0.9",
        ),
    ],
)
def test_a_bad_largest_lambd(settings, words):
    """It is refused before anything runs, by its key."""
    with pytest.raises(UsageError, match=words):
        points_of(
            grid_from({"checkpoints": {"tiny": "tiny.pt"}, "tasks": {"sid": {"rates": {"adaptive": 1}, **settings}}})
        )


def test_starts_in_a_report(tmp_path):
    """Learned rates of two starts are two rows of the table, not two seeds of one."""
    learnt = [
        row("sid", "lambd", 0.5, 1)
        | {"rate": "adaptive", "value": 0.1, "lambd_start": start, "point": f"sid_tiny_adaptive0.1_start{start}_seed1"}
        for start in (0.1, 0.9)
    ]
    summary = summarize(write_sweep(tmp_path, [*grid_rows(), *learnt]), tolerance=0.05)
    found = [setting for setting in summary.settings.itertuples() if setting.kind == Kind.LEARNED]
    assert sorted(setting.label for setting in found) == ["adaptive 0.1 from 0.1", "adaptive 0.1 from 0.9"]


@pytest.mark.parametrize("start", [-0.1, 1.5, "x", True])
def test_bad_starts(start):
    """A start outside [0, 1] is refused by its key."""
    with pytest.raises(UsageError, match="^lambd_starts should be .*, found "):
        grid_from(
            {"checkpoints": {"tiny": "tiny.pt"}, "tasks": ["sid"], "rates": {"adaptive": 1}, "lambd_starts": start}
        )


def test_starts_without_an_adaptive_rate():
    """Starts without an adaptive rate are refused by their key."""
    grid = {"checkpoints": {"tiny": "tiny.pt"}, "tasks": ["sid"], "rates": {"lambd": 1}, "lambd_starts": [0.1]}
    with pytest.raises(UsageError, match="lambd_starts is for adaptive rates, and sid has none"):
        grid_from(grid)


def test_scored_where_it_ended(tmp_path):
    """An adaptive point is evaluated at its last checkpoint, others at the best on dev."""

    def point(rate):
        return Point(task="sid", model="tiny", upstream="x", checkpoint=None, rate=rate, learning_rate=None, seed=1)

    for name in ("states-4.ckpt", "states-12.ckpt", "dev-best.ckpt"):
        (tmp_path / name).touch()
    assert chosen_checkpoint(tmp_path, point("adaptive")).name == "states-12.ckpt"
    assert chosen_checkpoint(tmp_path, point("lambd")).name == "dev-best.ckpt"
