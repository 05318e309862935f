"""What a sweep writes before it runs: a folder never holds a mixture, and nothing that was done is lost or hidden."""

import copy
import json
import pathlib
import shutil

import pytest
import yaml
from paths import DEMO, REF_TINY
from sweep_rows import row

from s3prl_ofa import cli
from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.locks import locked
from s3prl_ofa.sweep.grid.parsing import grid_from
from s3prl_ofa.sweep.grid.validation import prepare
from s3prl_ofa.sweep.job import described, write_json
from s3prl_ofa.sweep.report.aggregation import summarize
from s3prl_ofa.sweep.results import Results
from s3prl_ofa.sweep.run.consistency import lay_out

ONE, TWO = "sid_tiny_lambd0_seed1", "sid_tiny_lambd0_seed2"


def grid_of(ckpt=REF_TINY, steps=4, **changes) -> dict:
    return {
        "checkpoints": {"tiny": str(ckpt)},
        "tasks": {"sid": {"steps": steps}},
        "rates": {"lambd": 0},
        "mini": True,
        "data": {"voxceleb1": str(DEMO / "audio")},
        **changes,
    }


def lay(out: pathlib.Path, given: dict) -> set[str]:
    grid = grid_from(given)
    return lay_out(grid, prepare(grid), out)


def begin(out: pathlib.Path, name: str, result: bool = False) -> pathlib.Path:
    """As if the point had been started, and with a result had ended."""
    folder = out / "points" / name
    (folder / "run.log").write_text("$ s3prl-ofa run_downstream\n")
    if result:
        finished = row("sid", "lambd", 0.0, 1, point=name)
        finished |= {key: value for key, value in described(json.loads((folder / "point.json").read_text())).items()}
        finished["state"] = "finished"
        write_json(folder / "result.json", finished)
        Results(out).record(finished)
    return folder


