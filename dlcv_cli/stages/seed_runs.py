"""The runs of a sequence training, one a seed, side by side on the cores; each depends on its own seed alone."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.config import SeqTrainConfig
from dlcv_cli.context import Reporter, count_processors
from dlcv_cli.errors import DivergedError, Interrupted
from dlcv_cli.files.disk import JSON
from dlcv_cli.files.tensors import Tensors
from dlcv_cli.sequences.cells import Cell, Parameters, checked, initial_parameters
from dlcv_cli.sequences.tasks import Sequences, Task
from dlcv_cli.sequences.training import DivergedAtError, Record, Training, begin
from dlcv_cli.stages.snapshots import SnapshotFile, State

TICK = 0.1  # seconds between two looks at signals and at the clock


@dataclass
class OneRun:
    """What became of one seed."""

    best: Parameters = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    diverged: int | None = None  # the iteration at which the loss was not finite
    done: bool = False
    epochs: int = 0  # that are over
    asked: threading.Event = field(default_factory=threading.Event)  # to leave a snapshot
    snapshot: tuple[Parameters, JSON, int] | None = None  # a state, and how many records it has behind it


class Runs:
    """All runs of a training.

    Args:
        train, val: the parts they see.
        left: the partial of a run that was stopped.
    """

    def __init__(
        self,
        cell: Cell,
        task: Task,
        train: Sequences,
        val: Sequences,
        config: SeqTrainConfig,
        partial: SnapshotFile,
        left: Tensors | None,
    ) -> None:
        self.cell, self.task, self.train, self.val, self.config, self.partial = cell, task, train, val, config, partial
        self.runs = {seed: OneRun() for seed in range(config.seed, config.seed + config.seeds)}
        self.steps = math.ceil(config.epochs * len(train.lengths) / config.batch_size)
        self.stop = threading.Event()
        if left:
            try:
                self._restore(left)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise partial.damaged(error) from None

    def finish(self, caught: Callable[[], int | None], report: Reporter) -> dict[int, OneRun]:
        """Trains what is not done yet.

        Raises:
            DivergedError: a loss stopped being finite before there were weights to keep.
            Interrupted: a signal was caught; the partial is written.
        """
        shown = {seed: -1 if run.done else len(run.records) for seed, run in self.runs.items()}
        with ThreadPoolExecutor(count_processors() if self.config.engine == "compiled" else 1) as pool:
            pending = deque(pool.submit(self._one, seed) for seed, run in self.runs.items() if not run.done)
            epochs = self._epochs()
            try:
                while pending:
                    wait([job for job in pending if not job.done()], TICK, FIRST_COMPLETED)
                    while (
                        pending and pending[0].done()
                    ):  # in their order, so that it is the first one's error that is told
                        pending.popleft().result()
                    self._tell(shown, report)
                    if caught() is not None:
                        self.stop.set()
                        wait(pending)
                        if any(run.done or run.snapshot for run in self.runs.values()):
                            self.partial.save_if_due(self._state, self._at(), caught())
                        raise Interrupted(caught() or 0)
                    if pending and self.partial.due(self._epochs() > epochs) and self._snapshots():
                        self.partial.save_if_due(self._state, self._at(), None, epoch_ended=True)
                        epochs = self._epochs()
            except BaseException as error:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                if isinstance(error, DivergedError):
                    self.partial.remove()  # there is nothing to go on to
                raise
        return self.runs

    def _one(self, seed: int) -> None:
        run = self.runs[seed]
        training = self._training(seed)
        if run.snapshot:
            training.restore(*run.snapshot[:2])
        try:
            for record in training:
                if record:
                    run.records.append(record)
                run.epochs = training.at // len(self.train.lengths)
                if run.asked.is_set() or self.stop.is_set():
                    run.snapshot = (*training.state(), len(run.records)) if training.at else None
                    run.asked.clear()
                if self.stop.is_set():
                    return
        except DivergedAtError as error:
            if not training.best:  # nothing to keep
                raise DivergedError(f"seed {seed}: {error}") from None
            run.diverged = error.iteration
        run.best, run.done = training.best, True
        run.asked.clear()

    def _training(self, seed: int) -> Training:
        width = self.train.inputs.shape[1]
        weights = initial_parameters(
            self.cell, width, self.config.hidden_size, self.task.constant, seed, self.config.chrono
        )
        engine = begin(self.cell, weights, self.config, self.train)
        return Training(engine, len(self.train.lengths), self.val, self.config, seed)

    def _tell(self, shown: dict[int, int], report: Reporter) -> None:
        """Records as they come of a single run, else the best one of each that is done, in the order of the seeds."""
        for done, (seed, run) in enumerate(self.runs.items(), 1):
            new = run.records[shown[seed] :]
            if len(self.runs) == 1:
                shown[seed] += len(new)
                for record in new:
                    report.record(asdict(record))
                if new:
                    report.progress("training", new[-1].iteration, self.steps)
            elif not run.done:
                break
            elif shown[seed] >= 0:
                shown[seed] = -1
                last = [record for record in run.records if record.best][-1]
                report.record({"seed": seed, **asdict(last), "best": False})
                report.progress("runs", done, len(self.runs))

    def _epochs(self) -> int:
        return sum(run.epochs for run in self.runs.values())

    def _at(self) -> str:
        if len(self.runs) == 1:
            [run] = self.runs.values()
            steps = run.snapshot[1]["steps"] if run.snapshot else self.steps * run.done
            return f"iteration {steps:,} of {self.steps:,}"
        return f"{sum(run.done for run in self.runs.values())} of {len(self.runs)} runs done"

    def _snapshots(self) -> bool:
        """Asks those that train for a snapshot each, and waits for them."""
        training = [run for run in self.runs.values() if run.records and not run.done]
        for run in training:
            run.asked.set()
        while any(run.asked.is_set() and not run.done for run in training) and not self.stop.is_set():
            self.stop.wait(TICK / 10)
        return bool(training)

    def _state(self) -> State:
        """Of every run that has begun: its best weights and records when it is done, else its snapshot."""
        arrays: dict[str, NDArray[Any]] = {}
        numbers: JSON = {}
        for seed, run in self.runs.items():
            if run.done:
                found, told, count = {f"best.{n}": a for n, a in run.best.items()}, {"done": True}, len(run.records)
            elif run.snapshot:
                found, told, count = run.snapshot
            else:
                continue
            records = [
                (r.iteration, -1 if r.train_loss is None else r.train_loss, r.val_loss, r.best)
                for r in run.records[:count]
            ]
            arrays |= {f"{seed}.{name}": array for name, array in found.items()}
            arrays[f"{seed}.records"] = np.array(records, np.float64).reshape(-1, 4)
            numbers[str(seed)] = {**told, "diverged": run.diverged}
        return arrays, {"runs": numbers}

    def _restore(self, left: Tensors) -> None:
        for name, told in left.metadata["state"]["runs"].items():
            run = self.runs[int(name)]
            arrays = {n.partition(".")[2]: a for n, a in left.arrays.items() if n.partition(".")[0] == name}
            records = arrays.pop("records")
            if records.ndim != 2 or records.shape[1] != 4:
                raise ValueError("its records are not four numbers each")
            run.records = [
                Record(int(step), None if loss == -1 else float(loss), float(val), bool(best))
                for step, loss, val, best in records
            ]
            run.diverged, run.done = told["diverged"], bool(told.get("done"))
            if run.diverged is not None and type(run.diverged) is not int:
                raise ValueError("its divergence is no iteration")
            if not any(record.best for record in run.records) and (run.done or told["lowest"] is not None):
                raise ValueError("its records have no best")
            if run.done:
                run.best = {n.removeprefix("best."): a for n, a in arrays.items()}
                checked(self.cell, run.best, self.train.inputs.shape[1])
            else:
                run.snapshot = (arrays, told, len(records))
                self._training(int(name)).restore(arrays, told)  # raises when it does not fit
