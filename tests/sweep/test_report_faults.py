"""Reports on damaged or foreign results: they are made all the same, and every output says what is wrong."""

import html
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import pandas
import pytest
from sweep_rows import row, write_sweep

from s3prl_ofa import cli
from s3prl_ofa.sweep.report.aggregation import summarize
from s3prl_ofa.sweep.report.rows import NEEDED, NULLABLE
from s3prl_ofa.sweep.results import collect

GOOD = [row("sid", "lambd", lambd, seed) for lambd in (0.0, 0.5, 1.0) for seed in (1, 2)]
BAD = row("sid", "lambd", 0.75, 1, point="bad")


def report(folder, capsys) -> dict[str, str]:
    """What was printed, the Markdown and the page, of a report that was made."""
    assert cli.main(["report", str(folder)]) == 0
    texts = {name: (folder / "report" / name).read_text() for name in ("report.md", "report.html")}
    return {"printed": capsys.readouterr().out, **texts}


LEFT_OUT = {
    "NaN score": ({"score": math.nan}, "score: a number is expected, found nan"),
    "infinite score": ({"score": -math.inf}, "score: a number is expected, found -inf"),
    "null score": ({"score": None}, "score: a number is expected, found None"),
    "text for a number": ({"score": "0.5"}, "score: a number is expected, found '0.5'"),
    "true for a number": ({"score": True}, "score: a number is expected, found True"),
    "huge": ({"score": 10**400}, "score: a number is expected, found 1000"),
    "list": ({"task": ["sid"]}, "task: one line of text is expected, found ['sid']"),
    "no task": ({"task": None}, "task: one line of text is expected, found None"),
    "two lines": ({"model": "a\nb"}, r"model: one line of text is expected, found 'a\nb'"),
    "rate": (
        {"rate": "speed"},
        "rate: one of lambd, frame_period_ms, pool, adaptive, uniform, layers is expected, found 'speed'",
    ),
    "rate of lists": ({"rate": [1]}, "rate: one of"),
    "no value": ({"value": None}, "rate and value belong together"),
    "accuracy of 140%": ({"score": 1.4}, "score: a share from 0 to 1 is expected, found 1.4"),
    "negative accuracy": ({"score": -0.1}, "score: a share from 0 to 1 is expected, found -0.1"),
    "negative error rate": (
        {"score": -0.1, "higher_is_better": False},
        "score: a number of at least 0 is expected, found -0.1",
    ),
    "negative lambd": ({"value": -1}, "value: a number in [0, 2) or adaptive is expected, found -1"),
    "period": ({"rate": "frame_period_ms", "value": 19}, "value: a number of at least 20 is expected, found 19"),
    "pool": ({"rate": "pool", "value": 1}, "value: a whole number of at least 2 is expected, found 1"),
    "weight": ({"rate": "adaptive", "value": -0.5}, "value: a number of at least 0 is expected, found -0.5"),
    "seed": ({"seed": 1.5}, "seed: a whole number is expected, found 1.5"),
    "unit": ({"unit": 0}, "unit: a number above 0 is expected, found 0"),
    "direction": ({"higher_is_better": "yes"}, "higher_is_better: true or false is expected, found 'yes'"),
    "state": ({"state": "done"}, "state: finished or failed is expected, found 'done'"),
}


def test_rows_that_cannot_be_used(tmp_path, capsys):
    """They are left out, and named with their line and what is wrong; the others are reported as without them."""
    without = summarize(write_sweep(tmp_path / "without", GOOD), 0.05)
    bad = [BAD | changes | {"point": name} for name, (changes, _) in LEFT_OUT.items()]
    folder = write_sweep(tmp_path / "with", [GOOD[0], *bad, *GOOD[1:]])
    for told in report(folder, capsys).values():
        told = html.unescape(told)
        for number, (name, (_, text)) in enumerate(LEFT_OUT.items(), 2):
            assert f"{name} (line {number}): {text}" in told
        assert f"6 of {6 + len(bad)} points are finished, {len(bad)} without a result yet" in told
        assert f"results.jsonl has {len(bad)} faults" in told
    pandas.testing.assert_frame_equal(summarize(folder, 0.05).settings, without.settings)


