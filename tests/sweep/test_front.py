"""What a report says is best for a cost: the Pareto front, budgets, intervals, and differences over the same speech."""

import json
import math

import numpy as np
import pytest
from sweep_rows import row, write_sweep

from s3prl_ofa import cli
from s3prl_ofa.sweep.report.aggregation import summarize
from s3prl_ofa.sweep.report.command import render
from s3prl_ofa.sweep.report.plots import FRONT, PLOTS, draw
from s3prl_ofa.sweep.report.settings import Kind
from s3prl_ofa.sweep.report.tables import choice_sentence, fronts, overview

NAMES = [f"utterance{number}" for number in range(200)]


def costing(rate: str, value: float, gmacs: float, score: float, **changes) -> dict:
    """A row of pr with that cost and PER, whose wall time is proportional to its cost."""
    model = changes.pop("model", "tiny")
    seed = changes.pop("seed", 1)
    period = 20.1 if rate in ("layers", "pool") or value == 0 else 40.0
    found = row("pr", "lambd", value, seed, model) | {
        "point": f"{model}_{rate}{value}_{seed}",
        "rate": rate,
        "frame_period_ms": period,
        "score": score / 100,
        "macs_per_second": gmacs * 1e9,
        "upstream_seconds_per_second": gmacs / 100,
        "downstream_seconds_per_second": 0.0,
    }
    return found | changes


ROWS = [
    costing("lambd", 0.0, 0.5, 20.0),
    costing("lambd", 0.5, 0.3, 22.0),
    costing("lambd", 1.0, 0.2, 26.0),
    costing("uniform", 0.5, 0.31, 23.0),
    costing("layers", 3, 0.3, 24.0),
    costing("lambd", 0.0, 0.25, 21.0, model="fixed2", frame_period_ms=40.0),
    costing("pool", 2, 0.5, 19.0),
]


def keep_outcomes(folder, point: str, sums, counts=None, names=NAMES) -> None:
    counts = counts or [10] * len(names)
    content = {"utterances": list(names), "sums": [float(value) for value in sums], "counts": counts}
    (folder / "points" / point / "utterances.json").write_text(json.dumps(content))


def labels(choices) -> list[str]:
    return [choice.setting.label for choice in choices]


def test_the_front(tmp_path):
    """A setting is on it if nothing that costs no more is as good; each is compared with the best of the others."""
    summary = summarize(write_sweep(tmp_path, ROWS), 0.05)
    assert labels(summary.fronts["gmacs"]) == labels(summary.fronts["total_ms"]) == ["lambd 1", "fixed2", "pool 2"]
    assert [choice.rival and choice.rival.label for choice in summary.fronts["gmacs"]] == [None, "lambd 1", "lambd 0"]
    assert [choice.gain for choice in summary.fronts["gmacs"]][1:] == pytest.approx([5.0, 1.0])
    assert [choice.faster for choice in summary.fronts["gmacs"]] == pytest.approx([2.5, 2.0, 1.0])
    kinds = {setting.label: setting.kind for setting in summary.settings.itertuples()}
    assert kinds["lambd 0"] == Kind.VARIABLE and kinds["uniform 0.5"] == Kind.EQUAL
    assert kinds["fixed2"] == Kind.SPECIALIST and kinds["layers 3"] == Kind.EXIT
    assert [cells[0] for cells in overview(summary)[1]] == [
        *("lambd 0", "lambd 0.5", "lambd 1", "uniform 0.5", "fixed2", "layers 3", "pool 2")
    ]
    header, rows = fronts(summary)
    assert len(rows) == 6 and all(len(cells) == len(header) for cells in rows)
    assert rows[1][:4] == ["pr", "0.250 GMACs / s", "fixed2", "40.0"] and rows[1][5:8] == [
        "2.00x",
        "lambd 1, 26.00",
        "5.00",
    ]


def test_costs_that_read_the_same(tmp_path):
    """Of settings on the front whose costs are shown as the same number, the table has the best."""
    rows = [*ROWS, costing("uniform", 0.75, 0.2501, 20.5), costing("uniform", 0.25, 0.25049, 20.0)]
    found = summarize(write_sweep(tmp_path, rows), 0.05).fronts["gmacs"]
    assert [choice.limit for choice in found] == [f"{cost:.3f} GMACs / s" for cost in (0.2, 0.25, 0.5)]
    assert labels(found) == ["lambd 1", "uniform 0.25", "pool 2"] and found[1].rival.label == "uniform 0.75"


