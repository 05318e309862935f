"""The file of results: collected from the points' own, with nothing lost or doubled."""

import json

import pytest

from s3prl_ofa.sweep.results import collect, write_results


def row(point: str, state: str = "finished", **more) -> dict:
    return {"point": point, "state": state, **more}


def end(out, item: dict) -> None:
    folder = out / "points" / item["point"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(item))


def test_rows_there_and_back(tmp_path):
    """What points have found is in the file, one line per row, also with letters beyond ASCII."""
    assert write_results(tmp_path) == collect(tmp_path) == {}
    rows = [row("a", score=0.5, note="é\n"), row("b", "failed", error="x")]
    for item in rows:
        end(tmp_path, item)
        write_results(tmp_path)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows == list(collect(tmp_path).values())


def test_a_point_is_there_once(tmp_path):
    """The point's own result counts, wherever the file comes from; a row without a folder stays."""
    (tmp_path / "results.jsonl").write_text(
        json.dumps(row("elsewhere", score=1)) + "\n" + json.dumps(row("a", "failed"))
    )
    end(tmp_path, row("a", score=2))
    for _ in range(2):
        assert write_results(tmp_path) == {"elsewhere": row("elsewhere", score=1), "a": row("a", score=2)}


def test_a_failure_does_not_replace_a_row(tmp_path):
    """A point that has finished elsewhere stays finished where it has failed, unless it is scored otherwise now."""
    (tmp_path / "results.jsonl").write_text(json.dumps(row("a", score=1, metric="acc")) + "\n")
    end(tmp_path, row("a", "failed", metric="acc"))
    assert write_results(tmp_path) == {"a": row("a", score=1, metric="acc")}
    end(tmp_path, row("a", "failed", metric="loss"))
    assert write_results(tmp_path)["a"]["state"] == "failed"


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_cut_line_is_passed_over(cut, tmp_path, caplog):
    """A file or a result that somebody's disk cut off, at any byte, costs that row alone, and this is logged."""
    text = json.dumps(row("b", score=0.123456789))[:cut]
    (tmp_path / "results.jsonl").write_text(json.dumps(row("a", score=1)) + "\n" + text)
    (tmp_path / "points" / "c").mkdir(parents=True)
    (tmp_path / "points" / "c" / "result.json").write_text(text)
    assert write_results(tmp_path) == {"a": row("a", score=1)}
    assert "line 2 is not a row" in caplog.text and "points/c/result.json is not a row" in caplog.text
    assert (tmp_path / "results.jsonl").read_text() == json.dumps(row("a", score=1)) + "\n"
