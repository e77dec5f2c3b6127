"""One training loop for all cells and engines: mean squared error, Adam, a validation pass every `record_every` steps.

Letters: N sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.config import SeqTrainConfig
from dlcv_cli.errors import DivergedError
from dlcv_cli.sequences.cells import Parameters
from dlcv_cli.sequences.engines.base import Constant, Engine, Order
from dlcv_cli.sequences.tasks import Sequences


class DivergedAtError(DivergedError):
    """The loss stopped being a finite number at an iteration."""

    def __init__(self, iteration: int, lr: float) -> None:
        super().__init__(
            f"the loss is no longer a finite number at iteration {iteration:,}: try a lower --lr than {lr:g}"
        )
        self.iteration = iteration


@dataclass(frozen=True)
class Record:
    """One line of training progress. Losses are means of squared errors per sequence."""

    iteration: int  # steps so far
    train_loss: float | None  # mean since the last record, each error before its step; None for the baseline
    val_loss: float
    best: bool  # the lowest validation loss so far; of equal ones the earliest


def measure_loss(engine: Engine | Constant, data: Sequences) -> float:
    """Return the mean squared error over the sequences, computed in float64."""
    return float(np.mean((engine.predict(data).astype(np.float64) - data.targets) ** 2))


class Training:
    """The training of an engine on its `count` sequences, which runs when iterated over.

    `best` holds the weights with the lowest validation loss.
    Yields a record after each validation pass, and None wherever else training may be interrupted: another Training
    that restores the `state` of that moment ends with the same bits. The order of the sequences is a function of
    (seed, epoch); a batch may continue into the next epoch. The baseline has one validation pass, at iteration 0.

    Raises (when iterated over):
        DivergedAtError: the loss is no longer a finite number.
    """

    def __init__(
        self, engine: Engine | Constant, count: int, val: Sequences, config: SeqTrainConfig, seed: int
    ) -> None:
        self.engine, self.count, self.val, self.config, self.seed = engine, count, val, config, seed
        self.at = 0  # sequences trained on
        self.steps = 0
        self.loss = 0.0  # sum since the last record
        self.lowest: float | None = None
        self.best: Parameters = {}
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __iter__(self) -> Iterator[Record | None]:
        if isinstance(self.engine, Constant):
            self.best = self.engine.copy_parameters()
            yield Record(0, None, measure_loss(self.engine, self.val), True)
            return
        total = self.count * self.config.epochs
        between_records = self.config.record_every * self.config.batch_size
        chunk = self.engine.choose_pace() * self.config.batch_size
        while self.at < total:
            begin = self.at - self.at % between_records
            end = min(begin + between_records, total)
            while self.at < end:
                self._advance(self.engine, self._get_order(self.at, min(self.at + chunk, end)))
                if self.at < end:
                    yield None
            yield self._validate(end - begin)

    def _advance(self, engine: Engine, order: Order) -> None:
        loss, steps = engine.advance(order)
        self.steps += steps
        if steps < math.ceil(len(order) / self.config.batch_size):
            raise DivergedAtError(self.steps + 1, self.config.lr)
        self.loss += loss
        self.at += len(order)

    def _get_order(self, first: int, last: int) -> Order:
        """Return the sequences from place `first` to before `last` in the orders of all epochs, end to end."""
        pieces = []
        while first < last:
            epoch, begin = divmod(first, self.count)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.count)
            pieces.append(self._order[begin : begin + last - first])
            first += len(pieces[-1])
        return np.concatenate(pieces)

    def _validate(self, trained: int) -> Record:
        """Return the record of a validation pass, `trained` sequences after the last. Keep the weights if best."""
        val_loss = measure_loss(self.engine, self.val)
        if not math.isfinite(val_loss):
            raise DivergedAtError(self.steps, self.config.lr)
        best = self.lowest is None or val_loss < self.lowest
        if best:
            self.lowest, self.best = val_loss, self.engine.copy_parameters()
        train_loss, self.loss = self.loss / trained, 0.0
        return Record(self.steps, train_loss, val_loss, best)

    def _trainable(self) -> Engine:
        if isinstance(self.engine, Constant):
            raise ValueError("the baseline has nothing to train")
        return self.engine

    def state(self) -> tuple[Parameters, dict[str, Any]]:
        """Return (arrays, numbers): copies of all that training has changed."""
        means, squares = self._trainable().copy_moments()
        groups = {"now": self.engine.copy_parameters(), "mean": means, "square": squares, "best": self.best}
        arrays = {f"{group}.{name}": array for group, members in groups.items() for name, array in members.items()}
        return arrays, {"at": self.at, "steps": self.steps, "loss": self.loss, "lowest": self.lowest}

    def restore(self, arrays: Mapping[str, NDArray[Any]], numbers: Mapping[str, Any]) -> None:
        """Continue from a state that `state` returned.

        Raises:
            ValueError: it is not a state of this training.
        """
        engine = self._trainable()
        groups: dict[str, Parameters] = {"now": {}, "mean": {}, "square": {}, "best": {}}
        for key, array in arrays.items():
            group, _, name = key.partition(".")
            groups.get(group, {})[name] = array
        self._require_possible(groups, numbers)
        self.at, self.steps = numbers["at"], math.ceil(numbers["at"] / self.config.batch_size)
        self.loss, self.best = float(numbers["loss"]), groups["best"]
        self.lowest = None if numbers["lowest"] is None else float(numbers["lowest"])
        engine.restore(groups["now"], groups["mean"], groups["square"], self.steps)

    def _require_possible(self, groups: Mapping[str, Parameters], numbers: Mapping[str, Any]) -> None:
        """Raise ValueError unless tensors and numbers fit this network, its settings and each other."""
        own = {name: (array.shape, array.dtype) for name, array in self.engine.copy_parameters().items()}
        for group, members in groups.items():
            expected = own if group != "best" or numbers["lowest"] is not None else {}
            if {name: (array.shape, array.dtype) for name, array in members.items()} != expected:
                raise ValueError(f"its tensors {group} are not those of this network")
        at, steps, total = numbers["at"], numbers["steps"], self.count * self.config.epochs
        if type(at) is not int or not 0 <= at <= total or (at < total and at % self.config.batch_size):
            raise ValueError(f"{at} sequences trained on")
        if steps != math.ceil(at / self.config.batch_size):
            raise ValueError(f"{steps} steps")
        validated = at >= min(total, self.config.record_every * self.config.batch_size)
        if validated != (numbers["lowest"] is not None):
            raise ValueError(f"lowest loss {numbers['lowest']} after {steps} steps")