def test_missing_fields(tmp_path, capsys):
    """Each is named."""
    keys = ["task", "model", "rate", "value", "output_frames", "seed", "metric", "unit", "score", "higher_is_better"]
    bad = [{name: value for name, value in BAD.items() if name != key} for key in keys]
    for told in report(write_sweep(tmp_path, [*GOOD, *bad]), capsys).values():
        for number, key in enumerate(keys, 7):
            assert f"bad (line {number}): {key} is missing" in told


def test_rows_of_earlier_versions(tmp_path):
    """They hold the output frames under ``frames``, and report as before."""
    current = summarize(write_sweep(tmp_path / "current", GOOD), 0.05)
    old = [{"frames" if key == "output_frames" else key: value for key, value in row.items()} for row in GOOD]
    earlier = summarize(write_sweep(tmp_path / "earlier", old), 0.05)
    assert not earlier.faults
    pandas.testing.assert_frame_equal(earlier.settings, current.settings)


MEASURED = (
    ({"frame_period_ms": math.nan}, "frame_period_ms: a number above 0 is expected, found nan"),
    ({"frame_period_ms": 0}, "frame_period_ms: a number above 0 is expected, found 0"),
    ({"macs_per_second": math.inf}, "macs_per_second: a number of at least 0 is expected, found inf"),
    ({"device": 3, "repeat": "x"}, "device: one line of text is expected, found 3"),
    ({"steps": {}, "checkpoint_sha256": 1}, "steps: a whole number is expected, found {}"),
    ({"dev_score": math.nan}, "dev_score: a number is expected, found nan"),
)


def test_measurements_that_cannot_be_used(tmp_path, capsys):
    """The rows count without them."""
    rows = [BAD | {"point": f"bad{number}", "seed": number} | changes for number, (changes, _) in enumerate(MEASURED)]
    folder = write_sweep(tmp_path, [*GOOD, *rows])
    for told in report(folder, capsys).values():
        for number, (_, text) in enumerate(MEASURED):
            assert f"bad{number} (line {number + 7}): {text}" in html.unescape(told)
        assert "12 of 12 points are finished" in told
    found = {setting.value: setting.seeds for setting in summarize(folder, 0.05).settings.itertuples()}
    assert {0.75, 0.5} <= found.keys()


def test_only_measurements_are_missing(tmp_path, capsys):
    """Older results without costs, devices or repeats, and failed ones without a reason, are reported as they are."""
    needed = ("point", "state", *NEEDED, *NULLABLE)
    rows = [{key: item[key] for key in needed} for item in GOOD]
    report(write_sweep(tmp_path, [*rows, {"point": "x", "state": "failed", "log": "no list"}]), capsys)
    assert "no reason is given" in (tmp_path / "report" / "report.md").read_text()


def test_as_pandas_writes_rows(tmp_path, capsys):
    """NaN for an empty cell and 1.0 for a whole number are what they were, without a remark."""
    rows = [{**item, "steps": 500.0, "seed": float(item["seed"]), "repeat": 2.0} for item in GOOD]
    rows.append(row("sid", None, None, 1, "mfcc") | {"rate": math.nan, "value": math.nan, "output_frames": math.nan})
    told = report(write_sweep(tmp_path, rows), capsys)
    assert "is expected" not in told["printed"] and "| 500 |" in told["report.md"] and "x2" in told["report.md"]
    assert "| mfcc |" in told["report.md"]


def test_lines_that_are_no_rows(tmp_path, capsys):
    """A last line that was cut off, a list, a row with a point that is none, endless brackets: by their numbers."""
    folder = write_sweep(tmp_path, GOOD)
    bad = ["[1]", '{"point": ["x"], "state": "finished"}', "[" * 100_000, "\udcff", '{"point": "ha']
    with (folder / "results.jsonl").open("a", errors="surrogateescape") as file:
        file.write("\n".join(bad))
    for told in report(folder, capsys).values():
        for number in range(7, 12):
            assert f"results.jsonl, line {number}: not a row of a sweep" in told
        assert "6 of 6 points are finished, results.jsonl has 5 faults" in told
    assert len(collect(folder)) == 6


