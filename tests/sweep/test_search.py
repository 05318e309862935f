"""A task that trains nothing, in a sweep: its points try hidden states on dev and evaluate the best one on test."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import yaml
from paths import CKPT

from s3prl_ofa import cli
from s3prl_ofa.io.files import write_json
from s3prl_ofa.sweep.grid.jobs import prepare
from s3prl_ofa.sweep.grid.schema import grid_from
from s3prl_ofa.sweep.results import PointFolder, collect
from s3prl_ofa.sweep.run import point

KILLER = pathlib.Path(__file__).parent / "killer"
MEASURED = {"utterances": 3, "batches": 3, "frames": 9, "options": None, "peak_memory_mb": 1.0}


@pytest.fixture
def grid(corpora) -> dict:
    return {
        "checkpoints": {"tiny": CKPT},
        "tasks": {"qbe": {}},
        "rates": {"lambd": 0.5},
        "mini": True,
        "device": "cpu",
        "data": {"quesst": str(corpora / "quesst14Database")},
        "executor": {"kind": "local", "cpus": 1},
    }


def test_the_point_of_a_search(grid, corpora):
    """What a grid says about trainings is for its other tasks; the layers decide the name, as they decide the row."""
    grid |= {"seeds": [3, 4], "learning_rates": [0.1, 0.2], "rates": {"lambd": [0, 0.5]}}
    jobs = list(prepare(grid_from(grid)).values())
    assert [job.label for job in jobs] == ["qbe_tiny_lambd0_seed3", "qbe_tiny_lambd0.5_seed3"]
    for job in jobs:
        assert (job.metric, job.higher_is_better, job.unit) == ("mtwv", True, 100)
        assert (job.dev_split, job.test_split, job.output_frames) == ("dev", "test", "upsampled")
        assert not job.is_trained and job.settings["steps"] is None and job.settings["learning_rate"] is None
        assert job.config["downstream_expert"]["datarc"]["dataset_root"] == grid["data"]["quesst"]
    grid["tasks"]["qbe"]["search_layers"] = [1, 2]
    assert not set(prepare(grid_from(grid))) & {job.name for job in jobs}


@pytest.mark.parametrize("interrupted", [None, "layer_2/dev", "layer_1/test"])
def test_the_best_layer_on_dev_is_tested(grid, interrupted, tmp_path, monkeypatch):
    """The evaluations of a point, which share the sweep's cache; after an interruption none is made twice."""
    (job,) = prepare(grid_from(grid | {"tasks": {"qbe": {"search_layers": [0, 1, 2]}}})).values()
    folder, done, commands = PointFolder(tmp_path / "point"), [], []
    folder.save(job)
    scores = {"layer_0/dev": 0.2, "layer_1/dev": 0.6, "layer_2/dev": 0.6, "layer_1/test": 0.3}

    def evaluate(_, arguments: list[str]) -> None:
        given = dict(zip(arguments[::2], arguments[1::2], strict=True))
        experiment = pathlib.Path(given["-p"])
        place = f"{experiment.name}/{given['-t']}"
        if place == interrupted and place not in commands:
            commands.append(place)
            raise KeyboardInterrupt
        assert (given["-m"], given["-d"], given["--lambd"], given["--cache-gb"]) == ("evaluate", "qbe", "0.5", "2")
        assert experiment == folder.experiment / f"layer_{given['-l']}"
        experiment.mkdir(parents=True, exist_ok=True)
        write_json(experiment / f"measured_{given['-t']}.json", MEASURED | {"scores": {"mtwv": scores[place]}})
        done.append(place)

    monkeypatch.setattr(point, "run_downstream", evaluate)
    folder.log.touch()
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            point.work(folder, job, ["--cache-gb", "2"])
        assert folder.row() is None
    point.work(folder, job, ["--cache-gb", "2"])
    row = folder.row()
    assert done == list(scores)
    assert (row["state"], row["score"], row["dev_score"], row["layer"]) == ("finished", 0.3, 0.6, 1)
    assert row["steps"] is None and row["attempts"] == 0 and not folder.trained.exists()