def test_higher_may_be_better(tmp_path):
    """For an accuracy the front goes up."""
    rows = [row("sid", "lambd", lambd, 1, score=score) for lambd, score in ((0.0, 0.6), (0.5, 0.7), (1.0, 0.5))]
    assert labels(summarize(write_sweep(tmp_path, rows), 0.05).fronts["gmacs"]) == ["lambd 1", "lambd 0.5"]


@pytest.mark.parametrize(
    ("budget", "tolerance", "expected"),
    [
        ({"gmacs": 0.3}, 0, "pr, 0.300 GMACs / s: fixed2, 40.0 ms, PER (%) 21.00, 2.00 times faster"),
        ({"total_ms": 2.1}, 0, "pr, 2.1 ms / s: lambd 1, "),
        ({"gmacs": 0.3, "total_ms": 2.1}, 0, "pr, 0.300 GMACs / s and 2.1 ms / s: lambd 1, "),
        ({}, 0.06, "pr, within 6% of 20.00 at 20 ms: fixed2, 40.0 ms, PER (%) 21.00"),
        ({}, 0.2, "pr, within 20% of 20.00 at 20 ms: fixed2, "),
        ({}, 0.4, "pr, within 40% of 20.00 at 20 ms: lambd 1, "),
    ],
)
def test_a_budget_chooses_a_row(budget, tolerance, expected, tmp_path):
    """The best within all limits, and the cheapest within the tolerance."""
    summary = summarize(write_sweep(tmp_path, ROWS), tolerance, budget)
    assert len(summary.choices) == 1 + bool(budget)
    assert choice_sentence(summary.choices[0]).startswith(expected)


def test_choices_are_shown(tmp_path, capsys):
    """On the terminal and in both pages."""
    arguments = ["--budget-gmacs", "0.3", "--budget-ms", "2.1", "--tolerance", "6%"]
    assert cli.main(["report", str(write_sweep(tmp_path, ROWS)), *arguments]) == 0
    pages = [(tmp_path / "report" / name).read_text() for name in ("report.md", "report.html")]
    for text in (capsys.readouterr().out, *pages):
        assert "pr, 0.300 GMACs / s and 2.1 ms / s: lambd 1, " in text
        assert "pr, within 6% of 20.00 at 20 ms: fixed2, " in text


def test_a_budget_that_nothing_meets(tmp_path, capsys):
    """It chooses nothing; one that is no number above 0 is bad use."""
    folder = write_sweep(tmp_path, ROWS)
    assert not [choice for choice in summarize(folder, 0.0, {"gmacs": 0.1}).choices if "GMACs" in choice.limit]
    for value in ("0", "x", "nan", "inf"):
        assert cli.main(["report", str(folder), "--budget-ms", value]) == 2
        assert f"a number above 0 is expected, found '{value}'" in capsys.readouterr().err


def test_the_front_is_drawn(tmp_path):
    """Behind the settings, in the plots against costs."""
    summary = summarize(write_sweep(tmp_path, ROWS), 0.05)
    drawn = {stem: draw(plot, summary).axes[0].get_legend_handles_labels()[1] for stem, plot in PLOTS.items()}
    assert {stem: FRONT in names for stem, names in drawn.items()} == {
        "score_frame_period": False,
        "score_macs": True,
        "score_speed": True,
    }
    assert {"uniform boundaries", "early exit", "trained with pooling"} <= set(drawn["score_macs"])


@pytest.fixture
def sure(tmp_path):
    """A function (errors per utterance of lambd 0, of lambd 1) -> the summary of a sweep of one seed with these."""

    def make(*errors):
        rows = []
        for lambd, sums in zip((0.0, 1.0), errors, strict=True):
            rows.append(costing("lambd", lambd, 0.5 - 0.3 * lambd, 100 * np.sum(sums) / 2000))
        folder = write_sweep(tmp_path, rows)
        for line, sums in zip(rows, errors, strict=True):
            keep_outcomes(folder, line["point"], sums)
        return summarize(folder, 0.05)

    return make


