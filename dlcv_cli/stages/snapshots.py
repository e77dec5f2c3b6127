"""What lets a training go on where it was stopped: the `*.snapshot` beside its output, and signals that wait for it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dlcv_cli.context import Reporter
from dlcv_cli.errors import DlcvError, FileError, Interrupted, format_bytes
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import JSON, as_object, free_space, mount_point, path_beside
from dlcv_cli.files.recipes import Recipe

SHARE = 0.02  # of a training's time that saving may take, but for the saves that a signal asks for
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

State = tuple[Mapping[str, NDArray[Any]], JSON]


def snapshot_path(output: Path) -> Path:
    """`runs/head.safetensors` -> `runs/head.snapshot`."""
    return path_beside(output, ".snapshot")


@contextlib.contextmanager
def hold_signals() -> Iterator[Callable[[], int | None]]:
    """Holds SIGINT, SIGTERM and SIGHUP back; gives a function that tells which one has come.

    The second of a kind ends the process at once. Signals that the caller has set to be ignored (nohup, background jobs
    of a shell) stay ignored.
    """
    caught: list[int] = []

    def note(number: int, _: Any) -> None:
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)  # at once, even in the midst of a long step

    former = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                former[number] = signal.signal(number, note)
    try:
        yield lambda: caught[0] if caught else None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class SnapshotFile:
    """The file from which the same command goes on: written now and then, whole, and gone when the output is there.

    Args:
        machine: on what else the last bits depend; a difference when going on is told.
        every: seconds between two saves, within epochs.
    """

    def __init__(self, output: Path, recipe: Recipe, machine: JSON, every: float, report: Reporter) -> None:
        self.path, self.recipe, self.machine, self.every, self.report = (
            snapshot_path(output), recipe, machine, every, report,
        )  # fmt: skip
        self.output, self.cost, self.spent, self.before, self.resumed = output, 0.0, 0.0, 0.0, 0
        self.begun = self.saved = time.monotonic()

    def load(self, force: bool) -> tensors.Tensors | None:
        """What a stopped run of the same command has left; None when nothing, or when all is to begin anew.

        Raises:
            DlcvError: it is another command's, or damaged.
        """
        if force:
            self.remove()
        if not self.path.exists():
            return None
        remedy = "finish that one, or use --force to start again"
        recorded = tensors.read_metadata(self.path, tensors.SNAPSHOT)
        if differences := self.recipe.differences(recorded):
            raise DlcvError(f"{self.path} belongs to a different training: {'; '.join(differences)}; {remedy}")
        try:
            found = tensors.read(self.path, tensors.SNAPSHOT)
            self.before, self.resumed = float(found.metadata["seconds"]), int(found.metadata["resumed"]) + 1
            where = str(found.metadata["at"])
        except FileError as error:
            raise DlcvError(f"{error}, or --force to start anew") from None
        except (KeyError, TypeError, ValueError):
            raise self.damaged("its record lacks what a snapshot holds") from None
        for key, was in as_object(found.metadata.get("machine")).items():
            if was != self.machine.get(key):
                self.report.warn(
                    f"{self.path} was begun with {key} {was}, now {self.machine.get(key)}: the result will differ in "
                    "its last bits from that of an undisturbed run"
                )
        self.report.note(f"going on from {self.path}: {where}")
        return found

    def damaged(self, problem: object) -> FileError:
        """That the file is not what this version of dlcv writes."""
        return FileError(self.path, f"damaged: {problem}; remove it, or --force to start anew")

    def require_space(self, state: int, final: int) -> None:
        """Before hours of work: DlcvError when the disk has no room for what will be saved.

        Args:
            state, final: bytes of the partial, which is there twice while it is replaced, and of the output.
        """
        there = self.path.stat().st_size if self.path.exists() else 0
        need, free = 2 * state + final - there, free_space(self.output)
        if need > free:
            raise DlcvError(
                f"{self.output}: needs {format_bytes(need)} on its way, and the disk at {mount_point(self.output)} has "
                f"{format_bytes(free)} free: free some, or give another -o"
            )

    def due(self, epoch_ended: bool) -> bool:
        """Whether to save now: at the end of an epoch or when `every` is over, unless that took too large a share."""
        since = time.monotonic() - self.saved
        return since * SHARE >= self.cost and (epoch_ended or since >= self.every)

    def save(self, state: Callable[[], State], at: str) -> None:
        """Writes the state whole, over the one before; `at` says in words where it is."""
        begun = time.monotonic()
        arrays, numbers = state()
        record = {
            **self.recipe.to_json(self.path.parent),
            "at": at,
            "machine": self.machine,
            "resumed": self.resumed,
            "seconds": self.before + begun - self.begun,
            "state": numbers,
        }
        try:
            tensors.write(self.path, tensors.SNAPSHOT, arrays, record)
        finally:
            self.saved = time.monotonic()
            self.cost = self.saved - begun
            self.spent += self.cost

    def save_if_due(self, state: Callable[[], State], at: str, caught: int | None, epoch_ended: bool = False) -> None:
        """Saves when it is due, and at a signal, which then ends the stage.

        Raises:
            Interrupted: a signal was caught.
            OSError: it was, and nothing could be saved; at other times that is warned of.
        """
        if caught is None and not self.due(epoch_ended):
            return
        try:
            self.save(state, at)
        except OSError as error:
            if caught is not None:
                raise
            there = "the one before stays" if self.path.exists() else "nothing is saved so far"
            self.report.warn(f"{self.path}: {error.strerror}; going on, {there}")
        if caught is not None:
            raise Interrupted(caught, f"interrupted: {self.path} is saved ({at}); the same command goes on from there")

    def remove(self) -> None:
        """When there is nothing left to go on from."""
        self.path.unlink(missing_ok=True)

    def run(self) -> JSON:
        """What the metrics say of it under `run`."""
        times = {"seconds_before": round(self.before, 3), "seconds_saving": round(self.spent, 3)}
        return {"resumed": self.resumed, **times}


def raise_if_signalled(caught: Callable[[], int | None], output: Path) -> None:
    """Interrupted, if a signal came while the output was being written, which was finished first."""
    if number := caught():
        raise Interrupted(number, f"interrupted, when {output} was done")
