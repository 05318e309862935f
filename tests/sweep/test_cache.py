"""The feature cache of a sweep: its points share it, those that cannot use one go without, and nothing else changes."""

import pathlib

import pytest
import yaml
from paths import CKPT

from s3prl_ofa import cli
from s3prl_ofa.sweep.grid.parsing import grid_from
from s3prl_ofa.sweep.grid.validation import prepare
from s3prl_ofa.sweep.job import FEATURES, Point
from s3prl_ofa.sweep.results import collect
from s3prl_ofa.sweep.run.worker import cache_arguments

DATARC = "downstream_expert.datarc"


@pytest.fixture
def grid(corpora):
    """Speaker identification on whole utterances, three epochs."""
    overrides = {f"{DATARC}.max_timestep": None, f"{DATARC}.train_batch_size": 2}
    return {
        "checkpoints": {"tiny": CKPT},
        "tasks": {"sid": {"steps": 6, "overrides": overrides}},
        "rates": {"lambd": 0.5},
        "mini": True,
        "device": "cpu",
        "data": {"voxceleb1": str(corpora / "VoxCeleb1"), "prepared": str(corpora / "prepared")},
        "executor": {"kind": "local", "cpus": 1},
    }


def entries(out: pathlib.Path) -> list[pathlib.Path]:
    return list((out / FEATURES).rglob("*.safetensors"))


def test_points_share_it(grid, corpora, tmp_path):
    """Training and evaluation of all points keep each utterance of the corpus once; the scores, on dev and test, are
    those of a sweep without a cache, which leaves no features."""
    path = tmp_path / "grid.yaml"
    rows = {}
    for name, rates, options in (("without", [1e-2], []), ("with", [1e-3, 1e-2], ["--cache-gb", "0.5"])):
        path.write_text(yaml.safe_dump({**grid, "learning_rates": rates}))
        assert cli.main(["sweep", str(path), "--out", str(tmp_path / name), *options]) == 0
        rows[name] = {row["learning_rate"]: row for row in collect(tmp_path / name).values()}
        assert list(rows[name]) == rates
        assert all(row["upstream_seconds_per_second"] > 0 for row in rows[name].values())
    without, cached = rows["without"][1e-2], rows["with"][1e-2]
    for key in ("score", "dev_score", "frame_period_ms"):
        assert cached[key] == pytest.approx(without[key], abs=1e-6)
    assert not entries(tmp_path / "without")
    listed = (corpora / "prepared" / "veri_test_class.txt").read_text().split()[1::2]
    assert len(entries(tmp_path / "with")) == len(set(listed))


@pytest.mark.parametrize(
    ("upstream", "rate", "uses"),
    [
        ("ofa_wav2vec2", "lambd", True),
        ("ofa_wav2vec2", "pool", True),
        ("ofa_wav2vec2", "adaptive", False),
        ("mfcc", None, False),
    ],
)
def test_who_uses_it(upstream, rate, uses, tmp_path):
    """OFA checkpoints at a given rate use it; a learned rate has features that change, and baselines have no cache."""
    point = Point(task="sid", model="x", upstream=upstream, checkpoint=None, rate=rate, learning_rate=None, seed=1)
    arguments = cache_arguments(tmp_path / "points" / "a", point, ["--cache-gb", "2"])
    expected = ["--cache-gb", "2", "--feature-cache", str(tmp_path / FEATURES)]
    assert arguments == (expected if uses else [])
    assert cache_arguments(tmp_path / "points" / "a", point, []) == []


def test_its_size_is_no_part_of_a_point(grid):
    """cache_gb stands in the grid, and may change between two runs of a sweep."""
    read = grid_from({**grid, "cache_gb": 2.5})
    assert read.cache_gb == 2.5 and prepare(read).keys() == prepare(grid_from(grid)).keys()
