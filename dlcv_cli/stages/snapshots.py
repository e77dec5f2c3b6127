"""Snapshots, from which a training that was stopped continues, and signals that are held back until one is saved."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dlcv_cli.context import Context
from dlcv_cli.errors import DlcvError, FileError, Interrupted, format_bytes
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import JSON, as_object, find_mount_point, measure_free_space, replace_ending
from dlcv_cli.files.recipes import Recipe

SHARE = 0.02  # of a training's time that saving may take, except for snapshots at a signal
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

State = tuple[Mapping[str, NDArray[Any]], JSON]
Caught = Callable[[], int | None]  # the number of the signal that came, if one did


def snapshot_path(output: Path) -> Path:
    """`runs/head.safetensors` -> `runs/head.snapshot`."""
    return replace_ending(output, ".snapshot")


@contextlib.contextmanager
def hold_signals() -> Iterator[Caught]:
    """Hold back SIGINT, SIGTERM and SIGHUP; yield a function that returns which one came.

    A second one of a kind ends the process at once. Signals that the caller ignores (nohup, background jobs of a shell)
    stay ignored.
    """
    caught: list[int] = []

    def note(number: int, _: Any) -> None:
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)  # at once, even in the middle of a long step

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


def refuse_other_training(snapshot: Path, recipe: Recipe) -> None:
    """Raise DlcvError, with what differs, unless the snapshot belongs to a training by this recipe."""
    if differences := recipe.differences(tensors.read_metadata(snapshot, tensors.SNAPSHOT)):
        raise DlcvError(
            f"{snapshot} belongs to a different training: {', '.join(differences)}; finish that one, or use "
            "--force to start again"
        )


class SnapshotFile:
    """The snapshot beside a training's output: saved whole now and then, removed when the output is complete.

    Args:
        machine: what else the last bits depend on; a snapshot from another machine is continued with a warning.
    """

    def __init__(self, output: Path, recipe: Recipe, machine: JSON, context: Context) -> None:
        self.output, self.recipe, self.machine, self.context = output, recipe, machine, context
        self.path = snapshot_path(output)
        self.last_cost = self.seconds_saving = self.seconds_before = 0.0
        self.resumed = 0
        self.begun = self.saved = time.monotonic()

    def load(self) -> tensors.Tensors | None:
        """Return the snapshot of the same training; None if there is none, or --force starts again.

        Raises:
            DlcvError: the snapshot is another training's, or damaged.
        """
        if self.context.force:
            self.remove()
        if not self.path.exists():
            return None
        refuse_other_training(self.path, self.recipe)
        try:
            snapshot = tensors.read(self.path, tensors.SNAPSHOT)
            metadata = snapshot.metadata
            self.seconds_before, self.resumed = float(metadata["seconds"]), int(metadata["resumed"]) + 1
            position = str(metadata["at"])
        except FileError as error:
            raise DlcvError(f"{error}, or use --force to start again") from None
        except (KeyError, TypeError, ValueError):
            raise self.damaged("its metadata is incomplete") from None
        for key, before in as_object(metadata.get("machine")).items():
            if before != self.machine.get(key):
                self.context.reporter.warn(
                    f"{self.path} was saved with {key} {before}, now {self.machine.get(key)}: the last bits of the "
                    "result will differ from that of an uninterrupted run"
                )
        self.context.reporter.note(f"continuing from {self.path}: {position}")
        return snapshot

    def damaged(self, problem: object) -> FileError:
        """Return the error of a snapshot that this version of dlcv did not write."""
        return FileError(self.path, f"damaged: {problem}; remove it, or use --force to start again")

    def require_space(self, state: int, final: int) -> None:
        """Raise DlcvError, before hours of work, if the disk has no room for what will be saved.

        Args:
            state, final: bytes of the snapshot, which exists twice while it is replaced, and of the output.
        """
        existing = self.path.stat().st_size if self.path.exists() else 0
        need, free = 2 * state + final - existing, measure_free_space(self.output)
        if need > free:
            raise DlcvError(
                f"{self.output}: needs {format_bytes(need)} of temporary space, and the disk at "
                f"{find_mount_point(self.output)} has {format_bytes(free)} free; free some space, or choose another -o"
            )

    def is_due(self, epoch_ended: bool) -> bool:
        """Return whether to save now: after an epoch or `save_every` seconds, unless that takes too large a share."""
        since = time.monotonic() - self.saved
        return since * SHARE >= self.last_cost and (epoch_ended or since >= self.context.save_every)

    def save(self, state: Callable[[], State], position: str) -> None:
        """Write the state whole over the one before; `position` says in words how far the training is."""
        begun = time.monotonic()
        arrays, numbers = state()
        metadata = {
            **self.recipe.to_json(self.path.parent),
            "at": position,
            "machine": self.machine,
            "resumed": self.resumed,
            "seconds": self.seconds_before + begun - self.begun,
            "state": numbers,
        }
        try:
            tensors.write(self.path, tensors.SNAPSHOT, arrays, metadata)
        finally:
            self.saved = time.monotonic()
            self.last_cost = self.saved - begun
            self.seconds_saving += self.last_cost
        self.context.reporter.detail(f"{self.path}: saved in {self.last_cost:.2g} s ({position})")

    def save_if_due(
        self, state: Callable[[], State], position: str, signal: int | None, epoch_ended: bool = False
    ) -> None:
        """Save if it is time to, and at a signal, which then ends the stage.

        Raises:
            Interrupted: a signal came.
            OSError: a signal came and nothing could be saved; at other times that is only a warning.
        """
        if signal is None and not self.is_due(epoch_ended):
            return
        try:
            self.save(state, position)
        except OSError as error:
            if signal is not None:
                raise
            kept = "the previous snapshot stays" if self.path.exists() else "there is no snapshot yet"
            self.context.reporter.warn(f"{self.path}: {error.strerror}; the training continues, {kept}")
        if signal is not None:
            raise Interrupted(
                signal, f"interrupted: {self.path} is saved ({position}); the same command continues from it"
            )

    def remove(self) -> None:
        """Delete the snapshot: there is nothing to continue."""
        self.path.unlink(missing_ok=True)

    def describe(self) -> JSON:
        """Return what the metrics say of the snapshot under `run`."""
        times = {"seconds_before": round(self.seconds_before, 3), "seconds_saving": round(self.seconds_saving, 3)}
        return {"resumed": self.resumed, **times}


def raise_if_signalled(caught: Caught, output: Path) -> None:
    """Raise Interrupted if a signal came while the output was written; the output is complete."""
    if number := caught():
        raise Interrupted(number, f"interrupted, after {output} was complete")
