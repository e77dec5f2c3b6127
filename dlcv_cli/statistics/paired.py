"""Tests of two systems on the same examples: difference, 95 % interval and p. Letters: N examples, K runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.statistics.metrics import Labels, recall_of
from dlcv_cli.statistics.significance import (
    Interval,
    Statistic,
    bca,
    mcnemar,
    mean_of,
    paired_shares,
    sign_flips,
    t_test,
)

Array = NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """One system: what each run makes of each example (K, N), the runs' seeds, and whether it is a baseline."""

    values: Array
    seeds: Sequence[int]
    baseline: bool


@dataclass(frozen=True)
class Difference:
    """A tested difference, system - reference. `n`: how many examples or seeds were the random sample."""

    difference: float
    interval: Interval
    p: float
    test: str
    n: int
    over: Literal["examples", "seeds"] = "examples"
    p_exact: float | None = None  # McNemar: without the mid-p correction
    only_row: int | None = None  # examples that only the system gets right
    only_reference: int | None = None


def compare_shares(samples: Sequence[Sample], base: Sample) -> list[Difference]:
    """Test shares of correct predictions, values (1, N) bool, by McNemar's test with mid-p."""
    return [_compare_share(sample.values[0], base.values[0]) for sample in samples]


def _compare_share(right: Array, base: Array) -> Difference:
    won, lost, n = int((right & ~base).sum()), int((base & ~right).sum()), base.size
    mid, exact = mcnemar(won, lost)
    interval = paired_shares(won, lost, n)
    return Difference((won - lost) / n, interval, mid, "McNemar, mid-p", n, "examples", exact, won, lost)


def compare_recalls(samples: Sequence[Sample], base: Sample, labels: Labels) -> list[Difference]:
    """Test mean per-class recalls, values (1, N) bool, by permutation and bootstrap over the examples."""
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights = 1 / (counts[index] * len(counts))
    differences = [sample.values[0].astype(np.float64) - base.values[0] for sample in samples]
    return _compare_over_examples(differences, lambda d: recall_of(d, labels), weights)


def compare_means(samples: Sequence[Sample], base: Sample) -> list[Difference]:
    """Test means of values (K, N): over the seeds if both have several, else over the examples, runs averaged."""
    over_seeds = [_compare_over_seeds(sample, base) for sample in samples]
    differences = [
        sample.values.mean(0) - base.values.mean(0)
        for sample, tested in zip(samples, over_seeds, strict=True)
        if not tested
    ]
    over_examples = iter(_compare_over_examples(differences, mean_of, 1.0))
    return [tested or next(over_examples) for tested in over_seeds]


def _compare_over_examples(
    differences: Sequence[Array], statistic: Callable[[Array], Statistic], weights: Array | float
) -> list[Difference]:
    """Test differences, each (N,), by flipping their signs; `weights` are those of the examples in the statistic."""
    if not differences:
        return []
    statistics = [statistic(d) for d in differences]
    ps = sign_flips(np.array([d * weights for d in differences]))
    return [
        Difference(s.estimate, interval, p, "paired permutation", len(d))
        for s, interval, p, d in zip(statistics, bca(statistics), ps, differences, strict=True)
    ]


def _compare_over_seeds(sample: Sample, base: Sample) -> Difference | None:
    """Return the test over seeds if both have several, or the base has and the other is a baseline, which is fixed."""
    a, b = sample.values.mean(1), base.values.mean(1)
    if len(a) > 1 and len(b) > 1:
        paired = list(sample.seeds) == list(base.seeds)
        difference, interval, p = t_test(a, b, paired)
        return Difference(difference, interval, p, "paired t" if paired else "Welch's t", min(len(a), len(b)), "seeds")
    if len(b) > 1 and sample.baseline:
        difference, (low, high), p = t_test(b, float(a[0]), paired=False)
        return Difference(-difference, (-high, -low), p, "t", len(b), "seeds")
    return None