def everything(out: pathlib.Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_seeds_of_one_setting_are_trained_alike(tmp_path):
    """Another seed with other steps is refused, and nothing is written, as their mean would be of two settings."""
    lay(tmp_path, grid_of())
    begin(tmp_path, ONE)
    before = everything(tmp_path)
    with pytest.raises(UsageError, match=f"points/{ONE} was run with other settings .*total_steps: 4, now 8.*--out"):
        lay(tmp_path, grid_of(steps=8, seeds=2))
    assert everything(tmp_path) == before
    lay(tmp_path, grid_of(seeds=2))
    assert (tmp_path / "points" / TWO / "point.json").exists()


def test_a_name_stands_for_one_checkpoint(tmp_path):
    """A checkpoint that is another one by now is refused, for points of the grid and for those of an earlier one."""
    ckpt = tmp_path / "tiny.pt"
    shutil.copy(REF_TINY, ckpt)
    out = tmp_path / "out"
    lay(out, grid_of(ckpt))
    begin(out, ONE)
    shutil.copy(DEMO / "tiny.safetensors", ckpt)
    for seeds in (1, 2):
        with pytest.raises(UsageError, match="other settings .*checkpoint_sha256: "):
            lay(out, grid_of(ckpt, seeds=seeds))
    lay(out, grid_of(ckpt, seeds=2, checkpoints={"other": str(ckpt)}))


def test_other_tasks_and_learning_rates_may_join(tmp_path, corpora):
    """What a grid varies may differ, and so may another task."""
    lay(tmp_path, grid_of(learning_rates=[0.1]))
    begin(tmp_path, "sid_tiny_lambd0_lr0.1_seed1")
    lay(tmp_path, grid_of(learning_rates=[0.2]))
    data = {"librispeech": str(corpora / "LibriSpeech"), "prepared": str(corpora / "prepared")}
    lay(tmp_path, grid_of(tasks={"asr": {"steps": 9}}, data=data))


def test_learnt_rates_have_one_limit(tmp_path):
    """Seeds of an adaptive rate with other limits of lambd are refused; a rate that is given may join."""
    task = {"steps": 4, "lambd_max": 0.95}
    adaptive = grid_of(rates={"adaptive": 0}, tasks={"sid": task})
    lay(tmp_path, adaptive)
    begin(tmp_path, "sid_tiny_adaptive0_seed1")
    lay(tmp_path, grid_of())
    with pytest.raises(UsageError, match="other settings .lambd_max: 0.95, now 0.5"):
        lay(tmp_path, {**adaptive, "tasks": {"sid": {**task, "lambd_max": 0.5}}, "seeds": 2})


def test_a_point_that_still_runs(tmp_path):
    """What it is scored by does not change under it, though it has no result yet; what waits and is not wanted goes."""
    lay(tmp_path, grid_of(seeds=[1, 2]))
    folder = begin(tmp_path, ONE)
    other = grid_of()
    other["tasks"]["sid"]["metric"] = "loss"
    with locked(folder / ".point.lock", wait=False), pytest.raises(UsageError, match="metric: acc, now loss"):
        lay(tmp_path, other)
    assert (tmp_path / "points" / TWO).exists()
    lay(tmp_path, grid_of())
    assert not (tmp_path / "points" / TWO).exists()


def test_a_dry_run_knows_as_much(tmp_path, capsys):
    """Rows without folders are finished there too, and what does not fit is refused."""
    lay(tmp_path / "out", grid_of())
    begin(tmp_path / "out", ONE, result=True)
    shutil.rmtree(tmp_path / "out" / "points")
    for steps, status, words in ((4, 0, "1 points, 1 of them finished"), (8, 2, "steps: 4, now 8")):
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid_of(steps=steps)))
        assert cli.main(["sweep", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out"), "--dry-run"]) == status
        said = capsys.readouterr()
        assert words in said.out + said.err


def test_what_never_ran_may_change(tmp_path):
    """A point that was laid out and not begun takes the settings of the next grid, and a refused grid lays out none."""
    lay(tmp_path, grid_of(seeds=[1, 2]))
    begin(tmp_path, ONE)
    with pytest.raises(UsageError, match="other settings"):
        lay(tmp_path, grid_of(steps=8, rates={"lambd": [0.5, 0]}))
    assert not (tmp_path / "points" / "sid_tiny_lambd0.5_seed1").exists()
    shutil.rmtree(tmp_path / "points" / ONE)
    lay(tmp_path, grid_of(steps=8, seeds=[1, 2]))
    settings = json.loads((tmp_path / "points" / TWO / "point.json").read_text())
    assert settings["config"]["runner"]["total_steps"] == 8


def test_a_slip_in_how_a_score_is_read_can_be_put_right(tmp_path):
    """While there is no result the metric may change, so that trainings are not lost over a label."""
    lay(tmp_path, grid_of())
    folder = begin(tmp_path, ONE)
    other = grid_of()
    other["tasks"]["sid"]["metric"] = "loss"
    lay(tmp_path, other)
    assert json.loads((folder / "point.json").read_text())["metric"] == "loss"
    lay(tmp_path, grid_of())
    begin(tmp_path, ONE, result=True)
    with pytest.raises(UsageError, match="metric: acc, now loss"):
        lay(tmp_path, other)


def test_rows_without_folders(tmp_path):
    """A finished row whose folder is gone is done; one with other settings is refused and not quietly kept."""
    lay(tmp_path, grid_of())
    begin(tmp_path, ONE, result=True)
    shutil.rmtree(tmp_path / "points")
    assert lay(tmp_path, grid_of(seeds=[1, 2])) == {ONE}
    assert [path.name for path in (tmp_path / "points").iterdir()] == [TWO]
    for given, words in ((grid_of(steps=8), "steps: 4, now 8"), (grid_of(steps=8, seeds=3), "steps: 4, now 8")):
        with pytest.raises(UsageError, match=f"results.jsonl: {ONE} was run with other settings .{words}.*its line"):
            lay(tmp_path, given)


def test_rows_of_other_trainings_are_no_seeds_of_one(tmp_path):
    """Where results of two sweeps were put together, rows with other steps are settings of their own in the report."""
    rows = [row("sid", "lambd", 0.0, seed, steps=steps) for seed, steps in ((1, 100), (2, 9000))]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    found = summarize(tmp_path, 0.05).settings
    assert [(setting.label, setting.seeds) for setting in found] == [
        ("lambd 0, 100 steps", (1,)),
        ("lambd 0, 9000 steps", (2,)),
    ]
    assert [reach.variant for reach in summarize(tmp_path, 0.05).reaches] == ["100 steps", "9000 steps"]


def test_a_report_of_a_grid_that_became_smaller(tmp_path):
    """What is missing is what the last grid lacks, not what an earlier one would have run."""
    given = grid_of(seeds=[1, 2, 3])
    lay(tmp_path, copy.deepcopy(given))
    begin(tmp_path, ONE, result=True)
    begin(tmp_path, TWO)
    assert summarize(tmp_path, 0.05).missing == [TWO, TWO.replace("2", "3")]
    lay(tmp_path, grid_of(seeds=1))
    assert summarize(tmp_path, 0.05).missing == []
