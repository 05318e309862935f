"""What a sweep compares: the rivals of compression, and the packaged grids."""

from collections import Counter

import pytest
from paths import CKPT

from s3prl_ofa.errors import UsageError
from s3prl_ofa.model import ModelConfig, OFAWav2Vec2
from s3prl_ofa.resources import folder
from s3prl_ofa.sweep.grid.jobs import points_of, prepare
from s3prl_ofa.sweep.grid.schema import grid_from, read_grid


def test_rivals(good):
    """Uniform boundaries and early exit are kinds of rate; a checkpoint may have rates of its own, which a task's do
    not add to; what a checkpoint does not have is refused with its name."""
    good |= {"tasks": {"sid": {"rates": {"uniform": [0.5, "1e-1"], "layers": 1}}}, "seeds": 1, "learning_rates": 0.1}
    good["checkpoints"] = {"tiny": CKPT, "other": {"path": CKPT, "rates": {"lambd": 0}}}
    points = points_of(grid_from(good))
    labels = ["tiny_uniform0.5", "tiny_uniform0.1", "tiny_layers1", "other_lambd0"]
    assert [point.label for point in points] == [f"sid_{label}_lr0.1_seed1" for label in labels]
    assert [point.rate_options | {"output_frames": "", "repeat": 1} for point in points[1:3]] == [
        {"lambd": 0.1, "boundaries": "uniform", "output_frames": "", "repeat": 1},
        {"layers": 1, "output_frames": "", "repeat": 1},
    ]
    assert {job.checkpoint for job in prepare(grid_from(good)).values()} == {CKPT}
    good["tasks"]["sid"]["rates"]["layers"] = [1, 3]
    with pytest.raises(UsageError, match=r"checkpoints.tiny: layers must be at most 2, as many as .* has, found"):
        prepare(grid_from(good))
    good["checkpoints"]["other"] = {"path": CKPT, "rates": {}}
    with pytest.raises(UsageError, match="tasks.sid.rates is missing"):
        grid_from(good)
    good["checkpoints"]["other"] = {"rates": {"lambd": 0}}
    with pytest.raises(UsageError, match="checkpoints.other.path is missing"):
        grid_from(good)


def test_a_checkpoint_for_some_tasks(good):
    """A checkpoint may be for some of the tasks; the others need not have rates for it."""
    good |= {
        "tasks": {"sid": {"rates": {"lambd": 0}}, "pr": None},
        "seeds": 1,
        "learning_rates": 0.1,
        "baselines": "mfcc",
    }
    rates = {"lambd": 0.5}
    good["checkpoints"] = {
        "tiny": {"path": CKPT, "tasks": "sid"},
        "other": {"path": CKPT, "rates": rates, "tasks": "pr"},
    }
    good.pop("rates", None)
    found = [(point.task, point.model) for point in points_of(grid_from(good))]
    assert found == [("sid", "tiny"), ("sid", "mfcc"), ("pr", "other"), ("pr", "mfcc")]
    good["checkpoints"]["other"]["tasks"] = ["pr", "ks"]
    with pytest.raises(UsageError, match="checkpoints.other.tasks: ks is none of sid, pr"):
        grid_from(good)
    good["checkpoints"].pop("other")
    good.pop("baselines")
    with pytest.raises(UsageError, match="tasks.pr: no checkpoint is for it; give it one, or leave it out"):
        grid_from(good)


def test_dtypes(good):
    """A dtype other than float32 is an option of run_downstream, and a part of the point's name and row."""
    good |= {"tasks": "sid", "rates": {"lambd": 0}, "seeds": 1, "learning_rates": 0.1, "dtype": ["float32", "int8"]}
    plain, int8 = (job for job in prepare(grid_from(good)).values() if job.upstream == "ofa_wav2vec2")
    assert (plain.label, int8.label) == ("sid_tiny_lambd0_lr0.1_seed1", "sid_tiny_lambd0_int8_lr0.1_seed1")
    assert "dtype" not in plain.rate_options and int8.rate_options == plain.rate_options | {"dtype": "int8"}
    assert "dtype" not in plain.settings and int8.settings == plain.settings | {"dtype": "int8"}
    with pytest.raises(UsageError, match="dtype should be 'float32', 'float16', 'bfloat16' or 'int8', found 'int4'"):
        grid_from(good | {"dtype": "int4"})


def test_rates_of_each_checkpoint_are_checked_against_it(good, tmp_path):
    """A model that was trained with average pooling runs beside one with a compressor, at its own rate."""
    path = str(tmp_path / "fixed3.safetensors")
    OFAWav2Vec2(ModelConfig(dim=32, ffn_dim=64, heads=4, layers=1, pooling=3)).save(path)
    good["checkpoints"] = {"tiny": CKPT, "fixed3": {"path": path, "rates": {"lambd": 0}}}
    assert len(prepare(grid_from(good))) == 2 * (4 + 1) * 2 * 2
    good["checkpoints"]["fixed3"] = path
    with pytest.raises(UsageError, match="checkpoints.fixed3: .* no compressor, so its only rates are lambd 0, pool"):
        prepare(grid_from(good))


SYSTEMS = {"mini": 3 * (5 + 3 + 1) + 1, "evidence_short": 2 * (2 + 1 + 1)}


@pytest.mark.parametrize("name", SYSTEMS)
def test_packaged_grids(name):
    """The packaged grids for five hours of speech have the points that their comments promise, with two seeds."""
    points = points_of(read_grid(folder("downstream_configs") / "sweeps" / f"{name}.yaml"))
    assert len(points) == SYSTEMS[name] * 2
    assert {point.task for point in points} == {"pr", "sid", *(["asr"] if name == "mini" else [])}


def test_packaged_evidence():
    """All systems, as rows of one sweep: three seeds of pr and asr, five of sid, and a learned rate from two starts."""
    points = points_of(read_grid(folder("downstream_configs") / "sweeps" / "evidence.yaml"))
    rates = Counter((point.task, point.rate, point.model) for point in points)
    for task, seeds in {"pr": 3, "sid": 5, "asr": 3}.items():
        assert {point.seed for point in points if point.task == task} == set(range(1, seeds + 1))
        assert all(rates[task, "lambd", f"fixed{size}"] == seeds * (task != "asr") for size in (2, 3, 4))
        assert rates[task, "lambd", "tiny"] >= 3 * seeds
        alternatives = min(rates[task, rate, "tiny"] for rate in ("uniform", "layers", "pool"))
        assert alternatives >= (0 if task == "asr" else seeds)
        assert rates[task, "adaptive", "tiny"] == (2 * seeds if task == "pr" else 0)
