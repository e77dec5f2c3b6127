"""Sequence tasks, one entry each in TASKS. A sequence is an array (T, F) of float32, its target one number.

Letters: T steps, F inputs a step, N sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from dlcv_cli.config import GenConfig
from dlcv_cli.errors import lookup

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """How one sequence is drawn, and the constant answer that knows nothing but the mean target."""

    draw: Callable[[Generator, int], tuple[Floats, float]]  # (rng, T) -> inputs (T, F), target
    inputs: int  # F
    constant: float


@dataclass(frozen=True)
class Sequences:
    """N sequences end to end: inputs (sum of T, F) float32, lengths (N,) int64, targets (N,) float32."""

    inputs: Floats
    lengths: NDArray[np.int64]
    targets: Floats


def _marked(rng: Generator, steps: int) -> tuple[Floats, float, float]:
    """(value, marker) a step: values uniform in [0, 1), marker 1 at two steps; and the two marked values."""
    inputs = np.zeros((steps, 2), np.float32)
    inputs[:, 0] = rng.random(steps, np.float32)
    marked = rng.choice(steps, 2, replace=False)
    inputs[marked, 1] = 1
    first, second = inputs[marked, 0].astype(np.float64)
    return inputs, float(first), float(second)


def adding(rng: Generator, steps: int) -> tuple[Floats, float]:
    """The sum of the two marked values. Source: Hochreiter & Schmidhuber 1997, experiment 4, in its modern form."""
    inputs, first, second = _marked(rng, steps)
    return inputs, first + second


def multiplication(rng: Generator, steps: int) -> tuple[Floats, float]:
    """The product of the two marked values. Source: Hochreiter & Schmidhuber 1997, experiment 5."""
    inputs, first, second = _marked(rng, steps)
    return inputs, first * second


def temporal_order(rng: Generator, steps: int) -> tuple[Floats, float]:
    """In which order two symbols came, as a number: XX 0, XY 1/3, YX 2/3, YY 1.

    Each step is one of six symbols, one-hot: X, Y, and four distractors.
    Source: Hochreiter & Schmidhuber 1997, experiment 6a, its four classes as numbers.
    """
    symbols = rng.integers(2, 6, steps)
    first, second = rng.integers(0, 2, 2)
    early, late = sorted(rng.choice(steps, 2, replace=False))
    symbols[early], symbols[late] = first, second
    return np.eye(6, dtype=np.float32)[symbols], (2 * int(first) + int(second)) / 3


TASKS: dict[str, Task] = {
    "adding": Task(adding, inputs=2, constant=1.0),
    "multiplication": Task(multiplication, inputs=2, constant=0.25),
    "temporal-order": Task(temporal_order, inputs=6, constant=0.5),
}


def generate(config: GenConfig, count: int, stream: int) -> Sequences:
    """`count` sequences with lengths uniform in min_length..max_length, from one of the seed's streams."""
    task = lookup(TASKS, config.task, "task")
    rng = default_rng((config.seed, stream))
    lengths = rng.integers(config.min_length, config.max_length + 1, count)
    inputs = np.empty((int(lengths.sum()), task.inputs), np.float32)
    targets = np.empty(count, np.float32)
    at = 0
    for n, steps in enumerate(lengths):
        inputs[at : at + steps], targets[n] = task.draw(rng, int(steps))
        at += steps
    return Sequences(inputs, lengths, targets)
