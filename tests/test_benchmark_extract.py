"""The speed benchmark measures what it says, on models that are small here where the size does not matter."""

import csv
import importlib.util
import sys
import time

import pytest
import torch
from models import BASE, random_model
from paths import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """benchmarks/extract.py, on short audio."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmark_extract", BENCHMARKS / "extract.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SECONDS", 0.5)
    monkeypatch.setattr(module, "RAGGED", (0.1, 0.3, 3))
    return module


@pytest.fixture
def run(bench, monkeypatch, tmp_path):
    """A function (*options) -> rows of the csv; the peers wait for given times, and ours is a tiny model."""

    def fakes(dtype, device):
        return {name: lambda waves, wait=wait: time.sleep(wait) for name, wait in (("slow", 0.05), ("fast", 0.02))}

    monkeypatch.setattr(bench, "ours", lambda dtype, device: random_model(BASE).to(device, dtype))
    monkeypatch.setattr(bench, "peers", fakes)
    threads = str(torch.get_num_threads())

    def call(*options):
        out = tmp_path / "rows.csv"
        arguments = ["extract.py", "--rounds", "3", "--threads", threads, "--out", str(out), *options]
        monkeypatch.setattr(sys, "argv", arguments)
        bench.main()
        with out.open(newline="") as file:
            return list(csv.DictReader(file))

    return call


def test_the_peers_are_base_and_give_all_hidden_states(bench):
    """Promise: Hugging Face, torchaudio and S3PRL at Base's size, on the same wave, in the dtype that is asked for."""
    bench.apply_shims()
    waves = torch.randn(1, 8_000).to(torch.bfloat16)
    with torch.inference_mode():
        results = {name: run(waves) for name, run in bench.peers(torch.bfloat16, torch.device("cpu")).items()}
        out = bench.ours(torch.bfloat16, torch.device("cpu")).extract([waves[0]])
    states = {
        "transformers": results["transformers"].hidden_states[1:],
        "torchaudio": results["torchaudio"][0],
        "s3prl": [layer[0].transpose(0, 1) for layer in results["s3prl"]["layer_results"]],
        "ours": out.hidden_states[1:],
    }
    for name, layers in states.items():
        assert len(layers) == 12, name
        assert all(layer.shape == (1, 24, 768) and layer.dtype == torch.bfloat16 for layer in layers), name


def test_rows_say_what_was_measured_and_on_what(run):
    """Promise: one run, medians, a ratio to the fastest peer or to our own 20 ms or equal lengths; versions, dtype,
    device and threads in each row; rows are added to those that are there."""
    rows = run("--dtype", "bfloat16")
    by_name = {row["contender"]: row for row in rows}
    assert set(by_name) >= {"ours", "slow", "fast", "ours 20 ms", "ours 90 ms", "ours equal lengths", "ours 1 to 20 s"}
    assert by_name["fast"]["ratio_to"] == by_name["ours"]["ratio_to"] == "fast"
    assert float(by_name["slow"]["median_s"]) > float(by_name["fast"]["median_s"]) >= 0.02
    for name in ("fast", "ours 20 ms", "ours equal lengths"):
        assert float(by_name[name]["ratio"]) == 1.0
    assert {row["ratio_to"] for row in rows if row["benchmark"] == "rates"} == {"ours 20 ms"}
    for row in rows:
        assert row["dtype"] == "bfloat16" and row["device"] == "cpu" and row["clock"] == "wall"
        assert all(row[column] for column in ("threads", "machine", "torch", "torchaudio", "transformers", "s3prl"))
    assert len(run("--dtype", "bfloat16", "--only", "peers")) == len(rows) + 3


def test_every_contender_comes_after_every_other(bench):
    """The order changes from round to round, so that none always has the same one before it."""
    before = set()
    last = [None]

    def contender(name):
        def run():
            before.add((last[0], name))
            last[0] = name

        return run

    names = ("a", "b", "c")
    bench.measure({name: contender(name) for name in names}, 30, torch.device("cpu"), time.perf_counter)
    assert {(first, second) for first in names for second in names if first != second} <= before


def test_cpu_time_needs_threads_that_sleep(run, monkeypatch, capsys):
    """Threads that wait by spinning would count as working: the option says what it needs."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with pytest.raises(SystemExit):
        run("--clock", "cpu")
    assert "OMP_WAIT_POLICY=passive" in capsys.readouterr().err
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    rows = run("--clock", "cpu", "--only", "peers")
    assert {row["clock"] for row in rows} == {"cpu"}
    assert all(float(row["median_s"]) < 0.02 for row in rows if row["contender"] != "ours")  # sleep is no work
