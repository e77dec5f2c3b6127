"""The interface of the engines, and the baseline, which needs no engine. Letters: N sequences."""

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
        """Return the predictions (N,) float32, in the order of the data. Nothing is padded."""

    def copy_parameters(self) -> Parameters:
        """Return a copy of the weights, by name."""

    def advance(self, order: Order) -> tuple[float, int]:
        """Train on the sequences with these numbers, one step per batch.

        Returns:
            The sum of their squared errors, each before its step; and the number of steps taken, which is less than
            the number of batches if an error was not finite.
        """

    def copy_moments(self) -> tuple[Parameters, Parameters]:
        """Return copies of Adam's running means of gradients and of their squares, named as the weights."""

    def restore(self, parameters: Parameters, means: Parameters, squares: Parameters, steps: int) -> None:
        """Continue from these weights and moments, after this number of steps."""

    def choose_pace(self) -> int:
        """Return a number of batches that takes a few tenths of a second at most: `advance` cannot be interrupted."""


class Constant:
    """The baseline, which predicts one number and has nothing to train."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters

    def predict(self, data: Sequences) -> Floats:
        """Return the constant for each sequence, (N,)."""
        return np.full(len(data.lengths), self._parameters["constant"][0])

    def copy_parameters(self) -> Parameters:
        """Return the constant, (1,)."""
        return dict(self._parameters)
