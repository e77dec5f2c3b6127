"""The runs of a sequence training, one a seed, side by side on the processors; each depends on its own seed alone."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.config import SeqTrainConfig
from dlcv_cli.context import Reporter, count_processors
from dlcv_cli.errors import DivergedError, Interrupted
from dlcv_cli.files.disk import JSON
from dlcv_cli.files.tensors import Tensors
from dlcv_cli.sequences.cells import Cell, Parameters, check_parameters, draw_parameters
from dlcv_cli.sequences.engines import ENGINES, build_engine
from dlcv_cli.sequences.tasks import Sequences, Task
from dlcv_cli.sequences.training import DivergedAtError, Record, Training
from dlcv_cli.stages.snapshots import Caught, SnapshotFile, State

Jobs = Mapping[int, Future[None]]  # by seed
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
    """One seed's run, as far as it is."""

    best: Parameters = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    diverged: int | None = None  # the iteration at which the loss was not finite
    done: bool = False
    epochs: int = 0  # completed
    requested: threading.Event = field(default_factory=threading.Event)  # a snapshot, by the main thread
    snapshot: tuple[Parameters, JSON, int] | None = None  # arrays, numbers, and how many records come before


class SeedRuns:
    """The runs of all seeds of a training.

    Args:
        saved: the snapshot of a training that was stopped, from which they continue.
    """

    def __init__(self, setup: SeedSetup, snapshot: SnapshotFile, saved: Tensors | None) -> None:
        self.setup, self.snapshot, config = setup, snapshot, setup.config
        self.runs = {seed: SeedRun() for seed in range(config.seed, config.seed + config.seeds)}
        self.steps = math.ceil(config.epochs * len(setup.train.lengths) / config.batch_size)
        self.stop = threading.Event()
        self._logged = dict.fromkeys(self.runs, 0)  # how many records of each seed are in the log
        self._reported: dict[int, int] = {}  # how many records of each seed; -1: the best one of a seed that is done
        if saved:
            try:
                self._restore(saved)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise snapshot.damaged(error) from None

    def finish(self, caught: Caught, reporter: Reporter) -> dict[int, SeedRun]:
        """Train what is not done yet.

        Raises:
            DivergedError: a loss was no longer finite before there were weights to keep.
            Interrupted: a signal came; the snapshot is saved.
        """
        self._reported = {seed: -1 if run.done else len(run.records) for seed, run in self.runs.items()}
        with ThreadPoolExecutor(count_processors() if ENGINES[self.setup.config.engine].compiled else 1) as pool:
            jobs = {seed: pool.submit(self._train, seed) for seed, run in self.runs.items() if not run.done}
            try:
                self._watch(jobs, caught, reporter)
            except BaseException as error:
                self._stop(jobs)
                if isinstance(error, DivergedError):
                    self.snapshot.remove()  # it would only diverge again
                elif isinstance(error, Exception) and self._has_state():  # the other seeds need not start again
                    with contextlib.suppress(OSError, MemoryError):
                        self.snapshot.save(self._state, self._position())
                raise
        return self.runs

    def _watch(self, jobs: Jobs, caught: Caught, reporter: Reporter) -> None:
        """Report progress, save snapshots and mind signals until all jobs are done. Never waits longer than a tick."""
        epochs, requested = self._epochs(), list[int]()
        while True:
            active = [job for job in jobs.values() if not job.done()]
            wait(active, TICK / 10 if requested else TICK, FIRST_COMPLETED)
            _raise_errors(jobs)
            self._report(reporter)
            if (number := caught()) is not None:
                self._stop(jobs)
                if self._has_state():
                    self.snapshot.save_if_due(self._state, self._position(), number)
                raise Interrupted(number)
            if not active:
                return
            if requested:
                if all(jobs[seed].done() or not self.runs[seed].requested.is_set() for seed in requested):
                    self.snapshot.save_if_due(self._state, self._position(), None, epoch_ended=True)
                    epochs, requested = self._epochs(), []
            elif self.snapshot.is_due(self._epochs() > epochs):
                requested = [seed for seed, job in jobs.items() if job.running() and self.runs[seed].records]
                for seed in requested:
                    self.runs[seed].requested.set()

    def _stop(self, jobs: Jobs) -> None:
        """Let running jobs leave a snapshot and end, and cancel the others."""
        self.stop.set()
        for job in jobs.values():
            job.cancel()
        wait(jobs.values())

    def _train(self, seed: int) -> None:
        run, training = self.runs[seed], self.setup.training(seed)
        if run.snapshot:
            training.restore(*run.snapshot[:2])
        try:
            for record in training:
                if record:
                    run.records.append(record)
                run.epochs = training.at // len(self.setup.train.lengths)
                if run.requested.is_set() or self.stop.is_set():
                    run.snapshot = (*training.state(), len(run.records)) if training.at else None
                    run.requested.clear()
                if self.stop.is_set():
                    return
        except DivergedAtError as error:
            if not training.best:  # nothing to keep
                raise DivergedError(f"seed {seed}: {error}") from None
            run.diverged = error.iteration
        run.best, run.done = training.best, True

    def _report(self, reporter: Reporter) -> None:
        """Report a single run's records as they come; of several runs the best record of each, in seed order."""
        self._log(reporter)
        for done, (seed, run) in enumerate(self.runs.items(), 1):
            new = run.records[self._reported[seed] :]
            if len(self.runs) == 1:
                self._reported[seed] += len(new)
                for record in new:
                    reporter.record(asdict(record))
                if new:
                    reporter.progress("training", new[-1].iteration, self.steps)
            elif not run.done:
                break
            elif self._reported[seed] >= 0:
                self._reported[seed] = -1
                best = [record for record in run.records if record.best][-1]
                reporter.record({"seed": seed, **asdict(best), "best": False})
                reporter.progress("runs", done, len(self.runs))

    def _log(self, reporter: Reporter) -> None:
        """Log the records of all runs, also those from before the training was stopped."""
        for seed, run in self.runs.items():
            new = run.records[self._logged[seed] :]
            self._logged[seed] += len(new)
            for record in new:
                reporter.log({**({"seed": seed} if len(self.runs) > 1 else {}), **asdict(record)})

    def _epochs(self) -> int:
        return sum(run.epochs for run in self.runs.values())

    def _position(self) -> str:
        """Return in words how far the training is."""
        if len(self.runs) == 1:
            [run] = self.runs.values()
            steps = run.snapshot[1]["steps"] if run.snapshot else self.steps * run.done
            return f"iteration {steps:,} of {self.steps:,}"
        return f"{sum(run.done for run in self.runs.values())} of {len(self.runs)} runs done"

    def _has_state(self) -> bool:
        return any(run.done or run.snapshot for run in self.runs.values())

    def _state(self) -> State:
        """Return every begun run's records, and its best weights if it is done, else its snapshot."""
        arrays: dict[str, NDArray[Any]] = {}
        numbers: JSON = {}
        for seed, run in self.runs.items():
            if run.done:
                members, state, count = {f"best.{n}": a for n, a in run.best.items()}, {"done": True}, len(run.records)
            elif run.snapshot:
                members, state, count = run.snapshot
            else:
                continue
            records = [
                (r.iteration, -1 if r.train_loss is None else r.train_loss, r.val_loss, r.best)
                for r in run.records[:count]
            ]
            arrays |= {f"{seed}.{name}": array for name, array in members.items()}
            arrays[f"{seed}.records"] = np.array(records, np.float64).reshape(-1, 4)
            numbers[str(seed)] = {**state, "diverged": run.diverged}
        return arrays, {"runs": numbers}

    def _restore(self, saved: Tensors) -> None:
        for name, state in saved.metadata["state"]["runs"].items():
            run = self.runs[int(name)]
            arrays = {n.partition(".")[2]: a for n, a in saved.arrays.items() if n.partition(".")[0] == name}
            records = arrays.pop("records")
            if records.ndim != 2 or records.shape[1] != 4:
                raise ValueError("its records are not four numbers each")
            run.records = [
                Record(int(step), None if loss == -1 else float(loss), float(val), bool(best))
                for step, loss, val, best in records
            ]
            run.diverged, run.done = state["diverged"], bool(state.get("done"))
            if run.diverged is not None and type(run.diverged) is not int:
                raise ValueError("its divergence is not an iteration")
            if not any(record.best for record in run.records) and (run.done or state["lowest"] is not None):
                raise ValueError("its records have no best one")
            if run.done:
                run.best = {n.removeprefix("best."): a for n, a in arrays.items()}
                check_parameters(self.setup.cell, run.best, self.setup.train.inputs.shape[1])
            else:
                run.snapshot, run.epochs = (arrays, state, len(records)), state["at"] // len(self.setup.train.lengths)
                self.setup.training(int(name)).restore(arrays, state)  # raises if it does not fit


def _raise_errors(jobs: Jobs) -> None:
    """Raise the error of a job that failed: a divergence only when all lower seeds are done, any other at once."""
    earlier_done = True
    for job in jobs.values():
        if not job.done():
            earlier_done = False
        elif (error := job.exception()) and (earlier_done or not isinstance(error, DivergedError)):
            raise error
