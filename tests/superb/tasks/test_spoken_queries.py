"""The score of query by example."""

import math

import pytest

from s3prl_ofa.superb.tasks.spoken_queries import FALSE_ALARM_WEIGHT, mtwv, read_truth

SCORES = {"a": {"1": 3.0, "2": 1.0, "3": 0.0}, "b": {"1": 0.0, "2": 2.0, "3": -1.0}}


def test_the_maximum_is_over_one_threshold_for_all_queries():
    """One hit of each query above all else is perfect; a false alarm costs more than a miss, so it is avoided."""
    assert mtwv(SCORES, {("a", "1"), ("b", "2")}) == 1.0
    assert mtwv(SCORES, {("a", "1"), ("b", "3")}) == 0.5  # b's hit is below others of both: missed
    assert mtwv(SCORES, {("a", "3"), ("b", "3")}) == 0.0  # detecting nothing is best
    assert mtwv(SCORES, {("a", "1"), ("a", "2")}) == 1.0  # b is in no document and does not count
    assert math.isnan(mtwv(SCORES, set()))


def test_false_alarms_are_weighted(monkeypatch):
    """beta 12.49 is what the costs of QUESST 2014 give, and with a lower one an alarm can be worth its hit."""
    assert math.isclose(FALSE_ALARM_WEIGHT, (1 / 0.0008 - 1) / 100)
    monkeypatch.setattr("s3prl_ofa.superb.tasks.spoken_queries.FALSE_ALARM_WEIGHT", 0.5)
    assert mtwv({"a": {"1": 1.0, "2": 2.0, "3": 0.0}}, {("a", "1")}) == pytest.approx(1 - 0.5 / 2)


def test_truth_is_read_from_the_database(tmp_path, caplog):
    """A database without it is a warning: the scores of the queries are written all the same."""
    assert read_truth(tmp_path, "dev") == set() and "not scored" in caplog.text
    path = tmp_path / "scoring" / "groundtruth_quesst14_dev" / "quesst14_dev.rttm"
    path.parent.mkdir(parents=True)
    path.write_text("SPEAKER x\nLEXEME quesst14_00007 1 2.0 1.0 quesst14_dev_0012 lex NA 0.5\n")
    assert read_truth(tmp_path, "dev") == {("quesst14_dev_0012", "quesst14_00007")}
