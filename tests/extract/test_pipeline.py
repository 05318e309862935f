"""Reading ahead of the model and writing behind it: in order, bounded, and no error is lost."""

import threading

import pytest

from s3prl_ofa.extract import pipeline
from s3prl_ofa.extract.pipeline import AHEAD, BEHIND, read_ahead, write_behind


def test_batches_are_read_ahead_in_parallel_and_bounded():
    """Two items are read at the same time; while one batch is used, AHEAD more are read and none beyond them."""
    meeting, begun = threading.Barrier(2, timeout=60), []

    def read(item):
        begun.append(item)
        if item < 2:
            meeting.wait()
        return -item

    batches = [[2 * number, 2 * number + 1] for number in range(AHEAD + 3)]
    for number, (batch, results) in enumerate(read_ahead(read, batches)):
        assert batch == batches[number] and [result.result() for result in results] == [-item for item in batch]
        assert max(begun) < 2 * (number + 1 + AHEAD)
    assert sorted(begun) == list(range(2 * len(batches)))


def test_a_reading_error_is_its_items_alone():
    def read(item):
        return 1 / item

    for _, results in read_ahead(read, [[0, 2]]):
        assert isinstance(results[0].exception(), ZeroDivisionError) and results[1].result() == 0.5


def test_what_is_written_is_in_order_and_done_at_the_end():
    done, allowed = [], threading.Event()

    def write(number):
        allowed.wait(60)
        done.append((number, threading.current_thread() is threading.main_thread()))

    with write_behind() as behind:
        for number in range(BEHIND):
            behind(write, number)
        assert done == []  # the block did not wait for them
        allowed.set()
        behind(write, BEHIND)
    assert done == [(number, False) for number in range(BEHIND + 1)]


@pytest.mark.parametrize("later", [0, 5])
def test_a_writing_error_ends_the_block(later):
    """At the next call that finds it, or at the end."""
    done = []

    def fail():
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"), write_behind() as behind:
        behind(fail)
        for number in range(later):
            behind(done.append, number)
    assert len(done) <= BEHIND


def test_an_error_of_the_block_drops_what_waits(monkeypatch):
    begun, left, done = threading.Event(), threading.Event(), []

    class Pool(pipeline.ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            left.set()
            super().shutdown(wait)

    def write():
        begun.set()
        left.wait(60)
        done.append("first")

    monkeypatch.setattr(pipeline, "ThreadPoolExecutor", Pool)
    with pytest.raises(KeyboardInterrupt), write_behind() as behind:
        behind(write)
        behind(done.append, "second")
        begun.wait(60)
        raise KeyboardInterrupt
    assert done == ["first"]
