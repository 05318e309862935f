"""The benchmarks measure what they say, and the pages show what they measured."""

import csv
import dataclasses
import importlib.metadata
import pathlib
import runpy
import subprocess
import sys
import time

import pytest
import torch
from paths import ROOT
from sweep_rows import row as point_row
from sweep_rows import write_sweep

from benchmarks import (
    corpus,
    cost_curve,
    downstream,
    evidence,
    extract,
    long,
    memory,
    mini_corpus,
    report,
    rows,
    targets,
    upstreams,
)
from benchmarks.peers import PEERS, RUNTIMES, Batch, can_run
from s3prl_ofa.superb.compat.shims import apply_shims

TINY = extract.SIZES["tiny"]
CPU = torch.device("cpu")
INSTALLED = ("transformers", "torchaudio", "S3PRL")  # with the test extra; the others have a slow test


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A function (benchmark, *options) -> the rows that it wrote, with a tiny model and short rounds."""
    monkeypatch.setitem(rows.MATRIX_SIZE, "cpu", 64)
    monkeypatch.setitem(extract.UTTERANCES, "cpu", 3)

    def call(benchmark, *options):
        out = tmp_path / "rows.csv"
        options = ["--size", "tiny", "--threads", str(torch.get_num_threads()), "--out", str(out), *options]
        monkeypatch.setattr(sys, "argv", [benchmark.__name__, *options])
        benchmark.main()
        return rows.read(out)

    return call


@pytest.mark.parametrize("name", ["single", "mixed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("peer", INSTALLED)
def test_a_peer_does_the_same_work(peer, dtype, name, monkeypatch):
    """Promise: a model of the same shape gives all hidden states of the same waves in the dtype that is asked for."""
    apply_shims()
    monkeypatch.setitem(extract.UTTERANCES, "cpu", 3)
    waves = extract.make_inputs(name, extract.SCALE["tiny"], CPU)
    model = extract.ours(TINY, dtype, CPU)
    with torch.inference_mode():
        layers = PEERS[peer].build(TINY, Batch.of(waves), dtype)()
        expected = model.extract(waves).hidden_states[1:]
    assert [(layer.shape, layer.dtype) for layer in layers] == [(each.shape, each.dtype) for each in expected]


def test_signals_after_openvino():
    """Promise: a process in which models of OpenVINO have come and gone still outlives a signal."""
    pytest.importorskip("openvino")
    code = """
import os, signal
import numpy, openvino, torch
from openvino import opset13
from benchmarks.peers import in_openvino

def run():
    wave = opset13.parameter([1, 4], numpy.float32)
    return in_openvino(openvino.Model([opset13.relu(wave)], [wave], "relu"), {"wave": torch.ones(1, 4)}, "float32")

first, second = run(), run()
del first
del second
signal.signal(signal.SIGCHLD, lambda *arguments: print("heard"))
os.kill(os.getpid(), signal.SIGCHLD)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


@pytest.mark.parametrize("runtime", ["ONNX Runtime", pytest.param("OpenVINO", marks=pytest.mark.slow)])
def test_our_exported_model_does_the_same_work(runtime, monkeypatch, tmp_path):
    """Promise: its file gives the last hidden state, as many frames as ours at the period, and is no peer."""
    pytest.importorskip(runtime.replace(" ", "").lower(), reason=f"{runtime} is not installed")
    monkeypatch.setitem(extract.UTTERANCES, "cpu", 3)
    waves = extract.make_inputs("mixed", extract.SCALE["tiny"], CPU)
    exported = extract.Exported(TINY, tmp_path)
    for period in (20.0, 60.0):
        found = exported.contender("mixed", runtime, waves, period, "float32")
        states, lengths = found.run()
        assert torch.equal(lengths, exported.model.extract(waves, **extract.rate(period)).lengths)
        assert found.frames == int(lengths.sum())
        lambd = exported.lambd(waves, period).float() if period > 20 else 0.0
        expected = exported.model.extract(waves, lambd=lambd)
        torch.testing.assert_close(states, expected.hidden_states[-1], atol=1e-4, rtol=0)
    name = f"ours, 60 ms, exported, {runtime}"
    assert found.name == name and targets.is_ours(name)
    both = [row(name, 0.1), row("ours, 20 ms", 1.0), row("S3PRL", 2.0), row("ours, 90 ms", 0.5)]
    assert targets.ratio(both, "single", "float32", "ours, 20 ms") == 2.0
    assert set(targets.cost_curve(both, "float32")) == {"ours, 20 ms", "ours, 90 ms"}


