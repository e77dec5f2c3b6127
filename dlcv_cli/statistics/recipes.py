"""Recipes compared over runs and examples. Letters: K and L runs, N examples, J folds.

A recipe's figure varies with the seed and with the test examples. `test_crossed` treats both as drawn at random, so
its verdict is about training again and testing on new examples. `test_resampled` is for folds, whose training parts
overlap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.statistics.recalls import Part, measure_strata, weigh_by_class
from dlcv_cli.statistics.significance import TAIL, Interval

Array = NDArray[Any]
Floats = NDArray[np.float64]

FEWEST_RUNS = 2  # a single run has no spread
FAR = 5.0  # deviations from the median, beyond which a run is not like the others
RARE = 0.1  # a failure of one run in ten should be seen: 29 runs


@dataclass(frozen=True)
class Tested:
    """A difference with its 95 % interval, two-sided p, degrees of freedom and standard error, and what tested it."""

    difference: float
    interval: Interval
    p: float
    freedom: float
    error: float
    method: str


def test_crossed(a: Array, b: Array, paired: bool, weights: Array | None = None, labels: Array | None = None) -> Tested:
    """Return the difference of the mean of a (K, N) and of b (L, N), over new runs and new examples.

    Two-way random effects without replication: the variance of a grand mean is that of the run means plus that of the
    example means minus that of the residuals, each divided by its number, and not below the larger of the first two.
    Source: Cornfield & Tukey 1956 (doi:10.1214/aoms/1177728067); Satterthwaite 1946 (doi:10.2307/3002019); Welch 1947.

    Args:
        a, b: values of the same examples, FEWEST_RUNS or more runs each. A side of one row is a baseline, which does
            not vary with the seed.
        paired: a[k] and b[k] belong together.
        weights: (N,), summing to 1; None: equal. labels: (N,) classes, which are not drawn at random but fixed: new
            examples are of the same classes. Without weights, each class then weighs the same (mean per-class recall).

    Raises:
        ValueError: too few runs, or paired sides of different sizes.
    """
    if paired or 1 in (len(a), len(b)):
        if paired and len(a) != len(b):
            raise ValueError("paired sides have as many runs")
        return _test_runs([np.asarray(a, np.float64) - b], weights, labels)
    return _test_runs([np.asarray(a, np.float64), -np.asarray(b, np.float64)], weights, labels)


def compute_crossed_interval(a: Array, weights: Array | None = None, labels: Array | None = None) -> Interval:
    """Return the 95 % interval of the mean of a (K, N) over new runs and new examples; see test_crossed."""
    return _test_runs([np.asarray(a, np.float64)], weights, labels).interval


def _test_runs(sides: list[Floats], weights: Array | None, labels: Array | None) -> Tested:
    """Return the test of the sum over the sides of the means of (runs, N)."""
    if min(map(len, sides)) < FEWEST_RUNS:
        raise ValueError(f"fewer than {FEWEST_RUNS} runs: their spread is not known")
    n = sides[0].shape[1]
    classes = np.zeros(n, np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    w = weigh_by_class(classes) if weights is None else np.asarray(weights, np.float64)
    means = sum(side.mean(0) for side in sides)
    run_parts, residual_parts = [], []
    for side in sides:
        k, run_means = len(side), side @ w
        run_parts.append(Part(float(run_means.var(ddof=1)) / k, k - 1))
        part = measure_strata(side - side.mean(0), w, classes)
        residual_parts.append(Part(part.variance / (k * (k - 1)), part.freedom * (k - 1)))
    examples = measure_strata(np.asarray(means)[None], w, classes)
    runs, residual = sum(p.variance for p in run_parts), sum(p.variance for p in residual_parts)
    variance = max(runs + examples.variance - residual, runs, examples.variance)
    parts = [*run_parts, examples, *residual_parts]
    spread = sum(part.variance**2 / part.freedom for part in parts if part.variance > 0)
    freedom = variance**2 / spread if spread > 0 else 1.0
    return build_tested(float(means @ w), math.sqrt(variance), freedom, "crossed t")


def judge_runs(values: Array) -> str:
    """Return a clause that says why an interval over new runs of values (K,) is not to be trusted; empty if it is.

    Either runs lie far from the others, so that their mean is not like any of them, or there are so few that a failure
    of RARE of the runs may not be among them, which no interval can then contain.
    """
    count = len(values)
    off = np.abs(values - np.median(values))
    far = int(np.count_nonzero(off > FAR * 1.4826 * np.median(off)))  # 1.4826 MAD is a normal distribution's deviation
    if far:
        return f"{far} of {count} runs {'lies' if far == 1 else 'lie'} far from the others"
    missed = 1 - 0.05 ** (1 / count)  # a share of failures that leaves none in these runs in 5 % of cases
    if missed > RARE:
        return f"{count} runs may miss a failure of up to {100 * missed:.0f} % of the seeds"
    return ""


def test_resampled(differences: Array, test_share: float) -> Tested:
    """Return the test of the mean of differences (J,) of J >= 2 folds or splits, whose training parts overlap.

    Their variance divided by J would be too small, because the folds are not independent; this adds the share of
    overlap. Source: Nadeau & Bengio 2003 (doi:10.1023/A:1024068626366).

    Args:
        test_share: number of test examples / number of training examples; 1 / (J - 1) of J folds.
    """
    values = np.asarray(differences, np.float64)
    if len(values) < 2:
        raise ValueError("a single fold: its spread is not known")
    error = math.sqrt((1 / len(values) + test_share) * values.var(ddof=1))
    return build_tested(float(values.mean()), error, len(values) - 1.0, "corrected resampled t")


def compute_resampled_interval(values: Array, test_share: float) -> Interval:
    """Return the 95 % interval of the mean of values (J,) of J >= 2 folds; see test_resampled."""
    return test_resampled(values, test_share).interval


def build_tested(difference: float, error: float, freedom: float, method: str) -> Tested:
    """Return the t test of a difference with this standard error; p < 0.05 exactly when 0 is outside the interval."""
    from scipy.special import stdtr, stdtrit

    if error <= 1e-14 * abs(difference):  # all the same, but for rounding
        p = 1.0 if difference == 0 else 0.0
        return Tested(difference, (difference, difference), p, freedom, 0.0, method)
    half = float(stdtrit(freedom, 1 - TAIL)) * error
    p = float(2 * stdtr(freedom, -abs(difference) / error))
    return Tested(difference, (difference - half, difference + half), p, freedom, error, method)
