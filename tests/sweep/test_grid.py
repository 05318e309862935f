"""Grid files: what they stand for, and that a bad one is refused before anything runs, with its key named."""

import pathlib
import subprocess
import sys

import pytest
import yaml
from paths import CKPT
from sweep_rows import row, write_sweep

from s3prl_ofa import cli
from s3prl_ofa.checkpoint.bounded_yaml import UniqueKeys
from s3prl_ofa.errors import UsageError
from s3prl_ofa.resources import folder
from s3prl_ofa.sweep.grid.jobs import divisor, points_of, prepare
from s3prl_ofa.sweep.grid.schema import grid_from, read_grid
from s3prl_ofa.sweep.run.launcher import Launcher

SID = str(folder("downstream_configs") / "sid_mini.yaml")


def test_points(good):
    """Tasks x rates x learning rates x seeds, named readably, the first seed of everything first."""
    names = [point.label for point in points_of(grid_from(good))]
    assert len(names) == len(set(names)) == 2 * 4 * 2 * 2
    assert names[0] == "sid_tiny_lambd0_lr0.01_seed1"
    assert "asr_tiny_40ms_repeat2_lr0.001_seed2" in names and "sid_tiny_pool3_lr0.001_seed1" in names
    assert all(name.endswith("seed1") for name in names[:16])
    good |= {"rates": {"lambd": [0.5, 0.50000001]}, "learning_rates": [0.1, 0.10000001], "tasks": ["sid"], "seeds": 1}
    assert len({point.label for point in points_of(grid_from(good))}) == 4


def test_axes(good):
    """A task's own axes win; a repeat is for native frames; a baseline has neither rate nor frames."""
    good |= {"baselines": ["mfcc", {"name": "hub", "upstream": "hubert_local", "checkpoint": "x.pt"}]}
    good |= {"output_frames": ["native", "upsampled"], "seeds": 1, "learning_rates": None}
    del good["learning_rates"]
    good["tasks"] = {"asr": {"rates": {"lambd": 1}, "repeat": [1, "auto"]}, "pr": {"output_frames": "upsampled"}}
    names = [point.label for point in points_of(grid_from(good))]
    asr = ["asr_tiny_lambd1_repeat1", "asr_tiny_lambd1", "asr_tiny_lambd1_upsampled", "asr_mfcc", "asr_hub"]
    assert names[:5] == [f"{name}_seed1" for name in asr]
    assert names[5:] == [
        f"pr_{name}_seed1"
        for name in (*(f"tiny_{rate}_upsampled" for rate in ("lambd0", "lambd0.5", "40ms", "pool3")), "mfcc", "hub")
    ]


def test_output_frames_by_their_old_key(good):
    """``frames``, as earlier versions called it, is taken for the grid and for a task, but not against the new key."""
    good |= {"frames": "upsampled", "seeds": 1}
    good["tasks"] = {"asr": {}, "sid": {"frames": ["native"]}}
    assert {(point.task, point.output_frames) for point in points_of(grid_from(good))} == {
        ("asr", "upsampled"),
        ("sid", "native"),
    }
    good["tasks"]["sid"]["output_frames"] = "upsampled"
    with pytest.raises(UsageError, match=r"^tasks.sid: output_frames upsampled contradicts frames \['native'\]"):
        grid_from(good)