def test_intervals(sure):
    """Of a ratio of sums they are those of its standard error, s / sqrt(n)."""
    errors = np.random.default_rng(0).integers(0, 9, len(NAMES))
    setting = next(sure(errors, errors).settings.itertuples())
    error = 10 * errors.std() / math.sqrt(len(NAMES))
    assert setting.low == pytest.approx(setting.score - 1.96 * error, abs=0.25 * error)
    assert setting.high == pytest.approx(setting.score + 1.96 * error, abs=0.25 * error)


def test_differences_are_paired_over_utterances(sure):
    """A small difference that every utterance has is certain, though both intervals overlap; one without any is not."""
    errors = np.random.default_rng(1).integers(1, 9, len(NAMES))
    summary = sure(errors - (np.arange(len(NAMES)) % 4 == 0), errors)
    (choice,) = [choice for choice in summary.fronts["gmacs"] if choice.rival is not None]
    better, worse = summary.settings.itertuples()
    assert better.high > worse.low and choice.interval.p < 0.01 and choice.interval.low > 0
    assert choice.gain == pytest.approx(2.5) and choice.interval.low < 2.5 < choice.interval.high
    assert "p < 0.001" in choice_sentence(choice)
    shuffled = np.random.default_rng(2).permutation(errors)
    (same,) = [choice for choice in sure(errors, shuffled).choices if choice.rival is not None]
    assert same.interval.low < 0 < same.interval.high and same.interval.p > 0.05


def test_seeds_make_an_interval_wider(tmp_path):
    """What seeds differ by is part of it, and each resample of seeds is as large as the sample."""
    widths = {}
    for spread in (0, 2):
        rows = [costing("lambd", 0.0, 0.5, 30 + spread * (seed - 2), seed=seed) for seed in (1, 2, 3)]
        folder = write_sweep(tmp_path / str(spread), rows)
        for seed, line in enumerate(rows):
            keep_outcomes(folder, line["point"], [3 + spread * (seed - 1) / 10] * len(NAMES))
        (setting,) = summarize(folder, 0.05).settings.itertuples()
        widths[spread] = setting.high - setting.low
        assert setting.low <= setting.score <= setting.high
    assert widths[0] == pytest.approx(0, abs=1e-4) and 2 < widths[2] <= 4


BROKEN = {
    "missing": None,
    "not JSON": "{",
    "a list": "[]",
    "other lengths": {"utterances": NAMES[:3], "sums": [1, 2], "counts": [1, 1, 1]},
    "a name twice": {"utterances": ["a", "a"], "sums": [1, 2], "counts": [1, 1]},
    "no names": {"utterances": [["a"], {}], "sums": [1, 2], "counts": [1, 1]},
    "nothing": {"utterances": [], "sums": [], "counts": []},
    "no length": {"utterances": ["a"], "sums": [1], "counts": [0]},
    "text": {"utterances": ["a"], "sums": ["x"], "counts": [1]},
    "another score": {"utterances": NAMES, "sums": [9.0] * 200, "counts": [10] * 200},
    "other utterances": {"utterances": [f"x{name}" for name in NAMES], "sums": [2.0] * 200, "counts": [10] * 200},
}


@pytest.mark.parametrize("name", BROKEN)
def test_outcomes_that_cannot_be_used(name, tmp_path):
    """The setting has no interval and is named; the others keep theirs, and the difference is not tested."""
    rows = [costing("lambd", 0.0, 0.5, 20.0), costing("lambd", 1.0, 0.2, 20.0), costing("pool", 2, 0.5, 19.0)]
    folder = write_sweep(tmp_path, rows)
    for line, errors in zip(rows, (2.0, 2.0, 1.9), strict=True):
        keep_outcomes(folder, line["point"], [errors] * len(NAMES))
    content = BROKEN[name]
    path = folder / "points" / rows[1]["point"] / "utterances.json"
    path.unlink() if content is None else path.write_text(content if isinstance(content, str) else json.dumps(content))
    summary = summarize(folder, 0.05)
    text = render("report.md", summary, {})
    assert "Without outcomes of the same utterances, and so without: pr lambd 1. " in text
    assert "19.00 [19.0, 19.0]" in text
    assert [choice.interval for choice in summary.choices if choice.rival is not None] == [None]
