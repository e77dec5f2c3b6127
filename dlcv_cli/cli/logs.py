"""`--log-dir`: the records of a training as a CSV file and for TensorBoard. No result depends on it."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

from dlcv_cli.context import Relay, Reporter

STEPS = ("epoch", "iteration")  # what a record is at
RUNS = ("fold", "seed", "try")  # what tells the records of several trainings apart
BOARD = "tensorboard"  # the folder below of TensorBoard's files, which the next training replaces


class Log(Relay):
    """Also writes every record to a folder, anew for each training: records.csv and TensorBoard's scalars.

    An error while it is written ends the log, not the training.

    Args:
        folder: is created; OSError if it cannot be.
    """

    def __init__(self, folder: Path, to: Reporter) -> None:
        super().__init__(to)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.is_new, self.has_ended = folder, True, False
        self.boards: dict[Path, Any] = {}
        self.has_board = importlib.util.find_spec("tensorboard") is not None
        if not self.has_board:
            self.note(f"{folder}: only records.csv; for TensorBoard's files, pip install tensorboard")

    def log(self, fields: dict[str, Any]) -> None:
        if self.has_ended:
            return
        try:
            self._write_row(fields)
            self._write_scalars(fields)
        except OSError as error:
            self.has_ended = True
            self.warn(f"{self.folder}: {error.strerror or error}; the training goes on without its log")
        self.is_new = False

    def _write_row(self, fields: dict[str, Any]) -> None:
        with (self.folder / "records.csv").open("w" if self.is_new else "a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([fields] if self.is_new else [])
            writer.writerow(fields.values())

    def _write_scalars(self, fields: dict[str, Any]) -> None:
        """Write a record's numbers for TensorBoard, in a folder of its own for each seed and try."""
        if self.is_new:
            for former in (self.folder / BOARD).rglob("events.out.tfevents.*"):
                former.unlink()
        if not self.has_board:
            return
        from tensorboard.summary import Writer

        folder = self.folder.joinpath(BOARD, *(f"{key}-{fields[key]}" for key in RUNS if key in fields))
        if folder not in self.boards:
            self.boards[folder] = Writer(str(folder))
        step = next(fields[key] for key in STEPS if key in fields)
        for key, value in fields.items():
            if key not in (*STEPS, *RUNS, "best") and value is not None:
                self.boards[folder].add_scalar(key, value, step)
        self.boards[folder].flush()
