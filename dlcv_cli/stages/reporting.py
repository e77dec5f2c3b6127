"""What a stage tells while it works, and what it returns. The command line prints it; a test may ignore it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