def test_the_largest_size_is_base():
    """Promise: all contenders are Base."""
    assert dataclasses.replace(extract.SIZES["base"], compressor="none") == type(TINY)()


def test_rows_say_what_was_measured_and_on_what(run):
    """Promise: each row has versions, device, instruction set, threads, frames, MACs and the share of the matrix rate;
    rows are added to those that are there."""
    options = ("--rounds", "1", "--dtypes", "float32", "--peers", "torchaudio", "--periods-ms", "20", "90")
    found = run(extract, "--inputs", "mixed", "equal", *options)
    named = {(row.benchmark, row.contender): row for row in found}
    contenders = ("ours, 20 ms", "ours, 90 ms", "torchaudio")
    assert set(named) == {(name, who) for name in ("mixed", "equal") for who in contenders} | {
        ("matrix product", "64 x 64")
    }
    assert len({row.run for row in found}) == 1 and len(run(extract, *options)) == len(found) + 4
    for row in found:
        assert row.dtype == "float32" and row.device == "cpu" and row.clock == "wall" and row.machine
        assert f"torch {importlib.metadata.version('torch')}" in row.versions
        assert row.threads == torch.get_num_threads()
        assert row.gflops == pytest.approx(2 * row.gmac / row.median_s, rel=0.01)
    ours, fewer, peer = (named["mixed", who] for who in contenders)
    assert ours.frames == peer.frames > 3 * fewer.frames and ours.gmac == peer.gmac > fewer.gmac
    product = named["matrix product", "64 x 64"]
    assert ours.matrix_share == pytest.approx(ours.gflops / product.gflops, abs=0.001) and product.matrix_share == 1.0


def test_cost_curve_and_long_audio(run):
    """Promise: time at every frame period in one run; each length of long audio with its peak memory."""
    curve = [row for row in run(cost_curve, "--rounds", "1", "--dtypes", "float32") if row.benchmark == "cost curve"]
    assert [row.contender for row in curve] == [f"ours, {period:g} ms" for period in cost_curve.PERIODS_MS]
    frames = [row.frames for row in curve]
    assert frames == sorted(frames, reverse=True)
    (row,) = [row for row in run(long, "--minutes", "0.02", "--window-s", "5") if row.benchmark == "long"]
    assert row.audio_s == pytest.approx(1.2) and row.frames == 59 and 50 < row.peak_mib < 2000


def test_extract_beside_the_model_alone(run, audio_folder):
    """Promise: the command's time for all files, and the model's own for some of the same batches."""
    alone, command = run(corpus, str(audio_folder), "--files", "3")
    assert (alone.contender, command.contender) == ("model alone", "extract, 3 files")
    assert command.audio_s == pytest.approx(2.2) and alone.audio_s > 0 and command.median_s > 0


def test_a_warm_cache_beside_the_downstream_model_alone(monkeypatch, corpora, golden_checkpoint, tmp_path):
    """Promise: the steps of each are its own. A step is timed from the one before, so that the first has no time."""
    roots = [f"--librispeech={corpora / 'LibriSpeech'}", f"--prepared={corpora / 'prepared'}"]
    options = ["--task", "pr", "--steps", "3", "--threads", "1", "--out", str(tmp_path / "rows.csv"), *roots]
    monkeypatch.setattr(sys, "argv", ["downstream", str(golden_checkpoint), *options])
    downstream.main()
    warm, alone = rows.read(tmp_path / "rows.csv")
    assert (warm.contender, warm.rounds) == ("run_downstream, warm cache", 2)
    assert (alone.contender, alone.rounds) == ("downstream model alone", 3)


