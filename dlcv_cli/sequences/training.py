"""One training loop for all cells and both engines: mean squared error, Adam, a look at the losses now and then.

Letters: N sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.config import SeqTrainConfig
from dlcv_cli.errors import DivergedError
from dlcv_cli.sequences.cells import Cell, Parameters
from dlcv_cli.sequences.tasks import Floats, Sequences

Order = NDArray[np.int64]


class Engine(Protocol):
    """One network while it trains."""

    def advance(self, order: Order) -> tuple[float, int]:
        """Trains on the sequences of these numbers, one batch a step.

        Returns:
            The sum of their squared errors, each before its step; and how many steps were taken, fewer than asked for
            when an error was not finite.
        """

    def answers(self, data: Sequences) -> Floats:
        """(N,), in the order of the data; nothing is padded."""

    def parameters(self) -> Parameters:
        """A copy of the weights, by name."""

    def moments(self) -> tuple[Parameters, Parameters]:
        """Copies of Adam's running means of gradients and of their squares, as `parameters` has the weights."""

    def restore(self, parameters: Parameters, means: Parameters, squares: Parameters, steps: int) -> None:
        """Goes on from these, after so many steps."""

    def pace(self) -> int:
        """Batches that take some tenths of a second at most: so long `advance` cannot be interrupted."""


class Constant:
    """The baseline: one number, whatever it sees."""

    def __init__(self, parameters: Parameters) -> None:
        self.stored = parameters

    def advance(self, order: Order) -> tuple[float, int]:
        raise NotImplementedError("nothing to train")

    def answers(self, data: Sequences) -> Floats:
        return np.full(len(data.lengths), self.stored["constant"][0])

    def parameters(self) -> Parameters:
        return dict(self.stored)

    def moments(self) -> tuple[Parameters, Parameters]:
        raise NotImplementedError("nothing to train")

    def restore(self, parameters: Parameters, means: Parameters, squares: Parameters, steps: int) -> None:
        raise NotImplementedError("nothing to train")

    def pace(self) -> int:
        raise NotImplementedError("nothing to train")


class DivergedAtError(DivergedError):
    """The loss stopped being a finite number at an iteration."""

    def __init__(self, iteration: int, lr: float) -> None:
        super().__init__(
            f"the loss is no longer a finite number at iteration {iteration:,}: try a lower --lr than {lr:g}"
        )
        self.iteration = iteration


@dataclass(frozen=True)
class Record:
    """A look at the losses: means of squared errors per sequence."""

    iteration: int  # steps so far
    train_loss: float | None  # mean since the last record, before each step; None when nothing was trained
    val_loss: float
    best: bool  # the lowest validation loss so far, the earliest where several are equal


def begin(cell: Cell, parameters: Parameters, config: SeqTrainConfig, train: Sequences | None = None) -> Engine:
    """The cell with these weights, by the engine of the settings; with `train`, ready to train on it."""
    if cell.module is None:
        return Constant(parameters)
    if config.engine == "torch":
        from dlcv_cli.sequences.engines.reference import Reference

        return Reference(cell, parameters, config, train)
    from dlcv_cli.sequences.engines.compiled import Compiled

    return Compiled(cell, parameters, config, train)


def mean_squared_error(engine: Engine, data: Sequences) -> float:
    """Mean of squared errors over the sequences, in float64."""
    return float(np.mean((engine.answers(data).astype(np.float64) - data.targets) ** 2))


