"""The runs of a sequence training, one a seed, side by side on the processors: each with its own files."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.config import SeqTrainConfig
from dlcv_cli.context import Reporter, count_processors
from dlcv_cli.errors import DivergedError, Interrupted, list_names
from dlcv_cli.files.disk import JSON
from dlcv_cli.files.tensors import Tensors
from dlcv_cli.sequences.cells import Cell, Parameters, draw_parameters
from dlcv_cli.sequences.engines import ENGINES, build_engine
from dlcv_cli.sequences.tasks import Sequences, Task
from dlcv_cli.sequences.training import DivergedAtError, Record, Training
from dlcv_cli.stages.snapshots import Caught, SnapshotFile, State

TICK = 0.1  # seconds between two checks of signals and of the clock


@dataclass(frozen=True)
class SeedSetup:
    """What the runs of all seeds share."""

    cell: Cell
    task: Task
    train: Sequences
    val: Sequences
    config: SeqTrainConfig

    def training(self, seed: int) -> Training:
        """Return the training of a seed from its initial weights."""
        width, config = self.train.inputs.shape[1], self.config
        weights = draw_parameters(self.cell, width, config.hidden_size, self.task.constant, seed, config.chrono)
        engine = build_engine(self.cell, weights, config, self.train)
        return Training(engine, len(self.train.lengths), self.val, config, seed)


@dataclass
class SeedRun:
    """One seed's run, as far as it is.

    Args:
        file: its own snapshot, from which it continues.
    """

    setup: SeedSetup
    seed: int
    file: SnapshotFile
    best: Parameters = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    diverged: int | None = None  # the iteration at which the loss was not finite
    error: DivergedError | None = None  # it diverged before there were weights to keep
    done: bool = False
    epochs: int = 0  # completed
    requested: threading.Event = field(default_factory=threading.Event)  # a snapshot, by the main thread
    snapshot: tuple[Parameters, JSON, int] | None = None  # arrays, numbers, and how many records come before
    logged: int = 0  # how many records are in the log
    reported: int = 0  # how many are on the screen
    waited_for: bool = False  # a snapshot that was requested, and is not saved yet
    epochs_saved: int = 0

    @property
    def steps(self) -> int:
        """The number of iterations of the whole run."""
        return math.ceil(self.setup.config.epochs * len(self.setup.train.lengths) / self.setup.config.batch_size)

    def train(self, stop: threading.Event) -> None:
        """Train to the end, or leave a snapshot and return when `stop` is set."""
        training = self.setup.training(self.seed)
        if self.snapshot:
            training.restore(*self.snapshot[:2])
        try:
            for record in training:
                if record:
                    self.records.append(record)
                self.epochs = training.at // len(self.setup.train.lengths)
                if self.requested.is_set() or stop.is_set():
                    self.snapshot = (*training.state(), len(self.records)) if training.at else None
                    self.requested.clear()
                if stop.is_set():
                    return
        except DivergedAtError as error:
            self.diverged = error.iteration
            if not training.best:  # nothing to keep
                self.error = DivergedError(f"seed {self.seed}: {error}")
        self.best, self.done = training.best, True

    @property
    def position(self) -> str:
        """How far the snapshot is, in words."""
        return f"iteration {self.snapshot[1]['steps'] if self.snapshot else 0:,} of {self.steps:,}"

    def state(self) -> State:
        """Return the snapshot and the records before it, in the form of files."""
        assert self.snapshot  # only then it is saved
        members, state, count = self.snapshot
        records = [
            (r.iteration, -1 if r.train_loss is None else r.train_loss, r.val_loss, r.best)
            for r in self.records[:count]
        ]
        arrays: dict[str, NDArray[Any]] = {f"{self.seed}.{name}": array for name, array in members.items()}
        arrays[f"{self.seed}.records"] = np.array(records, np.float64).reshape(-1, 4)
        return arrays, {"runs": {str(self.seed): {**state, "diverged": None}}}

    def restore(self, saved: Tensors) -> None:
        """Continue from a snapshot. FileError: it does not fit."""
        try:
            self._restore(saved)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.file.damaged(error) from None

    def _restore(self, saved: Tensors) -> None:
        state = saved.metadata["state"]["runs"][str(self.seed)]
        arrays = {name.removeprefix(f"{self.seed}."): array for name, array in saved.arrays.items()}
        records = arrays.pop("records")
        if records.ndim != 2 or records.shape[1] != 4:
            raise ValueError("its records are not four numbers each")
        self.records = [
            Record(int(step), None if loss == -1 else float(loss), float(val), bool(best))
            for step, loss, val, best in records
        ]
        if not any(record.best for record in self.records) and state["lowest"] is not None:
            raise ValueError("its records have no best one")
        self.reported = len(self.records)
        self.snapshot = (arrays, state, len(records))
        self.epochs = self.epochs_saved = state["at"] // len(self.setup.train.lengths)
        self.setup.training(self.seed).restore(arrays, state)  # raises if it does not fit


class SeedRuns:
    """The runs of several seeds, as many at a time as there are processors.

    Args:
        seeds: of the runs that are to train.
        begin: returns the run of a seed; called in the main thread, as `end` is.
        end: takes a run that is done.
    """

    def __init__(
        self, setup: SeedSetup, seeds: Sequence[int], begin: Callable[[int], SeedRun], end: Callable[[SeedRun], None]
    ) -> None:
        self.setup, self.seeds, self.begin, self.end = setup, seeds, begin, end
        self.stop = threading.Event()
        self.jobs: dict[int, tuple[SeedRun, Future[None]]] = {}  # of the runs that have begun and are not written
        self.workers = count_processors() if ENGINES[setup.config.engine].compiled else 1

    def finish(self, caught: Caught, reporter: Reporter) -> None:
        """Train all runs to their ends.

        Raises:
            Interrupted: a signal came; the snapshots of the runs in progress are saved.
        """
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                number = self._watch(pool, caught, reporter)
            except BaseException as error:
                self._stop()
                if isinstance(error, Exception):  # the other seeds need not start again
                    with contextlib.suppress(OSError, MemoryError):
                        self._save_all()
                raise
            if number is not None:
                self._stop()
                saved = self._save_all()
                raise Interrupted(number, _describe_saved(saved)) if saved else Interrupted(number)

    def _watch(self, pool: ThreadPoolExecutor, caught: Caught, reporter: Reporter) -> int | None:
        """Begin runs, report, save snapshots and end runs until all are done, or return the number of a signal.

        Never waits longer than a tick.
        """
        waiting, ended = deque(self.seeds), 0
        while waiting or self.jobs:
            while waiting and len(self.jobs) < self.workers:
                run = self.begin(waiting.popleft())
                self.jobs[run.seed] = run, pool.submit(run.train, self.stop)
            tick = TICK / 10 if any(run.waited_for for run, _ in self.jobs.values()) else TICK
            wait([job for _, job in self.jobs.values()], tick, FIRST_COMPLETED)
            for seed, (run, job) in [*self.jobs.items()]:
                done = job.done()
                if done:
                    job.result()  # raises its error
                self._report(run, reporter)
                if not done:
                    self._save_if_due(run)
                    continue
                self.end(run)
                del self.jobs[seed]
                ended += 1
                if len(self.seeds) > 1:
                    reporter.progress("runs", ended, len(self.seeds))
            if (waiting or self.jobs) and (number := caught()) is not None:
                return number
        return None

    def _stop(self) -> None:
        """Let running jobs leave a snapshot and end."""
        self.stop.set()
        wait([job for _, job in self.jobs.values()])

    def _save_if_due(self, run: SeedRun) -> None:
        """Request a snapshot of a run when it is time to, and save it when it is there."""
        if run.waited_for:
            if not run.requested.is_set():
                if run.snapshot:
                    run.file.save_if_due(run.state, run.position, None, epoch_ended=True)
                run.epochs_saved, run.waited_for = run.epochs, False
        elif run.records and run.file.is_due(run.epochs > run.epochs_saved):
            run.waited_for = True
            run.requested.set()

    def _save_all(self) -> list[SeedRun]:
        """Save the snapshots of the runs that have stopped, and write those that were done just then."""
        for run, job in self.jobs.values():
            if run.done and not job.exception():
                self.end(run)
        stopped = [run for run, _ in self.jobs.values() if run.snapshot and not run.done]
        errors = []
        for run in stopped:
            try:
                run.file.save(run.state, run.position)
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return stopped

    def _report(self, run: SeedRun, reporter: Reporter) -> None:
        """Log new records; show a single run's as they come, and of several runs the best one of each that is done."""
        several = self.setup.config.seeds > 1
        new, run.logged = run.records[run.logged :], len(run.records)
        for record in new:
            reporter.log({**({"seed": run.seed} if several else {}), **asdict(record)})
        if several:
            if run.done and not run.error:
                best = [record for record in run.records if record.best][-1]
                reporter.record({"seed": run.seed, **asdict(best), "best": False})
            return
        new, run.reported = run.records[run.reported :], len(run.records)
        for record in new:
            reporter.record(asdict(record))
        if new:
            reporter.progress("training", new[-1].iteration, run.steps)


def _describe_saved(runs: Sequence[SeedRun]) -> str:
    if len(runs) == 1:
        return f"interrupted: {runs[0].file.path} is saved ({runs[0].position}); the same command continues from it"
    return f"interrupted: {list_names(run.file.path for run in runs)} are saved; the same command continues from them"
