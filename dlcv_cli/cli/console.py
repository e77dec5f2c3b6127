"""What a person reads: results on stdout, all else on stderr. Percent appears here and nowhere else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dlcv_cli.context import Outcome, Reporter
from dlcv_cli.errors import escape_controls


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


# How each field of a record is shown, in this order; what is not here is not shown.
FIELDS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "seed": ("seed", str),
    "epoch": ("epoch", str),
    "iteration": ("iteration", "{:,}".format),
    "lr": ("lr", "{:.3g}".format),
    "train_loss": ("train loss", "{:.4g}".format),
    "train_accuracy": ("accuracy", _percent),
    "val_loss": ("val loss", "{:.4g}".format),
    "val_accuracy": ("accuracy", _percent),
    "images_per_second": ("", "{:.0f} images/s".format),
    "best": ("", lambda best: "best" if best else ""),
}


def described(fields: dict[str, Any]) -> str:
    """One line of a record's fields."""
    shown = [
        f"{label} {show(fields[key])}".strip() for key, (label, show) in FIELDS.items() if fields.get(key) is not None
    ]
    return "  ".join(text for text in shown if text)


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


class Terminal(Reporter):
    """Tells on stderr: a progress bar only on a terminal, elsewhere one plain line a note or record."""

    bar: Progress | None = None  # of the class: one terminal has one bar, and whoever prints an error takes it away

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.task = TaskID(0)
        self.what = ""

    def note(self, text: str) -> None:
        self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}")

    def record(self, fields: dict[str, Any]) -> None:
        self._line(described(fields))

    def _line(self, text: str) -> None:
        text = escape_controls(text)
        if self.bar:
            self.bar.console.print(text, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def progress(self, what: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        if Terminal.bar is None or what != self.what:
            self.close()
            self.what = what
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Speed(),
                TimeRemainingColumn(),
            )
            Terminal.bar = Progress(*columns, console=self.console, transient=True)
            self.task = Terminal.bar.add_task(what, total=total)
            Terminal.bar.start()
        Terminal.bar.update(self.task, completed=done)
        if done == total:
            self.close()

    @classmethod
    def close(cls) -> None:
        """Takes the bar off the screen."""
        if cls.bar:
            cls.bar.stop()
        cls.bar = None


def say(text: str) -> None:
    """A result, on stdout."""
    typer.echo(escape_controls(text))


def print_json(document: Any) -> None:
    """The one JSON document of --json."""
    typer.echo(json.dumps(document, indent=1, ensure_ascii=True))


def print_outcome(outcome: Outcome, as_json: bool, text: str = "") -> None:
    """A stage's result: its file, and that it was made or was up to date."""
    if as_json:
        status = "made" if outcome.made else "up to date"
        print_json({"status": status, "output": str(outcome.output), **outcome.summary})
    else:
        said = f" ({text})" if text else ""
        say(f"wrote {outcome.output}{said}" if outcome.made else f"{outcome.output}: up to date{said}")