def test_prepared(good):
    """Each point gets S3PRL's whole config, with steps, learning rate and data in it; evaluation and saving fall on the
    last step."""
    good["tasks"]["sid"]["overrides"] = {"runner.max_keep": 3, "downstream_expert.datarc.train_batch_size": 2}
    jobs = prepare(grid_from(good))
    assert all(name == job.name and name.rpartition("-")[0] == job.label for name, job in jobs.items())
    prepared = {job.label: job for job in jobs.values()}
    config = prepared["sid_tiny_pool3_lr0.001_seed2"].config
    assert config["optimizer"]["lr"] == 0.001
    runner = config["runner"]
    assert (runner["total_steps"], runner["eval_step"], runner["save_step"], runner["max_keep"]) == (6, 6, 6, 3)
    assert config["downstream_expert"]["datarc"]["train_batch_size"] == 2
    assert pathlib.Path(config["downstream_expert"]["datarc"]["file_path"]).is_absolute()
    asr = prepared["asr_tiny_lambd0_repeat2_lr0.01_seed1"]
    assert asr.config["runner"]["total_steps"] == 500 and asr.config["optimizer"]["lr"] == 0.01
    assert (asr.metric, asr.dev_split, asr.test_split) == ("wer", "dev-clean", "test-clean")
    assert len(asr.checkpoint_sha256) == 64
    assert [divisor(12, wanted) for wanted in (5, 12, 100, 1)] == [4, 12, 12, 1]
    assert [divisor(10_007, 500), divisor(1234, 100)] == [10_007, 617]  # and not at every step or every second one


