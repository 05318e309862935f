"""The file of results and the locks of a sweep: nothing is lost, doubled or left half written."""

import json
import multiprocessing
import os

import pytest

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io import locks
from s3prl_ofa.sweep.results import Results


def row(point: str, state: str = "finished", **more) -> dict:
    return {"point": point, "state": state, **more}


def test_rows_there_and_back(tmp_path):
    """What is recorded is read again, one line a row, also with letters beyond ASCII."""
    results = Results(tmp_path)
    assert results.rows() == []
    rows = [row("a", score=0.5, note="é\n"), row("b", "failed", error="x")]
    assert all(results.record(item) for item in rows)
    assert results.rows() == rows
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2


def test_a_finished_point_is_there_once(tmp_path):
    """A second row of a finished point, from whatever process, is not added; a failed one's is replaced."""
    results = Results(tmp_path)
    assert results.record(row("a", "failed", error="x")) and results.record(row("b", score=1))
    assert results.record(row("a", "failed", error="y")) and results.record(row("a", score=2))
    assert not results.record(row("a", score=3)) and not results.record(row("a", "failed"))
    assert results.rows() == [row("b", score=1), row("a", score=2)]


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_cut_line_is_taken_away(cut, tmp_path, caplog):
    """Killed in the middle of a write, at any byte, the rows before stay, and the next one is whole."""
    results = Results(tmp_path)
    results.record(row("a", score=1))
    whole = (tmp_path / "results.jsonl").read_bytes()
    half = (json.dumps(row("b", score=0.123456789)) + "\n").encode()[:cut]
    (tmp_path / "results.jsonl").write_bytes(whole + half)
    assert results.rows() == [row("a", score=1)]
    assert results.record(row("b", score=2)) and "killed while it wrote" in caplog.text
    assert results.rows() == [row("a", score=1), row("b", score=2)]
    assert all(json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines())


def test_a_row_without_its_end_of_line_is_kept(tmp_path):
    """Cut off just before the end of the line, the row is whole and stays."""
    (tmp_path / "results.jsonl").write_text(json.dumps(row("a", score=1)))
    assert not Results(tmp_path).record(row("a", score=2))
    assert Results(tmp_path).rows() == [row("a", score=1)]


def record_many(folder, name):
    for index in range(20):
        Results(folder).record(row(f"{name}{index}", note="x" * 5000))
        Results(folder).record(row(f"shared{index}", by=name))


def test_many_processes_at_once(tmp_path):
    """Rows of several processes neither mix nor get lost, and what all of them record is there once."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=record_many, args=(tmp_path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    names = [item["point"] for item in Results(tmp_path).rows()]
    assert sorted(names) == sorted({*(f"{name}{i}" for name in (*"abc", "shared") for i in range(20))})


def test_a_full_disk_leaves_no_half_row(tmp_path, monkeypatch):
    """A row that does not fit is taken away again, and this is an error."""
    results = Results(tmp_path)
    results.record(row("a"))
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, text: write(descriptor, text[:5]))
    with pytest.raises(OSError, match="no room"):
        results.record(row("b"))
    monkeypatch.undo()
    assert (tmp_path / "results.jsonl").read_text() == json.dumps(row("a")) + "\n"


def test_no_locks(tmp_path, monkeypatch):
    """A file system without locks is refused, as results could be written twice there."""

    def refuse(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.raises(UsageError, match="no locks.*choose a folder on another one"):
        Results(tmp_path).record(row("a"))
