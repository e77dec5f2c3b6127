"""What every stage is given beside its inputs and settings, and what it returns."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dlcv_cli.config import Machine

Item = TypeVar("Item")
Result = TypeVar("Result")


class Reporter:
    """Keeps silent; the console's overrides it."""

    def note(self, text: str) -> None:
        """One line of what is being done or was found."""

    def warn(self, text: str) -> None:
        """One line that the user should act on."""

    def progress(self, what: str, done: int, total: int) -> None:
        """How far a loop is."""

    def record(self, fields: dict[str, Any]) -> None:
        """One epoch, or one look at the losses."""


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
    """A stage's result: the file it was asked for, whether it had to be made, and what there is to say of it."""

    output: Path
    made: bool
    summary: dict[str, Any] = field(default_factory=dict)


def map_in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], what: str, report: Reporter
) -> list[Result]:
    """[function(item) for item in items] in threads, with progress. For work that releases the GIL."""
    results = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for result in pool.map(function, items):
                results.append(result)
                report.progress(what, len(results), len(items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results
