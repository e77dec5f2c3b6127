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
    """Jobs and results come in the order of the jobs, even if earlier jobs take longer."""

    def work(job: int) -> int:
        time.sleep(0.002 * (12 - job))
        return job * job

    assert list(map_in_order(work, range(12), threads, ahead)) == [(job, job * job) for job in range(12)]


def test_no_jobs_give_no_results() -> None:
    """No jobs, no results."""
    assert list(map_in_order(len, [], 2, 4)) == []


@pytest.mark.parametrize("ahead", [1, 3, 8])
def test_jobs_ahead_are_limited(ahead: int) -> None:
    """While a result is in use, exactly `ahead` later jobs have begun, if there are as many."""
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for job in range(1, 21):
            taken.append(job)
            yield job

    for job, _ in map_in_order(lambda job: job, jobs(), 4, ahead):
        assert len(taken) == min(20, job + ahead)


def test_threads_work_in_parallel() -> None:
    """Two threads work on two jobs at once."""
    both = threading.Barrier(2, timeout=20)
    assert [job for job, _ in map_in_order(lambda _: both.wait(), range(6), 2, 4)] == [*range(6)]


def test_errors_keep_their_place() -> None:
    """An error is raised in place of its job's result, and no further job begins."""
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
    """After the caller stops, no further job begins and no thread remains."""
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


def test_threads_use_one_torch_thread() -> None:
    """The threads use one torch thread each, and the caller keeps its number."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert {n for _, n in map_in_order(lambda _: torch.get_num_threads(), range(8), 2, 4)} == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
