"""What a stage tells while it works, and what it returns. The command line prints it; a test may ignore it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

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
class Outcome:
    """A stage's result: the file it was asked for, whether it had to be made, and what there is to say of it."""

    output: Path
    made: bool
    summary: dict[str, Any] = field(default_factory=dict)


def parallel(function: Callable[[Item], Result], items: Sequence[Item], what: str, report: Reporter) -> list[Result]:
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