def test_rows_that_are_there_twice(tmp_path, capsys):
    """The last finished one counts, with a remark; a failed one that was run again needs none."""
    again = GOOD[0] | {"score": 0.123}
    failed = GOOD[1] | {"state": "failed", "error": "x", "log": []}
    folder = write_sweep(tmp_path, [failed, *GOOD, again, failed])
    told = report(folder, capsys)["printed"]
    assert told.count("(line ") == 1 and f"{again['point']} (line 8): finished in an earlier line too" in told
    assert 0.123 in [found["score"] for found in summarize(folder, 0.05).rows]


def test_one_run_under_two_names(tmp_path, capsys):
    """A seed counts once: of rows that are alike in all settings the last one, with a remark."""
    renamed = GOOD[0] | {"point": "renamed", "score": 0.123}
    others = [GOOD[0] | {"point": f"other {key}", key: value} for key, value in {"seed": 3, "steps": 501}.items()]
    folder = write_sweep(tmp_path, [*GOOD, renamed, *others, renamed])
    for told in report(folder, capsys).values():
        assert f"renamed (line 7): has the settings and seed of {GOOD[0]['point']}; the last one counts" in told
        assert told.count("has the settings and seed of") == 1
    found = {(setting.value, setting.steps): setting.seeds for setting in summarize(folder, 0.05).settings.itertuples()}
    assert found == {(0.0, 500): (1, 2, 3), (0.0, 501): (1,), (0.5, 500): (1, 2), (1.0, 500): (1, 2)}
    assert 0.123 in [row["score"] for row in summarize(folder, 0.05).rows]


@pytest.mark.parametrize(("lines", "text"), [("", "no row in results.jsonl"), ("\n\n", "no row in results.jsonl")])
def test_an_empty_file(tmp_path, capsys, lines, text):
    (tmp_path / "results.jsonl").write_text(lines)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert text in capsys.readouterr().err


def test_nothing_but_faults(tmp_path, capsys):
    """There is a report all the same, of what is wrong."""
    for told in report(write_sweep(tmp_path, [BAD | {"score": math.nan}]), capsys).values():
        assert "0 of 1 points are finished" in told and "has 1 fault:" in told and "bad (line 1): score" in told
    assert not list((tmp_path / "report").glob("*.svg"))


NAMES = [
    "a$b$c",
    "$x",
    r"\frac{1}{0}$\bad$",
    "50%_{x}^2#&~",
    "_hidden",
    "<script>alert(1)</script>",
    "a|b",
    "语音 é",
    "--",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Glyph")  # a line of noise for each character
def test_any_name(tmp_path, capsys):
    """TeX, HTML, Markdown: names of tasks, models and metrics come out as they are, in plots too."""
    rows = [
        item | {"task": name, "metric": name, "point": f"{name}{number}"} | ({"model": name} if number > 2 else {})
        for name in NAMES
        for number, item in enumerate(GOOD)
    ]
    rows += [row("sid", None, None, 1, model) | {"task": name, "metric": name} for model in NAMES for name in NAMES[:1]]
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "results.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    told = report(folder, capsys)
    assert "<script" not in told["report.html"] + told["report.md"]
    assert "&lt;script&gt;" in told["report.html"] and "a\\|b" in told["report.md"]
    for path in (folder / "report").glob("*.svg"):
        ElementTree.parse(path)
        comments = re.findall(r"<!-- (.*?) -->", path.read_text())  # every text of the figure
        for name in NAMES[:5]:
            assert any(name.replace("&", "&amp;") in text or name in text for text in comments), name


def test_a_matplotlibrc_with_tex(tmp_path, monkeypatch, capsys):
    """Somebody whose figures are set by TeX needs none here."""
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    report(write_sweep(tmp_path, GOOD), capsys)


def test_logs_of_any_bytes(tmp_path, capsys):
    """What a failed point's log held, half a character too, does not end the report."""
    failed = BAD | {"state": "failed", "error": "\ud800 <b>", "log": ["\x1b[31m \udcff", 3, None]}
    told = report(write_sweep(tmp_path, [*GOOD, failed]), capsys)
    assert r"\ud800 &lt;b&gt;" in told["report.html"] and r"\udcff" in told["report.md"]
