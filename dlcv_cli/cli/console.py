"""Output for a person: results on stdout, everything else on stderr. Files hold fractions; percent is for screens."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import typer

from dlcv_cli.context import Outcome, Reporter
from dlcv_cli.errors import SettingError, escape_controls

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def _format_percent(value: float) -> str:
    return f"{100 * value:.2f} %"


# How each field of a record is shown, in this order: its label, its text, and the width of its column in a table. Other
# fields are not shown.
FIELDS: dict[str, tuple[str, Callable[[Any], str], int]] = {
    "seed": ("seed", str, 5),
    "epoch": ("epoch", str, 5),
    "iteration": ("iteration", "{:,}".format, 10),
    "lr": ("lr", "{:.3g}".format, 8),
    "train_loss": ("train loss", "{:.4g}".format, 10),
    "train_accuracy": ("accuracy", _format_percent, 8),
    "val_loss": ("val loss", "{:.4g}".format, 9),
    "val_accuracy": ("accuracy", _format_percent, 8),
    "images_per_second": ("", "{:.0f} images/s".format, 14),
    "best": ("", lambda best: "best" if best else "", 4),
}


def describe_record(fields: dict[str, Any]) -> str:
    """Return a training record in one line."""
    shown = [
        f"{label} {show(fields[key])}".strip()
        for key, (label, show, _) in FIELDS.items()
        if fields.get(key) is not None
    ]
    return "  ".join(text for text in shown if text)


def tabulate_record(fields: dict[str, Any]) -> tuple[str, str]:
    """Return a training record as a row of a table, and the line above the first row."""
    columns = [(key, *FIELDS[key]) for key in FIELDS if key in fields]
    cells = ["" if fields[key] is None else show(fields[key]) for key, _, show, _ in columns]
    headings = [label for _, label, _, _ in columns]
    row, head = (
        "  ".join(text.rjust(width) for text, (*_, width) in zip(texts, columns, strict=True)).rstrip()
        for texts in (cells, headings)
    )
    return row, head


class Terminal(Reporter):
    """Reports on stderr: with a progress bar and a table on a terminal, elsewhere in plain lines only.

    Args:
        quiet: report warnings only.
        verbose: report details as well, and begin each line with the seconds since the start.
    """

    bar: Progress | None = None  # of the class, since a terminal has one bar, which an error anywhere has to remove
    task: TaskID

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        if quiet and verbose:
            raise SettingError("--quiet contradicts --verbose")
        self.quiet, self.verbose, self.begun = quiet, verbose, time.monotonic()
        self.title = self.heading = ""  # of the bar, and of the table's columns

    def note(self, text: str) -> None:
        if not self.quiet:
            self.heading = ""  # what follows is another table
            self._print(text)

    def detail(self, text: str) -> None:
        if self.verbose:
            self._print(text)

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}")

    def record(self, fields: dict[str, Any]) -> None:
        if self.quiet:
            return
        if not self._has_terminal():
            self._print(describe_record(fields))
            return
        row, heading = tabulate_record(fields)
        if heading != self.heading:
            self._print(heading)
            self.heading = heading
        self._print(row)

    def _print(self, text: str) -> None:
        text = escape_controls(text)
        if self.verbose:
            text = f"[{time.monotonic() - self.begun:7.1f} s] {text}"
        if self.bar:
            self.bar.console.print(text, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    @classmethod
    def _has_terminal(cls) -> bool:
        """Return whether stderr is a terminal; what older releases of rich put in its place under a bar says no."""
        return cls.bar is not None or sys.stderr.isatty()

    def progress(self, what: str, done: int, total: int) -> None:
        if self.quiet or not self._has_terminal():
            return
        if Terminal.bar is None or what != self.title:
            self.close()
            Terminal.bar, self.title = _make_bar(), what
            self.task = Terminal.bar.add_task(what, total=total)
            Terminal.bar.start()
        Terminal.bar.update(self.task, completed=done)
        if done == total:
            self.close()

    @classmethod
    def close(cls) -> None:
        """Remove the bar from the screen."""
        if cls.bar:
            cls.bar.stop()
        cls.bar = None


def _make_bar() -> Progress:
    """Return a progress bar on stderr, with count, speed and remaining time."""
    from rich import console, progress, text

    class SpeedColumn(progress.ProgressColumn):
        def render(self, task: progress.Task) -> text.Text:
            return text.Text(f"{task.speed:,.0f}/s" if task.speed else "")

    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn())
    screen = console.Console(stderr=True, highlight=False, soft_wrap=True)
    return progress.Progress(*columns, SpeedColumn(), progress.TimeRemainingColumn(), console=screen, transient=True)


def say(text: str) -> None:
    """Print a result on stdout."""
    typer.echo(escape_controls(text))


def print_json(document: Any) -> None:
    """Print the one JSON document of --json."""
    typer.echo(json.dumps(document, indent=1, ensure_ascii=True))


def _describe_outcome(outcome: Outcome) -> dict[str, Any]:
    status = "made" if outcome.made else "up to date"
    return {"status": status, "output": str(outcome.output), **outcome.summary}


def print_outcome(outcome: Outcome, as_json: bool, text: str = "") -> None:
    """Print a stage's result: its file, and whether it was written or up to date."""
    if as_json:
        print_json(_describe_outcome(outcome))
    else:
        details = f" ({text})" if text else ""
        say(f"wrote {outcome.output}{details}" if outcome.made else f"{outcome.output}: up to date{details}")


def print_trainings(outcomes: Iterable[Outcome], as_json: bool) -> None:
    """Print the result of each run of a training as it comes, with its best record; as JSON, all at the end."""
    if as_json:
        documents = [_describe_outcome(outcome) for outcome in outcomes]
        print_json(documents[0] if len(documents) == 1 else {"runs": documents})
        return
    for outcome in outcomes:
        print_outcome(outcome, False, f"best {describe_record(outcome.summary)}")