BAD = {
    "nothing": (lambda grid: grid.clear(), "tasks is missing"),
    "unknown key": (lambda grid: grid.update(lambdas=[1]), "lambdas is not a key"),
    "unknown key of a task": (
        lambda grid: grid["tasks"]["sid"].update(stpes=1),
        "tasks.sid: stpes is not a key of a grid; choices here: rates, ",
    ),
    "unknown kind of rate": (lambda grid: grid["rates"].update(speed=1), "rates: speed is not a key"),
    "unknown task": (lambda grid: grid["tasks"].update(sidd={"config": "x", "metric": "acc"}), "tasks.sidd"),
    "task without config": (lambda grid: grid["tasks"].update(emotion=None), "tasks.emotion.config"),
    "task without metric": (lambda grid: grid["tasks"].update(emotion={"config": "x"}), "tasks.emotion.metric"),
    "no task": (lambda grid: grid.update(tasks={}), "tasks"),
    "missing tasks": (lambda grid: grid.pop("tasks"), "tasks is missing"),
    "missing rates": (lambda grid: grid.pop("rates"), "rates is missing"),
    "lambd out of range": (
        lambda grid: grid["rates"].update(lambd=[0, 2]),
        "rates.lambd should be less than 2, f",
    ),
    "period out of range": (lambda grid: grid["rates"].update(frame_period_ms=5), "rates.frame_period_ms"),
    "pool of one": (lambda grid: grid["rates"].update(pool=1), "rates.pool"),
    "rate out of range of a task": (lambda grid: grid["tasks"]["sid"].update(rates={"lambd": -1}), "tasks.sid.rates.l"),
    "adaptive": (
        lambda grid: grid.update(rates="adaptive"),
        "rates: a mapping of lambd, frame_period_ms, pool, adaptive, uniform, layers is expected, found 'adaptive'",
    ),
    "adaptive lambd": (
        lambda grid: grid["rates"].update(lambd=[0, "adaptive"]),
        "rates.lambd: the rate adaptive is given by its weight in the loss",
    ),
    "weight below 0": (
        lambda grid: grid["rates"].update(adaptive=[0.1, -1]),
        "rates.adaptive should be greater",
    ),
    "empty seeds": (lambda grid: grid.update(seeds=[]), "seeds: at least one value is expected"),
    "empty rate": (lambda grid: grid["rates"].update(pool=[]), "rates.pool: at least one value is expected"),
    "no rates": (lambda grid: grid.update(rates={}), "rates is missing: at least one of lambd,"),
    "same seed twice": (lambda grid: grid.update(seeds=[1, 1]), "seeds: 1 is given twice"),
    "same rate twice": (lambda grid: grid["rates"].update(lambd=[0.5, "5e-1"]), "rates.lambd: 0.5 is given twice"),
    "huge seed": (lambda grid: grid.update(seeds=[2**32]), "seeds should be less than 4294967296, found 4294967296"),
    "bad seed": (lambda grid: grid.update(seeds=[1.5]), "seeds should be a valid integer, found 1.5"),
    "bad learning rate": (lambda grid: grid.update(learning_rates=[0]), "learning_rates should be greater than 0"),
    "bad repeat": (lambda grid: grid["tasks"]["asr"].update(repeat="often"), "tasks.asr.repeat"),
    "native frames of a task that needs upsampled ones": (
        lambda grid: grid["tasks"].update(
            mosei={"config": SID, "metric": "acc", "dev": "dev", "output_frames": "native"}
        ),
        "tasks.mosei.output_frames: mosei averages the padding .* needs output_frames upsampled",
    ),
    "bad frames": (lambda grid: grid.update(output_frames=["both"]), "output_frames should be 'upsampled' or 'native'"),
    "bad name": (
        lambda grid: grid.update(checkpoints={"a/b": CKPT}),
        "checkpoints.a/b: a name of letters, digits, '.'",
    ),
    "name taken": (
        lambda grid: grid.update(baselines=[{"upstream": "mfcc", "name": "tiny"}]),
        "baselines: the name tiny",
    ),
    "missing checkpoint": (lambda grid: grid.update(checkpoints={"a": "no.pt"}), "checkpoints.a: no.pt does not exist"),
    "no checkpoint": (lambda grid: grid.update(checkpoints={"a": __file__}), "checkpoints.a: "),
    "missing root": (lambda grid: grid["data"].pop("voxceleb1"), "tasks.sid: .*data.voxceleb1"),
    "root that is not there": (lambda grid: grid["data"].update(librispeech="no"), "tasks.asr: data.librispeech no"),
    "unknown root": (lambda grid: grid["data"].update(libri="x"), "data.libri should be 'librispeech', "),
    "unknown upstream": (lambda grid: grid.update(baselines=["mfccc"]), "baselines: S3PRL has no upstream mfccc"),
    "missing baseline": (
        lambda grid: grid.update(baselines=[{"upstream": "hubert_local", "checkpoint": "no.pt"}]),
        "baselines: the checkpoint of hubert-local, no.pt",
    ),
    "code in an override": (
        lambda grid: grid["tasks"]["sid"].update(overrides={"optimizer.name": "Adam if x else get_Adam"}),
        "tasks.sid: the config's optimizer.name: a plain name is expected, found 'Adam if x",
    ),
    "code in a split": (
        lambda grid: grid["tasks"].update(emotion={"config": SID, "metric": "acc", "dev": "dev", "test": "test if x"}),
        "tasks.emotion.test: the name of a split is expected, found 'test if x'",
    ),
    "code in the split to choose by": (
        lambda grid: grid["tasks"].update(emotion={"config": SID, "metric": "acc", "dev": "dev if x"}),
        "tasks.emotion.dev: the name of a split is expected, found 'dev if x'",
    ),
    "no such config": (lambda grid: grid["tasks"]["sid"].update(config="no.yaml"), "tasks.sid: no.yaml cannot be read"),
    "override of nothing": (
        lambda grid: grid["tasks"]["sid"].update(overrides={"a.b": 1}),
        "tasks.sid.overrides: .* no a",
    ),
    "override of what is varied": (
        lambda grid: grid["tasks"]["sid"].update(overrides={"optimizer.lr": 1}),
        "tasks.sid.overrides: optimizer.lr is varied",
    ),
    "unknown executor": (
        lambda grid: grid.update(executor={"kind": "ssh"}),
        "executor.kind should be 'local' or 'slurm', found 'ssh'",
    ),
    "no room": (lambda grid: grid.update(cache_gb=0), "cache_gb should be greater than 0"),
    "tasks in a list": (lambda grid: grid.update(tasks=[{"sid": {"steps": 2}}]), "tasks: task names are expected"),
    "tasks in lists": (lambda grid: grid.update(tasks=[["sid"]]), "tasks: task names are expected"),
    "step of text": (
        lambda grid: grid["tasks"]["sid"].update(overrides={"runner.eval_step": "abc"}),
        "tasks.sid: runner.eval_step must be a whole number of at least 1, found 'abc'",
    ),
    "empty step": (
        lambda grid: grid["tasks"]["sid"].update(overrides={"runner.save_step": None}),
        "tasks.sid: runner.save_step must be a whole number",
    ),
    "no runner": (lambda grid: grid["tasks"]["sid"].update(overrides={"runner": 3}), "tasks.sid.config: runner.total_"),
    "half a runner": (
        lambda grid: grid["tasks"]["asr"].update(overrides={"runner": {"eval_step": 3}}),
        "tasks.asr.config: runner.total_steps is expected",
    ),
    "metric that is not there": (
        lambda grid: grid["tasks"]["sid"].update(metric="accuracy"),
        "tasks.sid.metric: one of acc, loss is expected, found accuracy",
    ),
    "split that is not there": (
        lambda grid: grid["tasks"]["sid"].update(dev="deev"),
        "tasks.sid.dev: one of train, dev, test is expected, found deev",
    ),
    "split that ASR does not have": (
        lambda grid: grid["tasks"]["asr"].update(test="test-other"),
        "tasks.asr.test: one of train, dev-clean, test-clean, test is expected",
    ),
    "metric that is not computed": (
        lambda grid: grid["tasks"].update(pr={"metric": "cer"}),
        "tasks.pr.metric: one of per, loss is expected, found cer",
    ),
    "unknown device": (lambda grid: grid.update(device="tpu"), "device: .*tpu"),
    "baseline without its checkpoint": (
        lambda grid: grid.update(baselines=["hubert_local"]),
        "baselines: hubert_local needs a checkpoint, as {upstream",
    ),
    "more GPUs than there are": (lambda grid: grid.update(executor={"gpus": 400}), "executor.gpus is 400"),
    "no Slurm": (lambda grid: grid.update(executor={"kind": "slurm"}), "executor.kind: slurm cannot be used here"),
    "a partition here": (
        lambda grid: grid.update(executor={"partition": "gpu"}),
        "executor: partition is for kind: slurm, found kind: local",
    ),
    "asr without data": (
        lambda grid: grid["tasks"]["asr"].update(overrides={"downstream_expert": {"modelrc": {}}}),
        "tasks.asr",
    ),
    "no time": (lambda grid: grid.update(executor={"hours": 0}), "executor.hours should be greater than 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_grids(name, good, tmp_path, monkeypatch, capsys):
    """One sentence that names the key and the file, status 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # a cluster's login node has srun
    change, words = BAD[name]
    change(good)
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(good))
    with pytest.raises(UsageError, match=words.replace("[", r"\[").replace(")", r"\)")):
        grid = read_grid(path)
        prepare(grid)
        Launcher(grid.executor, tmp_path)
    assert cli.main(["sweep", "bad.yaml", "--out", "out"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("s3prl-ofa sweep: error: bad.yaml: ") and "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf"])
def test_no_room_for_features(size, good, tmp_path, monkeypatch, capsys):
    """--cache-gb takes a number above 0, and nothing runs with another."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(good))
    assert cli.main(["sweep", "grid.yaml", "--out", "out", "--cache-gb", size]) == 2
    assert "--cache-gb: a number above 0 is expected" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_key_that_is_there_twice(tmp_path):
    """It is refused by name and place: PyYAML would take the last one."""
    (tmp_path / "grid.yaml").write_text("seeds: 1\ntasks:\n  sid: {steps: 1}\n  sid: {steps: 2}\n")
    with pytest.raises(UsageError, match=r"grid.yaml is not YAML: the key sid is given twice .*line 4, column 3"):
        read_grid(tmp_path / "grid.yaml")


def test_scores_of_a_config(good):
    """Splits and metrics are those of the config as it is run: SUPERB's ASR has test-other, PR what the grid adds."""
    good["mini"] = False
    data = {key: good["data"][key] for key in ("librispeech", "prepared")}
    data["splits"] = "train-mini,dev-mini,test-mini"
    more = {"downstream_expert.metric": ["per", "cer"]}
    good |= {"tasks": {"asr": {"test": "test-other"}, "pr": {"metric": "cer", "overrides": more}}, "data": data}
    prepared = prepare(grid_from(good))
    assert {job.test_split for job in prepared.values()} == {"test-other", "test"}
    assert {job.metric for job in prepared.values()} == {"wer", "cer"}


def test_keys_of_anchors(tmp_path):
    """Anchors and merges are no keys that are given twice, at whatever depth."""
    text = "a: &a\n  b: &b {c: 1, d: 2}\ne: {f: {g: {<<: *b, c: 3}}}\nh:\n  <<: *a\n  <<: {i: 1}\n  b: {<<: *b, d: 1}\n"
    read = yaml.load(text, UniqueKeys)
    assert read["e"]["f"]["g"] == {"c": 3, "d": 2} and read["h"]["b"] == {"c": 1, "d": 1}


ERRORS = ("EER", "slot_value_cer", "st_loss", "minDCF", "word_error_rate", "wer (%)", "per")


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        *((metric, False) for metric in ERRORS),
        *((metric, True) for metric in ("acc", "bleu", "slot_type_f1", "acc_per_class")),
    ],
)
def test_which_way_a_metric_is_better(metric, higher):
    """Errors and losses are better the lower they are, however S3PRL's task spells them; the grid can say otherwise."""
    task = {"config": "x.yaml", "metric": metric}
    grid = {"checkpoints": {"tiny": "tiny.pt"}, "rates": {"lambd": 0}}
    assert grid_from({**grid, "tasks": {"sv": task}}).tasks["sv"].higher_is_better is higher
    other = {**task, "higher_is_better": not higher}
    assert grid_from({**grid, "tasks": {"sv": other}}).tasks["sv"].higher_is_better is not higher


