"""``make demo``: the table and the picture of score, time and memory against frame period."""

import csv
import pathlib
import re
import shutil

import yaml

from s3prl_ofa.demo import run as demo

NUMBERS = ["value", "score", "frame_period_ms", "macs_per_second", "peak_memory_mb"]
NUMBERS += ["upstream_seconds_per_second", "downstream_seconds_per_second"]


def test_demo(tmp_path, golden_checkpoint, capsys, monkeypatch):
    """Two rates through a real sweep: a table, a picture, a report, and what to type next with one's own data. Features
    are cached, and removed at the end."""
    cached, rmtree = [], shutil.rmtree

    def counted(folder, *args, **options):
        if pathlib.Path(folder).name == "features":
            cached.append(len(list(folder.rglob("*.safetensors"))))
        rmtree(folder, *args, **options)

    monkeypatch.setattr(demo.shutil, "rmtree", counted)
    arguments = ["--ckpt", str(golden_checkpoint), "--lambds", "0", "1", "--steps", "3", "--out", str(tmp_path)]
    assert demo.main(arguments) == 0
    printed = capsys.readouterr().out
    (out,) = tmp_path.iterdir()
    with (out / "report" / "results.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: float(row["value"]))
    assert [float(row["value"]) for row in rows] == [0.0, 1.0]
    table = [line.split() for line in printed.splitlines() if re.match(r" *[01]  ", line)]
    for (lambd, period, accuracy, mmacs, time, memory), row in zip(table, rows, strict=True):
        assert float(lambd) == float(row["value"]) and accuracy == f"{float(row['score']):.3f}"
        assert (
            period == f"{float(row['frame_period_ms']):.1f}" and mmacs == f"{float(row['macs_per_second']) / 1e6:.1f}"
        )
        seconds = float(row["upstream_seconds_per_second"]) + float(row["downstream_seconds_per_second"])
        assert time == f"{1000 * seconds:.1f}" and memory == f"{float(row['peak_memory_mb']):.0f}"
    assert 20 < float(table[0][1]) < 20.2 and 79 < float(table[1][1]) < 81
    assert "chance is 0.125" in printed
    # of each rate and of the front end: 16 utterances of dev, 24 of test, and what three batches of 16 took from those
    # of train; the decoded audio of these and of one more batch, which S3PRL loads and does not use
    assert cached == [3 * (16 + 24 + 48) + (16 + 24 + 64)] and not (out / "features").exists()
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(rf"cp {re.escape(str(out / 'grid.yaml'))} grid.yaml", printed)
    assert list(yaml.safe_load((out / "grid.yaml").read_text())["checkpoints"].values()) == [str(golden_checkpoint)]


def test_refused_before_work(tmp_path, capsys):
    """A bad rate, a missing checkpoint, and a rate that needs a compressor: one line, status 2, nothing written."""
    from s3prl_ofa.model import ModelConfig, OFAWav2Vec2

    plain, out = tmp_path / "plain.safetensors", tmp_path / "out"
    OFAWav2Vec2(ModelConfig(dim=32, ffn_dim=64, heads=4, layers=1)).save(plain)
    for arguments, message in (
        (["--lambds", "3"], r"rates\.lambd"),
        (["--ckpt", str(tmp_path / "none.pt")], "does not exist"),
        (["--ckpt", str(plain)], "no compressor"),
    ):
        assert demo.main([*arguments, "--out", str(out)]) == 2
        assert re.search(message, capsys.readouterr().err)
    assert not out.exists()
