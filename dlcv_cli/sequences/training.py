"""One training loop for all cells and both engines: mean squared error, Adam, a look at the losses now and then.

Letters: N sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.config import SeqTrainConfig
from dlcv_cli.errors import DlcvError
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


class DivergedError(DlcvError):
    """The loss stopped being a finite number."""

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
        from dlcv_cli.sequences.reference import Reference

        return Reference(cell, parameters, config, train)
    from dlcv_cli.sequences.compiled import Compiled

    return Compiled(cell, parameters, config, train)


def mean_squared_error(engine: Engine, data: Sequences) -> float:
    """Mean of squared errors over the sequences, in float64."""
    return float(np.mean((engine.answers(data).astype(np.float64) - data.targets) ** 2))


def fit(
    engine: Engine, count: int, val: Sequences, config: SeqTrainConfig, seed: int, best: Parameters
) -> Iterator[Record]:
    """Trains on `count` sequences for the settings' epochs; `best` gets the weights of the lowest validation loss.

    The order is a function of (seed, epoch); an epoch's end does not cut a batch short. The baseline is looked at once,
    at iteration 0.

    Raises:
        DivergedError: the loss stopped being a finite number.
    """
    if isinstance(engine, Constant):
        best.update(engine.parameters())
        yield Record(0, None, mean_squared_error(engine, val), True)
        return
    order = np.concatenate([np.random.default_rng((seed, e)).permutation(count) for e in range(config.epochs)])
    lowest, iteration = math.inf, 0
    share = config.record_every * config.batch_size
    for some in (order[i : i + share] for i in range(0, len(order), share)):
        loss, steps = engine.advance(some)
        iteration += steps
        if steps < math.ceil(len(some) / config.batch_size):
            raise DivergedError(iteration + 1, config.lr)
        val_loss = mean_squared_error(engine, val)
        if not math.isfinite(val_loss):
            raise DivergedError(iteration, config.lr)
        improved = val_loss < lowest
        if improved:
            lowest = val_loss
            best.update(engine.parameters())
        yield Record(iteration, loss / len(some), val_loss, improved)