class Training:
    """Trains on `count` sequences for the settings' epochs, when iterated over; `best` has the weights of the lowest
    validation loss.

    Yields a record at each look at the losses, and None in between where it may be left as well: `state` then is all
    that another one has to `restore` to go on to the same end, bit for bit. The order is a function of (seed, epoch);
    an epoch's end does not cut a batch short. The baseline is looked at once, at iteration 0.

    Raises (when iterated over):
        DivergedAtError: the loss stopped being a finite number.
    """

    def __init__(self, engine: Engine, count: int, val: Sequences, config: SeqTrainConfig, seed: int) -> None:
        self.engine, self.count, self.val, self.config, self.seed = engine, count, val, config, seed
        self.at = 0  # sequences trained on
        self.steps = 0
        self.loss = 0.0  # sum since the last look
        self.lowest: float | None = None
        self.best: Parameters = {}
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __iter__(self) -> Iterator[Record | None]:
        if isinstance(self.engine, Constant):
            self.best = self.engine.parameters()
            yield Record(0, None, mean_squared_error(self.engine, self.val), True)
            return
        config, total = self.config, self.count * self.config.epochs
        share = config.record_every * config.batch_size
        piece = self.engine.pace() * config.batch_size
        while self.at < total:
            begin = self.at - self.at % share
            end = min(begin + share, total)
            while self.at < end:
                some = self._numbers(self.at, min(self.at + piece, end))
                loss, steps = self.engine.advance(some)
                self.steps += steps
                if steps < math.ceil(len(some) / config.batch_size):
                    raise DivergedAtError(self.steps + 1, config.lr)
                self.loss += loss
                self.at += len(some)
                if self.at < end:
                    yield None
            yield self._look(end - begin)

    def _numbers(self, first: int, last: int) -> Order:
        """Which sequences stand at these places of all epochs' orders, one after the other."""
        found = []
        while first < last:
            epoch, begin = divmod(first, self.count)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.count)
            found.append(self._order[begin : begin + last - first])
            first += len(found[-1])
        return np.concatenate(found)

    def _look(self, trained: int) -> Record:
        val_loss = mean_squared_error(self.engine, self.val)
        if not math.isfinite(val_loss):
            raise DivergedAtError(self.steps, self.config.lr)
        improved = self.lowest is None or val_loss < self.lowest
        if improved:
            self.lowest, self.best = val_loss, self.engine.parameters()
        train_loss, self.loss = self.loss / trained, 0.0
        return Record(self.steps, train_loss, val_loss, improved)

    def state(self) -> tuple[Parameters, dict[str, Any]]:
        """(arrays, numbers): all that changed since the beginning, copied."""
        means, squares = self.engine.moments()
        kinds = {"now": self.engine.parameters(), "mean": means, "square": squares, "best": self.best}
        arrays = {f"{kind}.{name}": array for kind, found in kinds.items() for name, array in found.items()}
        return arrays, {"at": self.at, "steps": self.steps, "loss": self.loss, "lowest": self.lowest}

    def restore(self, arrays: Mapping[str, NDArray[Any]], numbers: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave.

        Raises:
            ValueError: it is not the state of such a training.
        """
        kinds: dict[str, Parameters] = {"now": {}, "mean": {}, "square": {}, "best": {}}
        for name, array in arrays.items():
            kind, _, rest = name.partition(".")
            kinds.get(kind, {})[rest] = array
        own = {name: (array.shape, array.dtype) for name, array in self.engine.parameters().items()}
        for kind, found in kinds.items():
            wanted = own if kind != "best" or numbers["lowest"] is not None else {}
            if {name: (array.shape, array.dtype) for name, array in found.items()} != wanted:
                raise ValueError(f"its tensors {kind} are not those of this network")
        at, steps, total = numbers["at"], numbers["steps"], self.count * self.config.epochs
        if type(at) is not int or not 0 <= at <= total or (at < total and at % self.config.batch_size):
            raise ValueError(f"{at} sequences trained on")
        if steps != math.ceil(at / self.config.batch_size):
            raise ValueError(f"{steps} steps")
        looked = at >= min(total, self.config.record_every * self.config.batch_size)
        if looked != (numbers["lowest"] is not None):
            raise ValueError(f"lowest loss {numbers['lowest']} after {steps} steps")
        self.at, self.steps, self.loss, self.best = at, steps, float(numbers["loss"]), kinds["best"]
        self.lowest = None if numbers["lowest"] is None else float(numbers["lowest"])
        self.engine.restore(kinds["now"], kinds["mean"], kinds["square"], steps)
