"""``make demo``: the table of rate against score and cost."""

import csv

import pytest

from s3prl_ofa.demo import run as demo


def test_demo(tmp_path, golden_checkpoint, capsys):
    """Two rates through real S3PRL: a row each with measured period, accuracy, chance, cost and seconds."""
    arguments = ["--ckpt", str(golden_checkpoint), "--lambds", "0", "1", "--steps", "3", "--out", str(tmp_path)]
    assert demo.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "0.125" in printed
    (path,) = tmp_path.glob("*/results.csv")
    with path.open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert [row["lambd"] for row in rows] == [0.0, 1.0]
    assert rows[0]["frame_period_ms"] == pytest.approx(20.1, abs=0.1)
    assert rows[1]["frame_period_ms"] == pytest.approx(79.7, abs=0.5)
    for row in rows:
        assert 0 <= row["accuracy"] <= 1 and row["chance"] == 1 / 8 and row["seconds"] > 0
    assert rows[0]["mmacs_per_second"] > rows[1]["mmacs_per_second"] > 0
    assert len(list(path.parent.glob("*.log"))) == 4


def test_refused_before_work(tmp_path, capsys):
    """A bad rate and a missing checkpoint: one line, status 2, nothing written."""
    out = tmp_path / "out"
    assert demo.main(["--lambds", "3", "--out", str(out)]) == 2
    assert "[0, 2)" in capsys.readouterr().err
    assert demo.main(["--ckpt", str(tmp_path / "none.pt"), "--out", str(out)]) == 2
    assert "no such file" in capsys.readouterr().err
    assert not out.exists()


def test_plain_checkpoint(tmp_path, capsys):
    """A checkpoint without a compressor can only do lambd 0."""
    from s3prl_ofa.model import ModelConfig, OFAWav2Vec2

    OFAWav2Vec2(ModelConfig(dim=32, ffn_dim=64, heads=4, layers=1)).save(tmp_path / "plain.safetensors")
    assert demo.main(["--ckpt", str(tmp_path / "plain.safetensors"), "--out", str(tmp_path / "out")]) == 2
    assert "no compressor" in capsys.readouterr().err


def test_failed_command(tmp_path):
    """If a run fails, the error has its last line and its log."""
    with pytest.raises(demo.FailedRun, match="status 2.*run.log"):
        demo.run_downstream(["-m", "train", "--lambd", "9"], tmp_path / "run.log")
