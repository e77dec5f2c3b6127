"""What every engine does, and the baseline, which needs none.

Letters: N sequences.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.sequences.cells import Parameters
from dlcv_cli.sequences.tasks import Floats, Sequences

Order = NDArray[np.int64]


class Engine(Protocol):
    """One network that predicts and trains."""

    def predict(self, data: Sequences) -> Floats:
        """Return the predictions (N,), in the order of the data; nothing is padded."""

    def parameters(self) -> Parameters:
        """Return a copy of the weights, by name."""

    def advance(self, order: Order) -> tuple[float, int]:
        """Train on the sequences of these numbers, one batch a step.

        Returns:
            The sum of their squared errors, each before its step; and how many steps were taken, fewer than there are
            batches if an error was not finite.
        """

    def moments(self) -> tuple[Parameters, Parameters]:
        """Return copies of Adam's running means of gradients and of their squares, named as the weights."""

    def restore(self, parameters: Parameters, means: Parameters, squares: Parameters, steps: int) -> None:
        """Continue from these weights and moments, after that many steps."""

    def pace(self) -> int:
        """Return how many batches take a few tenths of a second at most: `advance` cannot be interrupted."""


class Constant:
    """The baseline, which predicts one number and has nothing to train."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters

    def predict(self, data: Sequences) -> Floats:
        """Return the constant for each sequence, (N,)."""
        return np.full(len(data.lengths), self._parameters["constant"][0])

    def parameters(self) -> Parameters:
        """Return the constant, (1,)."""
        return dict(self._parameters)
