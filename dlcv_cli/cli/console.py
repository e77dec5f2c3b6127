"""Output for a person: results on stdout, everything else on stderr. Files hold fractions; percent is for screens."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from dlcv_cli.context import Outcome, Reporter
from dlcv_cli.errors import escape_controls

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def _format_percent(value: float) -> str:
    return f"{100 * value:.2f} %"


# How each field of a record is shown, in this order; other fields are not shown.
FIELDS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "seed": ("seed", str),
    "epoch": ("epoch", str),
    "iteration": ("iteration", "{:,}".format),
    "lr": ("lr", "{:.3g}".format),
    "train_loss": ("train loss", "{:.4g}".format),
    "train_accuracy": ("accuracy", _format_percent),
    "val_loss": ("val loss", "{:.4g}".format),
    "val_accuracy": ("accuracy", _format_percent),
    "images_per_second": ("", "{:.0f} images/s".format),
    "best": ("", lambda best: "best" if best else ""),
}


def describe_record(fields: dict[str, Any]) -> str:
    """Return a training record in one line."""
    shown = [
        f"{label} {show(fields[key])}".strip() for key, (label, show) in FIELDS.items() if fields.get(key) is not None
    ]
    return "  ".join(text for text in shown if text)


class Terminal(Reporter):
    """Reports on stderr: with a progress bar on a terminal, elsewhere in plain lines only."""

    bar: Progress | None = None  # of the class, since a terminal has one bar, which an error anywhere has to remove
    task: TaskID
    title = ""

    def note(self, text: str) -> None:
        self._print(text)

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}")

    def record(self, fields: dict[str, Any]) -> None:
        self._print(describe_record(fields))

    def _print(self, text: str) -> None:
        text = escape_controls(text)
        if self.bar:
            self.bar.console.print(text, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def progress(self, what: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
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


def print_outcome(outcome: Outcome, as_json: bool, text: str = "") -> None:
    """Print a stage's result: its file, and whether it was written or up to date."""
    if as_json:
        status = "made" if outcome.made else "up to date"
        print_json({"status": status, "output": str(outcome.output), **outcome.summary})
    else:
        details = f" ({text})" if text else ""
        say(f"wrote {outcome.output}{details}" if outcome.made else f"{outcome.output}: up to date{details}")


def print_training(outcome: Outcome, as_json: bool) -> None:
    """Print a training's result, with its best record."""
    print_outcome(outcome, as_json, f"best {describe_record(outcome.summary)}")
