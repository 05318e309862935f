"""The documentation: the site builds, and its drawings, figures and references are those of the repository."""

import csv
import pathlib
import re
import runpy
import statistics
import subprocess
import sys

import pytest
import s3prl
from paths import ROOT

from s3prl_ofa.cli import COMMANDS

DOCS, RESULTS = ROOT / "docs", ROOT / "benchmarks" / "results"
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


def rows_of(file: str, **chosen: str) -> list[dict[str, str]]:
    with (RESULTS / file).open(encoding="utf-8") as text:
        rows = [row for row in csv.DictReader(text) if all(row[key] == value for key, value in chosen.items())]
    assert rows
    return rows


def test_what_the_results_show():
    """The two sentences that sum up the published sweep."""
    rows = [row for row in rows_of("mini_librispeech/report/results.csv", rate="lambd") if row["repeat"] == "1"]

    def mean(task: str, lambd: float, column: str = "score") -> float:
        chosen = [row for row in rows if row["task"] == task and float(row["value"]) == lambd]
        return statistics.fmean(float(row[column]) for row in chosen)

    text = " ".join((DOCS / "results.md").read_text("utf-8").split())
    share = mean("sid", 1, "macs_per_second") / mean("sid", 0, "macs_per_second")
    assert f"as well at {mean('sid', 1, 'frame_period_ms'):.0f} ms as at 20 ms, for {share:.1f} of the" in text
    cost = {lambd: 100 * (mean("pr", lambd) - mean("pr", 0)) for lambd in (0.75, 0.98)}
    assert f"Phones cost {cost[0.75]:.0f} points of PER at {mean('pr', 0.75, 'frame_period_ms'):.0f} ms" in text
    assert f"and {cost[0.98]:.0f} at {mean('pr', 0.98, 'frame_period_ms'):.0f} ms" in text


def test_what_int8_costs():
    """The sentence about phone recognition."""
    rows = rows_of("int8.csv", contender="trained in float32")
    per = {row["dtype"]: f"{100 * float(row['note']):.1f}%" for row in rows}
    text = " ".join((DOCS / "how-to" / "half-precision.md").read_text("utf-8").split())
    assert f"has a PER of {per['float32']} with these, and of {per['int8']} with int8 ones" in text


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


def test_options_exist():
    """Every option that a page names outside its examples, which run, is one of a command or a benchmark."""
    files = [path for name in ("s3prl_ofa", "benchmarks", "tests") for path in (ROOT / name).rglob("*.py")]
    files.append(pathlib.Path(s3prl.__path__[0], "run_downstream.py"))
    sources = "".join(path.read_text("utf-8") for path in files if path.name != "test_docs.py")
    for path in (ROOT / "README.md", *DOCS.rglob("*.md")):
        prose = re.sub(r"```bash\n.*?```", "", path.read_text("utf-8"), flags=re.S)
        for option in set(re.findall(r"(?<![\w-])--[a-z][\w-]+", prose)) - OF_OTHER_TOOLS:
            assert f'"{option}"' in sources, f"{path}: {option}"
