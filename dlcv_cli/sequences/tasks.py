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
from dlcv_cli.errors import SettingError, look_up

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """How a sequence is drawn, and the two predictions that a network has to beat: `constant` and `guess`."""

    draw: Callable[[Generator, int, int], tuple[Floats, float]]  # (rng, T, shortest T) -> inputs (T, F), target
    inputs: int  # F
    constant: float  # the mean target, which needs no input
    # inputs (T, F) -> the best prediction from the first marked value, or symbol, and the mean of the second
    guess: Callable[[Floats], float]
    shortest: int = 2  # smallest T
    finite: bool = False  # made of symbols, not numbers: short sequences can be equal by chance


@dataclass(frozen=True)
class Sequences:
    """N sequences end to end: inputs (sum of T, F) float32, lengths (N,) int64, targets (N,) float32."""

    inputs: Floats
    lengths: NDArray[np.int64]
    targets: Floats


def _draw_marked(rng: Generator, steps: int) -> tuple[Floats, float, float]:
    """Return inputs (T, 2), values uniform in [0, 1) and markers, 1 at two steps; and the two marked values."""
    inputs = np.zeros((steps, 2), np.float32)
    inputs[:, 0] = rng.random(steps, np.float32)
    marked = rng.choice(steps, 2, replace=False)
    inputs[marked, 1] = 1
    first, second = inputs[marked, 0].astype(np.float64)
    return inputs, float(first), float(second)


def _get_first(inputs: Floats) -> float:
    return float(inputs[inputs[:, 1] == 1, 0][0])


def draw_adding(rng: Generator, steps: int, _: int) -> tuple[Floats, float]:
    """Return a sequence whose target is the sum of the two marked values.

    Source: Hochreiter & Schmidhuber 1997, experiment 4, in its modern form."""
    inputs, first, second = _draw_marked(rng, steps)
    return inputs, first + second


def draw_adding_1997(rng: Generator, steps: int, shortest: int) -> tuple[Floats, float]:
    """Return a sequence of the original adding problem: values in [-1, 1], markers -1 at both ends, sum scaled to 0..1.

    One mark is among the first ten steps, the other among the first T/2 - 1 of the shortest T; a marked first step
    counts 0.
    Source: Hochreiter & Schmidhuber 1997, experiment 4.
    """
    inputs = np.zeros((steps, 2), np.float32)
    inputs[:, 0] = rng.uniform(-1, 1, steps)
    inputs[[0, -1], 1] = -1
    early = int(rng.integers(10))
    steps_of_late = shortest // 2 - 1
    late = int(rng.integers(steps_of_late - (early < steps_of_late)))
    late += late >= early  # skip the step that is marked already
    inputs[[early, late], 1] = 1
    if 0 in (early, late):
        inputs[0, 0] = 0
    first, second = inputs[[early, late], 0].astype(np.float64)
    return inputs, 0.5 + (float(first) + float(second)) / 4


def draw_multiplication(rng: Generator, steps: int, _: int) -> tuple[Floats, float]:
    """Return a sequence whose target is the product of the two marked values.

    Source: Hochreiter & Schmidhuber 1997, experiment 5."""
    inputs, first, second = _draw_marked(rng, steps)
    return inputs, first * second


def draw_temporal_order(rng: Generator, steps: int, _: int) -> tuple[Floats, float]:
    """Return a sequence whose target is the order in which two symbols come: XX 0, XY 1/3, YX 2/3, YY 1.

    Each step is one of six symbols, one-hot: X, Y, and four distractors.
    Source: Hochreiter & Schmidhuber 1997, experiment 6a, its four classes as numbers.
    """
    symbols = rng.integers(2, 6, steps)
    first, second = rng.integers(0, 2, 2)
    early, late = sorted(rng.choice(steps, 2, replace=False))
    symbols[early], symbols[late] = first, second
    return np.eye(6, dtype=np.float32)[symbols], (2 * int(first) + int(second)) / 3


TASKS: dict[str, Task] = {
    "adding": Task(draw_adding, 2, constant=1.0, guess=lambda x: _get_first(x) + 0.5),
    "adding-1997": Task(draw_adding_1997, 2, constant=0.5, guess=lambda x: 0.5 + _get_first(x) / 4, shortest=20),
    "multiplication": Task(draw_multiplication, 2, constant=0.25, guess=lambda x: _get_first(x) * 0.5),
    "temporal-order": Task(
        draw_temporal_order, 6, constant=0.5, guess=lambda x: (2 * int(x[x[:, :2].any(1)][0, 1]) + 0.5) / 3, finite=True
    ),
}


def generate(config: GenConfig, count: int, stream: int) -> Sequences:
    """Return `count` sequences with lengths uniform in min_length..max_length, from one of the seed's streams.

    Raises:
        SettingError: the task is unknown, or needs longer sequences.
    """
    task = look_up(TASKS, config.task, "task")
    if config.min_length < task.shortest:
        raise SettingError(f"--min-length is {config.min_length}: {config.task} needs at least {task.shortest}")
    rng = default_rng((config.seed, stream))
    lengths = rng.integers(config.min_length, config.max_length + 1, count)
    inputs = np.empty((int(lengths.sum()), task.inputs), np.float32)
    targets = np.empty(count, np.float32)
    begin = 0
    for n, steps in enumerate(lengths):
        inputs[begin : begin + steps], targets[n] = task.draw(rng, int(steps), config.min_length)
        begin += steps
    return Sequences(inputs, lengths, targets)
