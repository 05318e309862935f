"""The documentation: the site builds, and its drawings, figures and references are those of the repository."""

import collections
import csv
import dataclasses
import json
import math
import pathlib
import re
import runpy
import subprocess
import sys

import pytest
import s3prl
import yaml
from paths import ROOT
from sweep_rows import row, write_sweep

from benchmarks import evidence, report, run_again, superb_small
from benchmarks import rows as benchmark_rows
from s3prl_ofa.cli import COMMANDS
from s3prl_ofa.superb.upstream.output_frames import usual_output_frames
from s3prl_ofa.sweep.grid.schema import KNOWN
from s3prl_ofa.sweep.report.settings import Kind

DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
DRAWINGS = runpy.run_path(str(DOCS / "drawings.py"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
NEAR = 0.5  # points on the page: other kernels round otherwise


def test_site_builds(tmp_path):
    """Without warnings, and without anything that a browser would fetch from elsewhere."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path / "site"): path.read_text("utf-8") for path in tmp_path.rglob("*.html")}
    assert len(pages) > len(list(DOCS.rglob("*.md")))  # and 404.html
    for page, text in pages.items():
        fetched = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?((?:https?:)?//[^\" >]+)", text)
        assert not [url for url in fetched if "canonical" not in url], page
    api = next(text for page, text in pages.items() if page.name == "api.html")
    assert "<li>" in api.partition("Hidden states of a batch")[2][:600]  # arguments are a list


@pytest.mark.parametrize("name", DRAWINGS["DRAWINGS"])
def test_drawings_are_fresh(name, tmp_path):
    """`python docs/drawings.py` would draw the same: equal text, and numbers up to half a point."""
    DRAWINGS["draw"](name, tmp_path / "new.svg")
    texts = [
        re.sub(r'(id="|#)\w+', r"\1", path.read_text("utf-8"))  # names inside the file hash its numbers
        for path in (tmp_path / "new.svg", DOCS / "images" / f"{name}.svg")
    ]
    new, kept = (NUMBER.sub("0", text) for text in texts)
    assert new == kept, f"docs/images/{name}.svg is out of date; run python docs/drawings.py"
    numbers = zip(*(map(float, NUMBER.findall(text)) for text in texts), strict=True)
    assert all(abs(one - other) <= NEAR for one, other in numbers), f"docs/images/{name}.svg is out of date"


def test_all_pages_use_their_drawings():
    """Every drawing is on a page, and every picture of a page is a drawing."""
    texts = [path.read_text("utf-8") for path in (ROOT / "README.md", *DOCS.rglob("*.md"))]
    used = {name for text in texts for name in re.findall(r"!\[[^\]]*\]\((?:docs/)?images/(\w+)\.svg\)", text)}
    assert used == set(DRAWINGS["DRAWINGS"])


@pytest.mark.parametrize("page", evidence.PAGES, ids=lambda page: page.name)
def test_pages_show_the_evidence(page):
    """Every figure between marks is what `python -m benchmarks.evidence` makes of the rows."""
    text = page.read_text("utf-8")
    assert text == report.with_tables(text, evidence.TABLES), "run python -m benchmarks.evidence"
    assert len(report.PLACE.findall(text)) == text.count("<!-- table") > 0


def test_discussion_of_the_results():
    """The figures between the tables are those of the rows, too."""
    settings = evidence.evidence().settings
    pr = {one.label: one for one in settings[settings["task"] == "pr"].itertuples()}
    text = " ".join((DOCS / "results.md").read_text("utf-8").split())
    base, half, short, ms60, pooled = (pr[name] for name in ("lambd 0", "lambd 0.5", "lambd 0.97", "60 ms", "pool 3"))
    chosen = [found for found in evidence.compared(Kind.SPECIALIST) if found.setting.task == "pr"]
    gains = {found.rival.label: -found.gain for found in chosen}
    ours = [one for one in pr.values() if one.kind in (Kind.VARIABLE, Kind.LEARNED) and one.gmacs < base.gmacs]
    for one in pr.values():
        if one.kind in (Kind.EQUAL, Kind.EXIT) and one.gmacs >= short.gmacs - 1e-9:
            assert one.score > min(each.score for each in ours if each.gmacs <= one.gmacs + 1e-9)
    assert f"the lowest PER between {short.gmacs:.3f} and {half.gmacs:.2f} GMACs" in text
    assert (
        f"at 60 ms, for {ms60.gmacs / base.gmacs:.2f} of the arithmetic and less than half of the time" in text.lower()
    )
    assert ms60.total_ms / base.total_ms < 0.5 and abs(ms60.score - base.score) < 0.1
    faster = f"{pr['fixed3'].total_ms / ms60.total_ms - 1:.0%}"
    assert (
        f"only 60 ms is, {faster} faster than `fixed3` and almost 4 points worse" in text and 3.5 < gains["fixed3"] < 4
    )
    assert f"pooling after the whole encoder, for {pr['fixed3'].gmacs / pooled.gmacs:.2f} of the arithmetic" in text
    assert abs(pr["fixed3"].score - pooled.score) < 0.2 and 5 < gains["fixed2"] < 6
    assert (
        f"it has {pr['fixed4'].score:.1f} and lambd 0.97 has {short.score:.1f} at {short.frame_period_ms:.0f} ms"
        in text
    )
    lines = (RESULTS / "tiny_s3prl.jsonl").read_text("utf-8").splitlines()
    twice = {one["value"]: 100 * one["score"] for one in map(json.loads, lines) if one["repeat"] == 2}
    assert f"PER was {twice[80.0]:.1f}% at 80 ms and {twice[0.98]:.1f}% at lambd 0.98" in text
    assert f"costs this checkpoint {twice[0.98] - short.score:.0f} to {twice[80.0] - short.score:.0f} points" in text
    assert f"instead of {short.score:.1f}% at 78 ms" in text


def test_what_the_evidence_compares(tmp_path, monkeypatch):
    """An alternative is beside the compressed setting of the same lambd, of the nearest cost, or of the nearest period,
    with the difference's sign and interval; settings whose frames were repeated are left out."""
    rows = [row("pr", "lambd", value, 1) for value in (0.0, 0.5, 0.75, 1.0)]
    rows[-1]["repeat"] = 2
    costs = [each["macs_per_second"] for each in rows]
    alternatives = {"uniform": (0.5, costs[1]), "layers": (3, costs[1] + 1e7), "pool": (3, costs[0])}
    for rate, (value, cost) in alternatives.items():
        changes = {"rate": rate, "value": value, "point": rate, "score": 0.5, "macs_per_second": cost}
        rows.append(row("pr", "lambd", 0.75, 1) | changes)
    rows.append(row("pr", "lambd", 1.0, 1) | {"rate": "uniform", "point": "twice", "repeat": 2})
    folder = write_sweep(tmp_path / "sweep", rows)
    for each in rows:
        found = {"utterances": ["a", "b"], "sums": [100 * each["score"]] * 2, "counts": [100, 100]}
        (folder / "points" / each["point"] / "utterances.json").write_text(json.dumps(found))
    monkeypatch.setattr(evidence, "EVIDENCE", folder)
    gain = 100 * (0.5 - rows[1]["score"])
    for name, label, nearest in (
        ("equal lengths", "uniform 0.5", "lambd 0.5"),
        ("early exit", "layers 3", "lambd 0.5"),
        ("pooling", "pool 3", "lambd 0.75"),
    ):
        (line,) = evidence.TABLES[name]().splitlines()[2:]
        assert f"| {label} |" in line and f"| {nearest} |" in line
        if nearest == "lambd 0.5":
            assert line.endswith(f"| {gain:+.2f} [{gain:.2f}, {gain:.2f}] | < 0.001 |")
    assert f"at 20 ms per frame, {100 * rows[1]['score']:.1f}% at" in evidence.headline()
    assert f"{100 * rows[2]['score']:.1f}% at 46.2 ms (" in evidence.headline()
    assert evidence.headline().endswith("x, frames repeated)")
    gains = [100 * (rows[0]["score"] - each["score"]) for each in rows[1:3]]
    for line, label, gain in zip(evidence.beside_20_ms().splitlines()[2:], ("0.5", "0.75"), gains, strict=True):
        assert f"| lambd {label} |" in line and f"| {gain:+.2f} [{gain:.2f}, {gain:.2f}] |" in line


def test_what_dev_would_have_chosen(tmp_path, monkeypatch):
    """The page names the settings that are best on dev at their cost, beside those that are best on test, and compares
    all models only where there are others."""
    rows = [row("pr", "lambd", value, 1) for value in (0.0, 0.5, 1.0)]
    rows[1]["dev_score"] = rows[2]["dev_score"] + 0.1  # best at its cost on test alone
    folder = write_sweep(tmp_path / "sweep", [*rows, row("sid", "lambd", 0.0, 1)])
    monkeypatch.setattr(evidence, "EVIDENCE", folder)
    shown = evidence.best_of_one_checkpoint()
    assert [f"| lambd {label} |" in shown for label in ("0", "0.5", "1")] == [True] * 3
    assert shown.endswith("Selecting on dev would give: pr lambd 1, lambd 0; sid lambd 0.")
    assert "lambd" not in evidence.best_of_all("gmacs")


def test_where_rates_settled(tmp_path, monkeypatch):
    """A line per start and seed of a learned rate, how far their periods lie apart, and the nearest fixed rate."""
    rows = [row("pr", "lambd", value, 1) for value in (0.0, 0.5, 0.75)]
    for start, period in ((0.9, 44.0), (0.1, 40.0)):
        learned = {"rate": "adaptive", "value": 1, "lambd_start": start, "learnt_lambd": 0.7, "frame_period_ms": period}
        rows.append(rows[0] | learned | {"point": f"from {start}", "score": 0.25})
    monkeypatch.setattr(evidence, "EVIDENCE", write_sweep(tmp_path / "sweep", rows))
    *lines, _, apart = evidence.TABLES["where rates settled"]().splitlines()[2:]
    assert lines == ["| pr | 1 | 0.1 | 1 | 0.70 | 40.0 | PER 25.0% |", "| pr | 1 | 0.9 | 1 | 0.70 | 44.0 | PER 25.0% |"]
    assert apart == "The frame periods of pr are 40.0 to 44.0 ms, 10% apart."
    nearest = [line for line in evidence.TABLES["learned rates"]().splitlines() if "| lambd 0.75 |" in line]
    assert len(nearest) == 2


def test_rows_name_no_machine():
    """Committed rows of sweeps give checkpoints below the project's folder, not where one machine had them."""
    for path in (evidence.EVIDENCE / "results.jsonl", run_again.AGAIN):
        for line in path.read_text("utf-8").splitlines():
            checkpoint = pathlib.Path(json.loads(line)["checkpoint"])
            assert not checkpoint.is_absolute(), (path, checkpoint)


def test_a_second_run(tmp_path, monkeypatch):
    """The clock runs while any point runs, and not between launches; scores are compared point by point, and over the
    seeds of a setting, of which a model is a part; points that only one run has are left out."""
    moments = {1: ("10:10", 600), 2: ("10:15", 600), 3: ("12:00", 1800)}  # the first two side by side
    rows = [row("pr", "lambd", 0.5, seed, lambd_start=None) for seed in moments]
    again = [
        each | {"score": each["score"] + change, "finished": f"2026-01-01T{end}:00+00:00", "duration_s": seconds}
        for each, change, (end, seconds) in zip(rows, (0.02, -0.03, 0.04), moments.values(), strict=True)
    ]
    rows.append(row("pr", "lambd", 0.5, 1, "fixed2", lambd_start=None))
    again.append(again[0] | rows[-1] | {"score": rows[-1]["score"] - 0.02, "finished": again[0]["finished"]})
    again[-1]["duration_s"] = again[0]["duration_s"]
    monkeypatch.setattr(run_again, "AGAIN", tmp_path / "again.jsonl")
    run_again.AGAIN.write_text("".join(json.dumps(each) + "\n" for each in again))
    found = run_again.run_again([*rows, row("pr", "lambd", 1.0, 1)])
    assert "AMD EPYC, 4 of the 5 runs took 0.8 hours" in found  # 15 and 30 minutes
    assert found.endswith("| pr | 4 | 4.0 | 2.0 |")


def test_the_last_run_of_a_benchmark_counts(tmp_path, monkeypatch):
    """Memory is that of the last run in the file, to which every run is added."""
    rows = evidence.last_run(evidence.MEMORY)
    monkeypatch.setattr(evidence, "MEMORY", tmp_path / "memory.csv")
    for run, factor in (("2026-01-01T00:00:00", 3), ("2026-01-02T00:00:00", 2)):
        more = [dataclasses.replace(each, run=run, peak_mib=factor * each.peak_mib) for each in rows]
        benchmark_rows.write(more, evidence.MEMORY)
    assert (
        evidence.memory().count("MiB") == len(rows) and f" {2 * rows[0].peak_mib} MiB at lambd 0," in evidence.memory()
    )


def rows_of(file: str, **chosen: str) -> list[dict[str, str]]:
    with (RESULTS / file).open(encoding="utf-8") as text:
        rows = [row for row in csv.DictReader(text) if all(row[key] == value for key, value in chosen.items())]
    assert rows
    return rows


def test_settings_of_superb():
    """The table of the tasks has the updates, learning rate and frames of their configs."""
    table = (DOCS / "how-to" / "superb.md").read_text("utf-8").partition("## Train")[2].partition("## Evaluate")[0]
    for task in KNOWN:
        config = yaml.safe_load((ROOT / "downstream_configs" / f"{task}.yaml").read_text("utf-8"))
        settings = r"none \|"
        if config["runner"]:
            settings = f"{config['runner']['total_steps']:,} | {config['optimizer']['lr']:.0e}".replace("e-0", "e-")
        row = rf"^\| {task} \| [a-z ]+ \| {settings} \| [`\w, ]+ \| {usual_output_frames(task)} \|$"
        assert re.search(row, table, re.M), (task, settings)


def test_what_was_run_of_superb():
    """The table of the tasks beside asr, pr and sid is what `python -m benchmarks.superb_small` makes of the rows of
    the grid, and scores are better than chance at every rate."""
    text = superb_small.PAGE.read_text("utf-8")
    assert text == report.with_tables(text, superb_small.TABLES), "run python -m benchmarks.superb_small"
    grid = yaml.safe_load((ROOT / "downstream_configs" / "sweeps" / "superb_small.yaml").read_text("utf-8"))
    better = {"acc": {"ks": 0.5, "ic": 0.25, "er": 0.37}, "slot_type_f1": {"sf": 0.2}, "mtwv": {"qbe": 0}}
    lower = {"cer": {"sf": 0.9}, "der": {"sd": 1}, "EER": {"asv": 0.4}}
    rows = superb_small.read(superb_small.ROWS)
    assert len(rows) == len(superb_small.TASKS) * len(superb_small.LAMBDS)
    for one in rows:
        assert one["steps"] == grid["tasks"][one["task"]].get("steps"), one["task"]
        for metric, score in one["scores"].items():
            assert score > better.get(metric, {}).get(one["task"], -1), (one["task"], one["value"], metric)
            assert score < lower.get(metric, {}).get(one["task"], math.inf), (one["task"], one["value"], metric)


def test_what_int8_costs():
    """The sentence about phone recognition, on each kind of processor."""
    per = collections.defaultdict(dict)
    for each in rows_of("int8.csv", contender="trained in float32"):
        per["avx512f" in each["instructions"]][each["dtype"]] = f"{100 * float(each['note']):.1f}%"
    text = " ".join((DOCS / "how-to" / "half-precision.md").read_text("utf-8").split())
    assert f"has a PER of {per[True]['float32']} with these, and of {per[True]['int8']} with int8 ones" in text
    assert f"without AVX-512, of {per[False]['float32']} and {per[False]['int8']}" in text


def test_reliability_page():
    """Every test that it names exists, and is marked slow where the page says so."""
    text = (DOCS / "reliability.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`( \(slow\))?", text)
    assert len(named) > 15
    for file, test, slow in named:
        found = re.search(rf"((?:^@.*\n(?:[ )\]}}].*\n)*)*)^def {test}\(", (ROOT / file).read_text("utf-8"), re.M)
        assert found, f"{file} has no {test}"
        assert bool(slow) == ("pytest.mark.slow" in found[1]), test


def test_command_line_page():
    """Every command is in the table."""
    text = (DOCS / "reference" / "command-line.md").read_text("utf-8")
    named = {name for cell in re.findall(r"^\|([^|]*)", text, re.M) for name in re.findall(r"`(\w+)`", cell)}
    assert set(COMMANDS) <= named


OF_OTHER_TOOLS = {"--build_upstream", "--extra-index-url", "--prepare_data", "--strict"}  # S3PRL, pip, mkdocs
OF_OTHER_TOOLS |= {  # ESPnet
    f"--{split}_{option}" for split in ("train", "valid") for option in ("data_path_and_name_and_type", "shape_file")
}


def test_options_exist():
    """Every option that a page names outside its examples, which run, is one of a command or a benchmark."""
    files = [path for name in ("s3prl_ofa", "benchmarks", "tests") for path in (ROOT / name).rglob("*.py")]
    files.append(pathlib.Path(s3prl.__path__[0], "run_downstream.py"))
    sources = "".join(path.read_text("utf-8") for path in files if path.name != "test_docs.py")
    for path in (ROOT / "README.md", *DOCS.rglob("*.md")):
        prose = re.sub(r"```bash\n.*?```", "", path.read_text("utf-8"), flags=re.S)
        for option in set(re.findall(r"(?<![\w-])--[a-z][\w-]+", prose)) - OF_OTHER_TOOLS:
            assert f'"{option}"' in sources, f"{path}: {option}"
