"""The feature cache of a sweep: its points share it, those that cannot use one go without, and nothing else changes."""

import json
import pathlib

import pytest
import yaml
from paths import CKPT

from s3prl_ofa import cli
from s3prl_ofa.sweep.grid.parsing import grid_from, to_yaml
from s3prl_ofa.sweep.job import FEATURES
from s3prl_ofa.sweep.results import Results
from s3prl_ofa.sweep.run.worker import cache_arguments

DATARC = "downstream_expert.datarc"


@pytest.fixture
def grid(corpora):
    """Speaker identification on whole utterances with two learning rates, three epochs each."""
    overrides = {f"{DATARC}.max_timestep": None, f"{DATARC}.train_batch_size": 2}
    return {
        "checkpoints": {"tiny": CKPT},
        "tasks": {"sid": {"steps": 6, "overrides": overrides}},
        "rates": {"lambd": 0.5},
        "learning_rates": [1e-3, 1e-2],
        "mini": True,
        "device": "cpu",
        "data": {"voxceleb1": str(corpora / "VoxCeleb1"), "prepared": str(corpora / "prepared")},
        "executor": {"kind": "local", "cpus": 1},
    }


def entries(out: pathlib.Path) -> list[pathlib.Path]:
    return list((out / FEATURES).rglob("*.safetensors"))


def test_points_share_it(grid, corpora, tmp_path):
    """Training and evaluation of all points keep each utterance of the corpus once; the scores, on dev and test, are
    those of the sweep without a cache, which leaves no features."""
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(grid))
    scores = {}
    for name, options in (("without", []), ("with", ["--cache-gb", "0.5"])):
        assert cli.main(["sweep", str(path), "--out", str(tmp_path / name), *options]) == 0
        rows = sorted(Results(tmp_path / name).rows(), key=lambda row: row["learning_rate"])
        scores[name] = [(row["score"], row["dev_score"], row["frame_period_ms"]) for row in rows]
        assert len(rows) == 2 and all(row["upstream_seconds_per_second"] > 0 for row in rows)
    assert scores["with"] == [pytest.approx(row, abs=1e-6) for row in scores["without"]]
    assert not entries(tmp_path / "without")
    listed = (corpora / "prepared" / "veri_test_class.txt").read_text().split()[1::2]
    assert len(entries(tmp_path / "with")) == len(set(listed))


@pytest.mark.parametrize(
    ("upstream", "rate", "uses"),
    [("ofa_wav2vec2", "lambd", True), ("ofa_wav2vec2", "pool", True), ("ofa_wav2vec2", "adaptive", False)],
)
def test_who_uses_it(upstream, rate, uses, tmp_path):
    """Our own model at a given rate uses it; a rate that is learnt has features that change."""
    settings = {"point": {"upstream": upstream, "rate": rate}}
    arguments = cache_arguments(tmp_path / "points" / "a", settings, ["--cache-gb", "2"])
    expected = ["--cache-gb", "2", "--feature-cache", str(tmp_path / FEATURES)]
    assert arguments == (expected if uses else [])
    assert cache_arguments(tmp_path / "points" / "a", settings, []) == []


def test_baselines_go_without(tmp_path):
    """S3PRL's own upstreams have no cache."""
    settings = {"point": {"upstream": "mfcc", "rate": None}}
    assert cache_arguments(tmp_path / "points" / "a", settings, ["--cache-gb", "2"]) == []


def test_its_size_is_no_part_of_a_point(grid, tmp_path):
    """cache_gb stands in the grid, reads back the same, and may change between two runs of a sweep."""
    read = grid_from({**grid, "cache_gb": 2.5})
    assert read.cache_gb == 2.5 and grid_from(yaml.safe_load(to_yaml(read))) == read
    assert "cache" not in json.dumps([vars(point) for point in read.points()])
