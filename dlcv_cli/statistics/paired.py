"""Tests of two systems on the same examples: difference, 95 % interval and p. Letters: N examples, K runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.statistics.metrics import Labels, build_recall
from dlcv_cli.statistics.significance import (
    Interval,
    Statistic,
    bootstrap,
    build_mean,
    compute_paired_interval,
    flip_signs,
    run_mcnemar,
    run_t_test,
)

Array = NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """One system: the values of its runs on the examples (K, N), the runs' seeds, and whether it is a baseline."""

    values: Array
    seeds: Sequence[int]
    baseline: bool


@dataclass(frozen=True)
class Difference:
    """A tested difference, system - reference. `n`: the number of examples or seeds in the random sample."""

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
    mid, exact = run_mcnemar(won, lost)
    interval = compute_paired_interval(won, lost, n)
    return Difference((won - lost) / n, interval, mid, "McNemar, mid-p", n, "examples", exact, won, lost)


def compare_recalls(samples: Sequence[Sample], base: Sample, labels: Labels) -> list[Difference]:
    """Test mean per-class recalls, values (1, N) bool, by permutation and bootstrap over the examples."""
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights = 1 / (counts[index] * len(counts))
    differences = [sample.values[0].astype(np.float64) - base.values[0] for sample in samples]
    return _compare_over_examples(differences, lambda d: build_recall(d, labels), weights)


def compare_means(samples: Sequence[Sample], base: Sample) -> list[Difference]:
    """Test means of values (K, N): over the seeds if both have several, else over the examples, averaging the runs."""
    over_seeds = [_compare_over_seeds(sample, base) for sample in samples]
    differences = [
        sample.values.mean(0) - base.values.mean(0)
        for sample, tested in zip(samples, over_seeds, strict=True)
        if not tested
    ]
    over_examples = iter(_compare_over_examples(differences, build_mean, 1.0))
    return [tested or next(over_examples) for tested in over_seeds]


def _compare_over_examples(
    differences: Sequence[Array], statistic: Callable[[Array], Statistic], weights: Array | float
) -> list[Difference]:
    """Test differences, each (N,), by flipping their signs; `weights` are those of the examples in the statistic."""
    if not differences:
        return []
    statistics = [statistic(d) for d in differences]
    ps = flip_signs(np.array([d * weights for d in differences]))
    return [
        Difference(s.estimate, interval, p, "paired permutation", len(d))
        for s, interval, p, d in zip(statistics, bootstrap(statistics), ps, differences, strict=True)
    ]


def _compare_over_seeds(sample: Sample, base: Sample) -> Difference | None:
    """Return the test over seeds if both have several, or if the base has and the sample is a baseline, else None."""
    a, b = sample.values.mean(1), base.values.mean(1)
    if len(a) > 1 and len(b) > 1:
        paired = list(sample.seeds) == list(base.seeds)
        difference, interval, p = run_t_test(a, b, paired)
        return Difference(difference, interval, p, "paired t" if paired else "Welch's t", min(len(a), len(b)), "seeds")
    if len(b) > 1 and sample.baseline:
        difference, (low, high), p = run_t_test(b, float(a[0]), paired=False)
        return Difference(-difference, (-high, -low), p, "t", len(b), "seeds")
    return None