def test_upstreams_of_the_evidence(tmp_path, monkeypatch):
    """Promise: each upstream and rate is timed once, a learned one where it ended, and the evidence shows this time."""
    tiny = str(ROOT / "s3prl_ofa" / "demo" / "tiny.safetensors")
    points = [point_row("sid", "lambd", value, seed, checkpoint=tiny) for value, seed in ((0.5, 1), (0.5, 2), (0.0, 1))]
    for rate, value in (("uniform", 0.5), ("layers", 3), ("pool", 3)):
        points.append(points[0] | {"rate": rate, "value": value, "point": rate})
    learned = {"rate": "adaptive", "value": 1, "lambd_start": 0.1, "learnt_lambd": 1.0, "point": "adaptive"}
    points.append(points[0] | learned)
    points.append(point_row("sid", None, None, 1, "mfcc"))
    folder, out = write_sweep(tmp_path / "sweep", points), tmp_path / "upstreams.csv"
    options = ["--utterances", "1", "--rounds", "1", "--results", str(folder / "results.jsonl"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["upstreams", str(ROOT / "s3prl_ofa" / "demo" / "audio"), *options])
    upstreams.main()
    found = {each.contender: 1000 * each.median_s / each.audio_s for each in rows.read(out)}
    rates = ["lambd 0.5", "lambd 0", "uniform 0.5", "layers 3", "pool 3"]
    learned = "adaptive 1 from 0.1"
    assert list(found) == [*(f"tiny, {rate}" for rate in rates), f"tiny, {learned}, sid", "mfcc"]
    monkeypatch.setattr(evidence, "UPSTREAMS", out)
    shown = {each.label: each for each in evidence.summary_of(folder).settings.itertuples()}
    assert [shown[rate].upstream_ms for rate in rates] == pytest.approx([found[f"tiny, {rate}"] for rate in rates])
    assert shown["mfcc"].total_ms == pytest.approx(found["mfcc"] + shown["mfcc"].downstream_ms)
    assert shown[learned].upstream_ms == pytest.approx(found[f"tiny, {learned}, sid"])
    timed = upstreams.points(folder / "results.jsonl")[f"tiny, {learned}, sid"]
    assert (timed.rate, timed.value) == ("lambd", 1.0)


def test_mini_corpus(mini_librispeech, tmp_path, monkeypatch):
    """Promise: from LibriSpeech's train-clean-5 anyone gets the splits that the results were computed on."""
    with (mini_librispeech / "utterances.tsv").open(newline="") as file:
        utterances = list(csv.DictReader(file, delimiter="\t"))
    for each in utterances:
        folder = tmp_path / "train-clean-5" / each["speaker"] / each["chapter"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{each['utterance']}.flac").touch()
        (folder / f"{each['speaker']}-{each['chapter']}.trans.txt").touch()
    out = tmp_path / "out"
    for name in ("train-clean-5", "moved"):
        source = (tmp_path / "train-clean-5").rename(tmp_path / name)
        monkeypatch.setattr(sys, "argv", ["mini_corpus", str(source), str(out)])
        mini_corpus.main()
    found = {path.stem: path.parts[-4] for path in out.glob("LibriSpeech/*/*/*/*.flac")}
    assert found == {each["utterance"]: f"{each['text_split']}-mini" for each in utterances}
    listed = [line.split() for line in (out / "VoxCeleb1" / "veri_test_class.txt").read_text().splitlines()]
    parts = [{"train": "1", "dev": "2", "test": "3"}[each["speaker_split"]] for each in utterances]
    assert [part for part, _ in listed] == parts
    assert [pathlib.Path(name).stem for _, name in listed] == [each["utterance"] for each in utterances]
    for part, name in listed:
        assert (out / "VoxCeleb1" / ("test" if part == "3" else "dev") / "wav" / name).is_file()


def test_another_corpus_is_no_mini_corpus(tmp_path, monkeypatch, capsys):
    """Promise: a folder that is not train-clean-5 is refused in one sentence, and nothing is written."""
    for speaker in sorted(mini_corpus.DEV | mini_corpus.TEST):
        (tmp_path / "train-other-500" / speaker / "1").mkdir(parents=True)
        (tmp_path / "train-other-500" / speaker / "1" / f"{speaker}-1-0000.flac").touch()
    monkeypatch.setattr(sys, "argv", ["mini_corpus", str(tmp_path / "train-other-500"), str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        mini_corpus.main()
    assert "holds 8 FLAC files, expected the 1,519 of train-clean-5" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_memory_of_each_rate(tmp_path, monkeypatch):
    """Promise: each lambd is measured alone and has a row, with fewer frames and no more memory at the larger one."""
    options = ["--utterances", "8", "--threads", "1", "--out", str(tmp_path / "rows.csv")]
    demo = ROOT / "s3prl_ofa" / "demo"
    monkeypatch.setattr(sys, "argv", ["memory", str(demo / "tiny.safetensors"), str(demo / "audio"), *options])
    monkeypatch.setattr(memory, "LAMBDS", (0.0, 1.0))
    memory.main()
    first, second = rows.read(tmp_path / "rows.csv")
    assert (first.contender, second.contender, first.run) == ("lambd 0", "lambd 1", second.run)
    assert first.frames > 3 * second.frames and first.peak_mib > second.peak_mib > 0


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_finds_what_it_imports(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)
    runpy.run_path(str(path), run_name="imported")


def test_every_contender_comes_after_every_other():
    """The order changes from round to round, so that none always has the same one before it."""
    before, last = set(), [None]

    def contender(name):
        def run():
            before.add((last[0], name))
            last[0] = name

        return run

    names = ("a", "b", "c")
    seconds = rows.measure([contender(name) for name in names], 30, CPU, "wall")
    assert {(first, second) for first in names for second in names if first != second} <= before
    assert [len(each) for each in seconds] == [30, 30, 30]


def test_medians_are_of_what_was_timed(monkeypatch):
    """A row has the time of its contender, without the warm-up."""
    seconds, clock = iter([90.0, 2.0, 4.0, 6.0]), [0.0]
    monkeypatch.setitem(rows.CLOCKS, "wall", lambda: clock[0])

    def work():
        clock[0] += next(seconds)

    (row,) = rows.compare([rows.Contender("work", "worker", work, 1.0)], 3, CPU, rows.environment(CPU, ("torch",)))
    assert row.median_s == 4.0 and row.rounds == 3 and row.matrix_share is None


def test_cpu_time_needs_threads_that_sleep(run, monkeypatch, capsys):
    """Threads that wait by spinning would count as working: the option says what it needs."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with pytest.raises(SystemExit):
        run(extract, "--clock", "cpu")
    assert "OMP_WAIT_POLICY=passive" in capsys.readouterr().err
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    found = run(extract, "--clock", "cpu", "--rounds", "1", "--peers", "--dtypes", "float32")
    assert {row.clock for row in found} == {"cpu"}
    (seconds,) = rows.measure([lambda: time.sleep(0.05)], 1, CPU, "cpu")
    assert seconds[0] < 0.05  # sleep is no work


def test_a_peer_that_is_not_installed_is_named(monkeypatch, capsys):
    """Promise: it is left out, with one line."""
    monkeypatch.setitem(PEERS, "OpenVINO", PEERS["OpenVINO"]._replace(packages=("no_such_package",)))
    assert extract.report_missing("OpenVINO") and not extract.report_missing("torchaudio")
    assert capsys.readouterr().err == "OpenVINO is left out: no_such_package not installed\n"
    assert can_run("OpenVINO", "bfloat16", CPU) and not can_run("OpenVINO", "float32", torch.device("cuda"))


def row(contender, median_s, **values):
    base = rows.Row("1", "single", contender, 10.0, median_s, 3, "float32", "cpu", "abacus", "avx2", 1, "wall", "")
    return dataclasses.replace(base, **values)


def test_targets_compare_rows_of_one_run():
    """A ratio is to the fastest peer of the latest run that has one."""
    old = [row("ours, 20 ms", 1.0), row("torchaudio", 3.0), row("S3PRL", 2.0)]
    new = [row("ours, 20 ms", 0.1, run="2"), row("ours, 90 ms", 0.05, run="2")]
    assert targets.ratio(old + new, "single", "float32", "ours, 20 ms") == 2.0
    assert targets.ratio(old + new, "single", "float32", "ours, 90 ms", "ours, 20 ms") == 2.0
    assert targets.ratio(new, "single", "float32", "ours, 20 ms") is None
    (first,) = [target for target in targets.TARGETS if target.what.startswith("float32, 20 ms")]
    assert first.cell(old) == "2.00, reached" and first.cell(new) == "not measured"
    assert first.cell([row("ours, 20 ms", 1.0), row("S3PRL", 1.1)]) == "1.10, not reached"


def test_machines_of_one_name():
    """Virtual machines with the same name and other instruction sets have tables of their own."""
    groups = report.machines([row("ours, 20 ms", 2.0), row("ours, 20 ms", 1.0, instructions="avx2 avx512f")])
    assert [[each.median_s for each in group] for group in groups.values()] == [[2.0], [1.0]]


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_pages_show_the_results(page):
    """Promise: every table of both pages is what `python -m benchmarks.report` makes of the csv files."""
    text = page.read_text("utf-8")
    assert text == report.with_tables(text), "run python -m benchmarks.report"
    assert len(report.PLACE.findall(text)) == text.count("<!-- table") > 5


def test_the_cost_curve_is_fresh(tmp_path):
    """Promise: so is the drawing."""
    report.draw_curve(tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").read_text("utf-8") == report.CURVE.read_text("utf-8")


@pytest.mark.parametrize(
    "options", [(), ("--out", "out"), ("--carried", "missing.tar.xz", "--out", "out"), ("--x", "1")]
)
def test_the_gpu_script_refuses_bad_options(options, tmp_path):
    """One line says how it is used, before anything is run."""
    command = ["bash", ROOT / "benchmarks" / "gpu.sh", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "usage: benchmarks/gpu.sh --carried FILE --out DIR" in done.stderr
    assert not done.stdout


@pytest.mark.slow
def test_every_peer(tmp_path):
    """Promise: the extra bench has all that the peers need, and each gives the same hidden states in every dtype."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    paths = [path for path in sys.path if path.endswith("site-packages")]
    (site / "base.pth").write_text("\n".join(paths))  # what the tests run with counts as installed
    extra = ["onnx", "onnxruntime", "openvino"]
    options = ["-q", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([python, "-m", "pip", "install", *options, *extra], check=True)
    out = tmp_path / "rows.csv"
    options = ["--inputs", "single", "mixed", "--size", "tiny", "--rounds", "1", "--dtypes", "float32", "bfloat16"]
    options += ["--exported", *RUNTIMES]
    command = [python, "-m", "benchmarks.extract", *options, "--threads", "1", "--out", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "left out" not in done.stderr, done.stderr
    found = {(row.benchmark, row.contender, row.dtype) for row in rows.read(out)}
    for name in ("single", "mixed"):
        for peer, entry in PEERS.items():
            assert {dtype for dtype in ("float32", "bfloat16") if (name, peer, dtype) in found} == {
                dtype for dtype in entry.dtypes if dtype in ("float32", "bfloat16")
            }
            assert ((name, f"ours, 20 ms, exported, {peer}", "float32") in found) == (peer in RUNTIMES)
