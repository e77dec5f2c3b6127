"""Work in threads: in order, so much ahead and no more, and whole when it stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from dlcv_cli.errors import FileError
from dlcv_cli.vision.transforms import map_in_order


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (2, 5), (4, 4), (3, 100)])
def test_results_come_in_order(threads: int, ahead: int) -> None:
    """Each job comes with its result, in the order of the jobs, though the earlier ones take longer."""

    def work(job: int) -> int:
        time.sleep(0.002 * (12 - job))
        return job * job

    assert list(map_in_order(work, range(12), threads, ahead)) == [(job, job * job) for job in range(12)]


def test_results_of_nothing() -> None:
    """No jobs, no results."""
    assert list(map_in_order(len, [], 2, 4)) == []


@pytest.mark.parametrize("ahead", [1, 3, 8])
def test_no_more_than_so_many_ahead(ahead: int) -> None:
    """While one result is in use, exactly `ahead` later jobs have begun, while jobs remain."""
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for job in range(1, 21):
            taken.append(job)
            yield job

    for job, _ in map_in_order(lambda job: job, jobs(), 4, ahead):
        assert len(taken) == min(20, job + ahead)


def test_two_work_at_a_time() -> None:
    """With two threads two jobs are under way at once."""
    both = threading.Barrier(2, timeout=20)
    assert [job for job, _ in map_in_order(lambda _: both.wait(), range(6), 2, 4)] == [*range(6)]


def test_an_error_comes_where_its_job_stood() -> None:
    """What a job raises is raised in its place, behind the results before it, and nothing is taken up any more."""
    started: list[int] = []

    def work(job: int) -> int:
        started.append(job)
        if job == 3:
            raise FileError("three.png", "no image")
        time.sleep(0.01)
        return job

    results = map_in_order(work, range(100), 2, 4)
    assert [next(results)[1] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(FileError, match=r"three\.png: no image"):
        next(results)
    count = len(started)
    assert count <= 3 + 4 + 1
    time.sleep(0.05)
    assert len(started) == count


def test_stopping_early_stops_the_work() -> None:
    """When nobody wants more, what has not begun is never begun, and no thread is left."""
    started: list[int] = []

    def work(job: int) -> int:
        started.append(job)
        time.sleep(0.02)
        return job

    before = threading.active_count()
    results = map_in_order(work, range(100), 2, 50)
    next(results)
    results.close()  # type: ignore[attr-defined]  # it is a generator
    assert len(started) < 20
    assert threading.active_count() == before


def test_each_thread_computes_alone() -> None:
    """The threads use none of torch's own, and whoever called them keeps his."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert {n for _, n in map_in_order(lambda _: torch.get_num_threads(), range(8), 2, 4)} == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