@pytest.fixture
def noisy(corpora, tmp_path) -> pathlib.Path:
    """The corpus with a query for each document, in ever more noise, so that layers differ."""
    root = tmp_path / "quesst"
    shutil.copytree(corpora / "quesst14Database", root)
    generator = np.random.default_rng(0)
    for part, first in (("dev", 2_000), ("eval", 12_000)):
        truth, keys = "", ""
        for number in range(3):
            wave, rate = soundfile.read(root / "Audio" / f"quesst14_{number:05}.wav")
            query, cut = f"quesst14_{part}_{number:04}", wave[first : first + 8_000]
            noise = generator.standard_normal(len(cut)) * cut.std() * (number + 1)
            soundfile.write(root / f"{part}_queries" / f"{query}.wav", cut + noise, rate)
            truth += f"LEXEME quesst14_{number:05} 1 0.5 0.5 {query}\n"
            keys += f"x/{part}_queries/{query}.wav nnenglish\n"
        (root / "scoring" / f"groundtruth_quesst14_{part}" / f"quesst14_{part}.rttm").write_text(truth)
        (root / "scoring" / f"language_key_{part}.lst").write_text(keys)
    return root


@pytest.mark.slow
def test_a_search_that_is_killed(grid, noisy, tmp_path, monkeypatch):
    """Killed with SIGKILL after the first evaluation and started again, a sweep ends with the scores that
    run_downstream gives layer by layer, and makes no evaluation twice; the report shows the row."""
    monkeypatch.chdir(tmp_path)
    grid |= {"data": {"quesst": str(noisy)}, "cache_gb": 1}
    pathlib.Path("grid.yaml").write_text(yaml.safe_dump(grid))
    path = os.pathsep.join([str(KILLER), *filter(None, [os.environ.get("PYTHONPATH")])])
    killing = os.environ | {"OFA_KILL": "measured_dev.json after all", "PYTHONPATH": path}
    command = [sys.executable, "-m", "s3prl_ofa", "sweep", "grid.yaml", "--out", "out"]
    killed = subprocess.run(command, env=killing, start_new_session=True, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert cli.main(["sweep", "grid.yaml", "--out", "out"]) == 0
    (row,) = collect(pathlib.Path("out")).values()
    (folder,) = pathlib.Path("out/points").iterdir()

    def alone(layer: int, split: str) -> dict:
        task = ["-d", "qbe", "--mini", "--quesst", str(noisy), "-u", "ofa_wav2vec2", "-k", CKPT, "--lambd", "0.5"]
        options = ["-p", f"alone_{layer}", "-l", str(layer), "-t", split]
        assert cli.main(["run_downstream", "-m", "evaluate", *task, *options]) == 0
        return json.loads(pathlib.Path(f"alone_{layer}/measured_{split}.json").read_text())

    on_dev = {layer: alone(layer, "dev")["scores"]["mtwv"] for layer in range(3)}  # of a model of two layers
    test = alone(max(on_dev, key=on_dev.__getitem__), "test")
    assert len(set(on_dev.values())) > 1
    assert row["layer"] == max(on_dev, key=on_dev.__getitem__) and row["dev_score"] == max(on_dev.values())
    assert row["score"] == test["scores"]["mtwv"] and row["frame_period_ms"] == test["frame_period_ms"]
    log = (folder / "run.log").read_text()
    assert [log.count(f"-l {layer} -t dev") for layer in range(3)] == [1, 1, 1] and log.count("-t test") == 1
    assert list(pathlib.Path("out/features").rglob("*.safetensors"))
    assert cli.main(["report", "out"]) == 0
    assert "MTWV" in pathlib.Path("out/report/report.md").read_text()
