"""What every stage takes beside its inputs and settings, and what it returns."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dlcv_cli.config import Machine

Item = TypeVar("Item")
Result = TypeVar("Result")


class Reporter:
    """Hears of a stage's progress. This one ignores it; the console prints it."""

    def note(self, text: str) -> None:
        """Say in one line what the stage does."""

    def detail(self, text: str) -> None:
        """Say in one line what only those who ask for more want to know."""

    def warn(self, text: str) -> None:
        """Warn in one line of what the user should act on."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of a loop are done."""

    def record(self, fields: dict[str, Any]) -> None:
        """Show one line of training progress: of an epoch, or of a validation pass between two."""

    def log(self, fields: dict[str, Any]) -> None:
        """Keep a record: every one of a training, also of several seeds, and of the part before it was stopped."""


class Relay(Reporter):
    """Passes everything on to another reporter. Subclasses change some of it."""

    def __init__(self, to: Reporter) -> None:
        self.to = to

    def note(self, text: str) -> None:
        self.to.note(text)

    def detail(self, text: str) -> None:
        self.to.detail(text)

    def warn(self, text: str) -> None:
        self.to.warn(text)

    def record(self, fields: dict[str, Any]) -> None:
        self.to.record(fields)

    def log(self, fields: dict[str, Any]) -> None:
        self.to.log(fields)

    def progress(self, what: str, done: int, total: int) -> None:
        self.to.progress(what, done, total)


class Labelled(Relay):
    """Adds to each record that is kept which run of several it is of."""

    def __init__(self, to: Reporter, labels: Mapping[str, Any]) -> None:
        super().__init__(to)
        self.labels = labels

    def log(self, fields: dict[str, Any]) -> None:
        self.to.log({**self.labels, **fields})


@dataclass(frozen=True)
class Context:
    """Where a stage computes, what it may replace, and who hears of its progress. No result depends on it."""

    machine: Machine = field(default_factory=Machine)
    cache: Path | None = None  # folder of cached features and compiled kernels; None: cache nothing
    root: Path | None = None  # folder of the images, where it is not the one that the split names
    force: bool = False  # replace an output that was made differently
    save_every: float = 300.0  # seconds between two snapshots within an epoch
    reporter: Reporter = field(default_factory=Reporter)


@dataclass(frozen=True)
class Outcome:
    """A stage's result: its output file, whether it was written now or up to date, and a summary to print."""

    output: Path
    made: bool
    summary: dict[str, Any] = field(default_factory=dict)


def list_facts(facts: Mapping[str, object]) -> str:
    """Return facts in one line, such as `device cpu, threads 2`."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def count_processors() -> int:
    """Return how many processors this process may use, which `taskset`, containers and Slurm restrict."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], what: str, report: Reporter
) -> list[Result]:
    """Return [function(item) for item in items], computed in threads, with progress. For work that releases the GIL."""
    results: list[Result] = []
    size = 1 + len(items) // 256  # a thread takes several at a time, where one alone is soon done
    chunks = [items[i : i + size] for i in range(0, len(items), size)]
    with ThreadPoolExecutor(count_processors()) as pool:
        try:
            for chunk in pool.map(lambda chunk: [function(item) for item in chunk], chunks):
                results += chunk
                report.progress(what, len(results), len(items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results