def test_an_override_that_is_new_is_said(good, caplog):
    """A key that the config does not have is added with a warning, as it may be a typo."""
    good["tasks"]["sid"]["overrides"] = {"runner.eval_stp": 3}
    prepare(grid_from(good))
    assert "tasks.sid.overrides: the config has no runner.eval_stp yet" in caplog.text


@pytest.mark.parametrize("text", ["[1, 2", "- a\n- b\n", ""])
def test_no_grid(text, tmp_path):
    """A file that is no YAML, or no mapping, or not there."""
    with pytest.raises(UsageError, match="none.yaml cannot be read"):
        read_grid(tmp_path / "none.yaml")
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"grid.yaml(:| is not YAML)"):
        read_grid(tmp_path / "grid.yaml")


def test_a_checkpoint_without_compressor(good, tmp_path):
    """It can be pooled, and at lambd 0; anything else is refused before anything runs."""
    from s3prl_ofa.model import ModelConfig, OFAWav2Vec2

    path = tmp_path / "plain.safetensors"
    OFAWav2Vec2(ModelConfig(dim=32, ffn_dim=64, heads=4, layers=1)).save(path)
    good["checkpoints"] = {"plain": str(path)}
    with pytest.raises(UsageError, match="checkpoints.plain: .* no compressor"):
        prepare(grid_from(good))
    good["rates"] = {"lambd": 0, "pool": [2, 3]}
    assert len(prepare(grid_from(good))) == 2 * 3 * 2 * 2


@pytest.mark.parametrize("command", ["sweep", pytest.param("report", marks=pytest.mark.slow)])
def test_a_missing_package_is_named(command, tmp_path):
    """Without pydantic or matplotlib, of the extra, a command says what to install."""
    package = {"sweep": "pydantic", "report": "matplotlib"}[command]
    code = f"import sys; sys.modules[{package!r}] = None; from s3prl_ofa import cli; sys.exit(cli.main(sys.argv[1:]))"
    folder = write_sweep(tmp_path, [row("sid", "lambd", 0.0, 1)])
    done = subprocess.run([sys.executable, "-c", code, command, str(folder)], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 's3prl-ofa[sweep]'" in done.stderr and package in done.stderr
