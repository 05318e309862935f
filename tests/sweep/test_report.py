"""The report of a sweep: means over seeds, the best learning rate, plots, what is missing."""

import csv
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from sweep_rows import grid_rows, row, write_sweep

from s3prl_ofa import cli
from s3prl_ofa.sweep.report.aggregation import summarize
from s3prl_ofa.sweep.report.plots import PLOTS, REPEATED, draw, draw_all
from s3prl_ofa.sweep.report.settings import Kind
from s3prl_ofa.sweep.report.tables import devices, overview
from s3prl_ofa.sweep.results import collect

STEMS = ("score_frame_period", "score_macs", "score_speed")


@pytest.fixture
def sweep(tmp_path):
    """A sweep of three tasks; a point failed, one has no result, and the last line is cut off."""
    failed = row("sid", "lambd", 0.9, 1, state="failed", error="status 1: it <broke>", log=["first", "last"])
    folder = write_sweep(tmp_path / "sweep", [*grid_rows(), failed], missing=("asr_tiny_60ms_seed1",))
    with (folder / "results.jsonl").open("a") as file:
        file.write('{"point": "half')
    return folder


def test_files(sweep, capsys):
    """A table in CSV and Markdown, three plots in PNG and SVG, and a page; the source files stay as they are."""
    before = (sweep / "results.jsonl").read_bytes()
    assert cli.main(["report", str(sweep)]) == 0
    out = sweep / "report"
    names = {
        "results.csv",
        "report.md",
        "report.html",
        *(f"{stem}.{kind}" for stem in STEMS for kind in ("png", "svg")),
    }
    assert {path.name for path in out.iterdir()} == names
    assert (sweep / "results.jsonl").read_bytes() == before
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 9 * 2 + 1 and rows[0]["scores.wer"] == rows[0]["score"]
    assert float(rows[0]["score"]) == next(iter(collect(sweep).values()))["score"]
    for stem in STEMS:
        assert (out / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        ElementTree.parse(out / f"{stem}.svg")
    assert "asr, tiny: " in capsys.readouterr().out


def test_what_is_missing_is_said(sweep, capsys):
    """Failed points with the last lines of their log, and points without a result, in each of the outputs."""
    cli.main(["report", str(sweep)])
    printed = capsys.readouterr().out
    for text in (printed, *((sweep / "report" / name).read_text() for name in ("report.md", "report.html"))):
        assert "54 of 56 points are finished, 1 failed, 1 without a result yet" in text
    for name in ("report.md", "report.html"):
        text = (sweep / "report" / name).read_text()
        assert "asr_tiny_60ms_seed1" in text and "first" in text and "last" in text
    assert "it &lt;broke&gt;" in text and "<broke>" not in text


def test_page_needs_nothing_else(sweep):
    """No address of a network or of another file is in the page; the plots are."""
    cli.main(["report", str(sweep)])
    text = (sweep / "report" / "report.html").read_text()
    assert text.count("data:image/svg+xml;base64,") == 3
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)|url\(|@import|<script""", text)


def test_devices(tmp_path):
    """What the points ran on; the tasks of each only if there are several."""
    rows = [row(task, "lambd", 0.5, seed) for task in ("pr", "asr") for seed in (1, 2)]
    assert devices(summarize(write_sweep(tmp_path / "one", rows), 0.05)) == "AMD EPYC"
    rows += [row("sid", "lambd", 0.5, 1), row("sid", "lambd", 0.5, 2, device="Xeon")]
    found = devices(summarize(write_sweep(tmp_path / "two", rows), 0.05))
    assert found == "AMD EPYC for pr, asr, sid; Xeon for sid"


def test_overview(tmp_path):
    """A row per rate and a column per task, by kind and period; what a task does not have is empty, and frames
    that CTC had to see more than once are marked."""
    rows = [row("sid", "lambd", lambd, seed, score=0.6) for lambd in (0.0, 1.0) for seed in (1, 2)]
    rows += [row("pr", "lambd", lambd, 1, score=0.2) for lambd in (0.0, 0.5)]
    rows += [row("pr", "lambd", 1.0, 1, score=0.4, repeat=2), row("pr", None, None, 1, "mfcc", score=0.9)]
    rows += [row("pr", "lambd", 1.0, 1, score=0.5, asked_repeat=1, point="once"), row("sid", "pool", 2, 1, score=0.7)]
    header, found = overview(summarize(write_sweep(tmp_path, rows), 0.05))
    assert header == ["rate", "frame period (ms)", "GMACs / s", "sid, accuracy (%)", "pr, PER (%)"]
    assert [(line[0], *line[-2:]) for line in found] == [
        ("lambd 0", "60.0 ± 0.0", "20.0"),
        ("lambd 0.5", "", "20.0"),
        ("lambd 1", "60.0 ± 0.0", "40.0 (frames x2)"),
        ("lambd 1, repeat 1", "", "50.0"),
        ("pool 2", "70.0", ""),
        ("mfcc", "", "90.0"),
    ]


def test_mean_and_spread_over_seeds(sweep):
    """Score: mean and sample standard deviation over seeds, in percent; curves by frame period."""
    summary = summarize(sweep, 0.05)
    sid = [setting for setting in summary.settings.itertuples() if setting.task == "sid"]
    setting = next(item for item in sid if item.value == 0.5)
    scores = [100 * row("sid", "lambd", 0.5, seed)["score"] for seed in (1, 2)]
    assert setting.score == pytest.approx(sum(scores) / 2)
    assert setting.deviation == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    assert setting.seeds == (1, 2) and setting.gmacs == pytest.approx(0.9 + 1.6 * 20.1 / 32.3)
    kinds = [(item.kind, item.frame_period_ms) for item in sid]
    assert kinds == sorted(kinds) and {kind for kind, _ in kinds} == {Kind.VARIABLE, Kind.POOLED, Kind.BASELINE}
    assert [item.label for item in sid][4:] == ["lambd 1", "pool 2", "pool 3", "pool 4", "mfcc"]


def test_times_of_a_busy_machine(tmp_path):
    """Promise: a seed that ran beside other work does not make its setting look slow."""
    quiet = {"upstream_seconds_per_second": 0.02, "downstream_seconds_per_second": 0.002}
    busy = [quiet | {"upstream_seconds_per_second": 0.5}, quiet | {"downstream_seconds_per_second": 0.3}]
    rows = [row("asr", "lambd", 0.5, seed, **times) for seed, times in enumerate(busy)]
    (setting,) = summarize(write_sweep(tmp_path, rows), 0.05).settings.itertuples()
    assert (setting.upstream_ms, setting.downstream_ms, setting.total_ms) == pytest.approx((20, 2, 22))


def test_memory_of_a_warm_cache(tmp_path):
    """A setting needs as much memory as its first seed, which fills the cache that the others read."""
    rows = [row("pr", "lambd", 0.0, seed, peak_memory_mb=memory) for seed, memory in enumerate((1900.0, 800.0), 1)]
    (setting,) = summarize(write_sweep(tmp_path, rows), 0.05).settings.itertuples()
    assert setting.peak_memory_mb == 1900.0


@pytest.mark.parametrize(("task", "best"), [("asr", 0.001), ("sid", 0.1)])
def test_learning_rate_is_chosen_on_dev(task, best, tmp_path):
    """The best mean on dev wins, whatever test says; the lower is better for errors, the higher for accuracies."""
    rows = [
        row(task, "lambd", 0.0, seed, point=f"{rate}{seed}", learning_rate=rate, dev_score=dev, score=test)
        for rate, dev, test in ((0.1, 0.9, 0.2), (0.001, 0.3, 0.7))
        for seed in (1, 2)
    ]
    # run once, and lucky
    rows.append(row(task, "lambd", 0.0, 1, point="lucky", learning_rate=9.0, dev_score={"asr": 0.0, "sid": 1.0}[task]))
    (setting,) = summarize(write_sweep(tmp_path, rows), 0.05).settings.itertuples()
    assert (setting.learning_rate, setting.tried_rates, setting.seeds) == (best, 3, (1, 2))


@pytest.mark.parametrize(
    ("scores", "tolerance", "expected"),
    [
        ({0.0: 0.60, 0.5: 0.58, 1.0: 0.50}, 0.05, "32.3 ms, 1.61 times fewer"),
        ({0.0: 0.60, 0.5: 0.50, 1.0: 0.60}, 0.05, "none of the longer"),  # the way there is not within it
        ({0.0: 0.60, 0.5: 0.60, 1.0: 0.58}, 0.05, "80.8 ms (the longest that was run), 4.02 times fewer"),
        ({0.0: 0.60, 0.5: 0.50, 1.0: 0.40}, 0.5, "80.8 ms (the longest"),
        ({0.0: 0.60, 0.5: 0.58}, 0.025, "none of the longer periods stays within 2.5% of 60.00"),
        ({0.5: 0.60, 1.0: 0.58}, 0.05, "no finished point at 20 ms"),
        ({0.0: 0.60}, 0.05, "not known: there is no finished point beyond 20 ms"),
    ],
)
def test_how_far_a_task_can_be_compressed(scores, tolerance, expected, tmp_path):
    """The longest period up to which every one that was run stays within the tolerance of the 20 ms score."""
    rows = [row("sid", "lambd", lambd, 1, score=score) for lambd, score in scores.items()]
    (longest,) = summarize(write_sweep(tmp_path, rows), tolerance).longest_periods
    assert expected in longest.text


def test_errors_may_grow(tmp_path):
    """For an error rate the tolerance is upwards."""
    rows = [row("asr", "lambd", lambd, 1, score=score) for lambd, score in ((0.0, 20.0), (0.5, 20.9), (1.0, 21.1))]
    (longest,) = summarize(write_sweep(tmp_path, rows), 0.05).longest_periods
    assert longest.text.startswith("32.3 ms, ") and longest.limit == pytest.approx(21)


def test_curves_of_one_model_are_told_apart(tmp_path):
    """Frames, repeats and dtypes that are not the default are named in its sentences."""
    kinds = ({"output_frames": "upsampled"}, {"asked_repeat": 1}, {"asked_repeat": 2}, {"dtype": "int8"})
    rows = [row("pr", "lambd", lambd, 1, **kind, point=f"{lambd}{kind}") for lambd in (0.0, 0.5) for kind in kinds]
    rows.append(row("sid", "lambd", 0.0, 1))
    found = [period.curve for period in summarize(write_sweep(tmp_path, rows), 0.05).longest_periods]
    assert found == ["pr, tiny, repeat 1", "pr, tiny, repeat 2", "pr, tiny, int8", "pr, tiny, upsampled", "sid, tiny"]


def test_learnt_rates_alone(tmp_path, capsys):
    """Where each settled is in table and page; without a curve the report says that there is nothing to compare."""
    rows = [row("sid", "lambd", 0.5, 1) | {"rate": "adaptive", "value": 0.1, "learnt_lambd": 0.4149, "steps": 600}]
    assert cli.main(["report", str(write_sweep(tmp_path, rows))]) == 0
    for name in ("report.md", "report.html"):
        text = (tmp_path / "report" / name).read_text()
        assert "adaptive 0.1 (lambd 0.41)" in text and "nothing to compare" in text and "600" in text


def test_series_and_marks(sweep, tmp_path):
    """One panel per task, with a curve of our model, one of pooling, a mark of the baseline, and error bars."""
    figure = draw(PLOTS["score_frame_period"], summarize(sweep, 0.05))
    assert [panel.get_title() for panel in figure.axes] == ["ASR", "PR", "SID"]
    for panel in figure.axes:
        series = {bars.get_label(): bars for bars in panel.containers}
        assert series.keys() == {"compressed", "average pooling", "mfcc"}
        assert all(bars.has_yerr for bars in series.values())
        assert series["compressed"][0].get_xdata().tolist() == [20.1, 24.8, 32.3, 46.2, 80.8]
        assert series["mfcc"][0].get_linestyle() == "None"
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 4


def test_repeated_frames_are_marked(tmp_path):
    """Where CTC had to see frames more than once the mark is hollow, as such a score is not of the rate alone."""
    rows = [row("pr", "lambd", lambd, 1, repeat=repeat) for lambd, repeat in ((0.0, 1), (0.5, 1), (1.0, 2))]
    figure = draw(PLOTS["score_frame_period"], summarize(write_sweep(tmp_path, rows), 0.05))
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert [line.get_xdata().tolist() for line in hollow if len(line.get_xdata())] == [[80.8]]
    assert REPEATED in [text.get_text() for text in figure.legends[0].get_texts()]


def test_one_seed_and_no_costs(tmp_path):
    """With one seed there is no spread, and a plot without any value on its axis is left out."""
    rows = [row("sid", "lambd", lambd, 1, macs_per_second=None) for lambd in (0.0, 1.0)]
    summary = summarize(write_sweep(tmp_path / "sweep", rows), 0.05)
    assert draw_all(summary, tmp_path).keys() == {"score_frame_period", "score_speed"}
    assert cli.main(["report", str(tmp_path / "sweep"), "--tolerance", "0.1"]) == 0
    assert "±" not in (tmp_path / "sweep" / "report" / "report.md").read_text().split("\n\n")[2]


def test_bad_use(tmp_path, capsys):
    """A folder without a sweep, one without a finished point, a bad tolerance: one sentence and status 2."""
    failed = write_sweep(tmp_path / "failed", [row("sid", "lambd", 0.0, 1, state="failed", error="x", log=[])])
    for arguments, words in (
        ([str(tmp_path / "none")], "there is no such folder"),
        ([str(tmp_path)], "neither points nor results.jsonl"),
        ([str(failed)], "1 points, none of them finished"),
        ([str(failed), "--tolerance", "200%"], "a share such as 5% or 0.05"),
    ):
        assert cli.main(["report", *arguments]) == 2 and words in capsys.readouterr().err
    assert json.loads((failed / "results.jsonl").read_text())["state"] == "failed"
