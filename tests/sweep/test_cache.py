"""The feature cache of a sweep: its points share it, those that cannot use one go without, and nothing else changes."""

import pytest
import yaml
from paths import CKPT

from s3prl_ofa import cli
from s3prl_ofa.sweep.grid.jobs import prepare
from s3prl_ofa.sweep.grid.schema import grid_from
from s3prl_ofa.sweep.job import Point
from s3prl_ofa.sweep.results import FEATURES, PointFolder, collect
from s3prl_ofa.sweep.run.point import cache_arguments

DATARC = "downstream_expert.datarc"


@pytest.fixture
def grid(corpora):
    """Speaker identification on whole utterances."""
    overrides = {f"{DATARC}.max_timestep": None, f"{DATARC}.train_batch_size": 2}
    return {
        "checkpoints": {"tiny": CKPT},
        "tasks": {"sid": {"steps": 2, "overrides": overrides}},
        "rates": {"lambd": 0.5},
        "mini": True,
        "device": "cpu",
        "data": {"voxceleb1": str(corpora / "VoxCeleb1"), "prepared": str(corpora / "prepared")},
        "executor": {"kind": "local", "cpus": 1},
    }


@pytest.mark.slow
def test_points_share_it(grid, corpora, tmp_path):
    """Training and evaluation of all points keep the hidden states, the front end's output and the samples of each
    utterance once. That scores are those of a run without a cache is tested with run_downstream."""
    path, out = tmp_path / "grid.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump({**grid, "learning_rates": [1e-3, 1e-2]}))
    assert cli.main(["sweep", str(path), "--out", str(out), "--cache-gb", "0.5"]) == 0
    first, second = collect(out).values()
    assert min(first["upstream_seconds_per_second"], second["upstream_seconds_per_second"]) > 0
    assert first["frame_period_ms"] == pytest.approx(second["frame_period_ms"], abs=1e-6)
    listed = (corpora / "prepared" / "veri_test_class.txt").read_text().split()[1::2]
    kept = sorted(len(list(section.rglob("*.safetensors"))) for section in (out / FEATURES).glob("*/"))
    assert kept == [len(set(listed))] * 3


@pytest.mark.parametrize(
    ("upstream", "rate", "uses"),
    [
        ("ofa_wav2vec2", "lambd", True),
        ("ofa_wav2vec2", "pool", True),
        ("ofa_wav2vec2", "adaptive", True),
        ("mfcc", None, False),
    ],
)
def test_who_uses_it(upstream, rate, uses, tmp_path):
    """OFA checkpoints use it, at a learned rate for the front end; baselines have no cache."""
    point = Point(task="sid", model="x", upstream=upstream, checkpoint=None, rate=rate, learning_rate=None, seed=1)
    folder = PointFolder(tmp_path / "points" / "a")
    arguments = cache_arguments(folder, point, ["--cache-gb", "2"])
    expected = ["--cache-gb", "2", "--feature-cache", str(tmp_path / FEATURES)]
    assert arguments == (expected if uses else [])
    assert cache_arguments(folder, point, []) == []


def test_its_size_is_no_part_of_a_point(grid):
    """cache_gb stands in the grid, and may change between two runs of a sweep."""
    read = grid_from({**grid, "cache_gb": 2.5})
    assert read.cache_gb == 2.5 and prepare(read).keys() == prepare(grid_from(grid)).keys()
