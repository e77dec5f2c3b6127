"""Means over N examples, and paired differences of them: interval, p, and whether to trust them.

docs/statistics.md has the simulation that chose the methods.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.statistics.significance import TAIL, Interval, group_sums

Array = NDArray[Any]
Floats = NDArray[np.float64]

FEWEST = 30  # with fewer examples, nothing is known of the tails
RESAMPLES = 1_999
HEAVIEST = 0.6  # the heaviest tail that 100 examples bear; each doubling bears MORE
MORE = 0.1
_ROWS = 100  # resamples at a time: bounds the memory


def compute_mean_interval(values: Array) -> Interval:
    """Return the 95 % interval of the mean of values (N,); see test_mean."""
    return test_mean(values)[1]


def sum_groups(values: Array, weights: Array, groups: Array) -> Floats:
    """Return values (..., G) of G groups whose mean is the weighted sum of values (..., N).

    Examples of one group are no independent sample, but their groups are.
    Source: Cameron & Miller 2015 (doi:10.3368/jhr.50.2.317), of clustered samples.

    Args:
        weights: (N,). groups: (N,), the number of each example's group.
    """
    _, index = np.unique(groups, return_inverse=True)
    member = np.zeros((len(index), int(index.max()) + 1))
    member[np.arange(len(index)), index] = np.asarray(weights) * member.shape[1]
    return np.asarray(np.asarray(values, np.float64) @ member)


def compute_r2_interval(predictions: Array, targets: Array) -> Interval:
    """Return the 95 % interval of R2 of predictions (N,) for targets (N,), at most 1.

    R2 is 1 - mean square / variance. Its linear part is a mean over examples, whose interval test_mean has. If the
    targets do not vary, it has no width. Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, 21.
    """
    t = np.asarray(targets, np.float64) - np.mean(targets, dtype=np.float64)
    squares = (np.asarray(predictions, np.float64) - targets) ** 2
    variance, unexplained = float(np.mean(t**2)), float(squares.mean())
    if variance <= 1e-12 * float(np.max(np.asarray(targets, np.float64) ** 2)):
        return (1.0, 1.0) if unexplained == 0 else (0.0, 0.0)
    share = unexplained / variance
    low, high = compute_mean_interval(1 - share - (squares - share * t**2) / variance)
    return low, min(1.0, high)


def test_mean(differences: Array) -> tuple[float, Interval, float]:
    """Return (mean, its 95 % interval, two-sided p) of paired differences (N,).

    The interval has the outer ends of two: Student's t, which is right where differences are symmetric, and
    bootstrap-t, which is right where they are skewed. p is the larger of the two, so that p < 0.05 exactly when 0 lies
    outside; where no resample lies so far out, it is that of Student's t. Fewer than FEWEST: Student's t alone.
    Source: Student 1908; Efron 1981 (doi:10.2307/3314608); Hall 1988 (doi:10.1214/aos/1176350933).
    """
    from scipy.special import stdtr, stdtrit

    values, n = np.asarray(differences, np.float64), len(differences)
    mean = float(values.mean())
    error = math.sqrt(values.var(ddof=1) / n) if n > 1 else 0.0
    if error <= 1e-14 * abs(mean):  # all the same, but for rounding
        return mean, (mean, mean), 1.0 if mean == 0 else 0.0
    quantile, t = float(stdtrit(n - 1, 1 - TAIL)), mean / error
    p, lowest, highest = float(2 * stdtr(n - 1, -abs(t))), -quantile, quantile
    drawn = _resample_t(values - mean) if n >= FEWEST else np.empty(0)
    rank = math.ceil(TAIL * (len(drawn) + 1)) - 1  # of the draws beyond either end, so that p and interval agree
    if rank > 0:
        beyond = int(min(np.count_nonzero(drawn >= t), np.count_nonzero(drawn <= t)))
        p = max(p, min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))) if beyond else p
        lowest, highest = min(lowest, float(drawn[rank - 1])), max(highest, float(drawn[-rank]))
    return mean, (mean - highest * error, mean - lowest * error), p


@lru_cache(maxsize=1)  # the same examples are resampled for each metric and each pair of systems
def _draw(n: int) -> NDArray[np.uint16]:
    """Return which of n examples are in each of RESAMPLES resamples, (RESAMPLES, n)."""
    return np.random.default_rng(n).integers(0, n, (RESAMPLES, n), dtype=np.uint16)


def _resample_t(centred: Floats) -> Floats:
    """Return Student's t of resamples of values (N,) with a mean of 0, in order; those without spread have none."""
    values = group_sums(centred[:, None])[:, 0]
    chosen, n = _draw(len(values)), len(values)
    means, squares = np.empty(RESAMPLES), np.empty(RESAMPLES)
    for begin in range(0, RESAMPLES, _ROWS):
        rows = slice(begin, begin + _ROWS)
        drawn = values[chosen[rows]]
        means[rows] = drawn.mean(1)
        squares[rows] = np.einsum("ij,ij->i", drawn, drawn) / n
    variances = (squares - means**2) / (n - 1)  # of the mean
    spread = variances > 1e-12 * squares.max() / n
    return np.sort(means[spread] / np.sqrt(variances[spread]))


def judge_sample(values: Array) -> str:
    """Return a clause that says why the interval of the mean of values (N,) is not to be trusted; empty if it is.

    The tail is measured by the mean logarithm of the tenth that lies furthest out, relative to where it begins: 0.42 of
    squared normal errors, 0.9 with a kurtosis of 30. Source of the measure: Hill 1975 (doi:10.1214/aos/1176343247).
    """
    n = len(values)
    if n < FEWEST:
        return f"{n} examples are too few"
    size = np.sort(np.abs(np.asarray(values, np.float64)))[::-1]
    count = max(3, round(n / 10))
    if size[0] == 0:
        return ""
    if size[count] <= 1e-12 * size[0]:
        return f"all but {np.count_nonzero(size > 1e-12 * size[0])} of {n} examples are 0"
    tail = float(np.log(size[:count] / size[count]).mean())
    if tail < HEAVIEST + MORE * math.log2(n / 100):
        return ""
    return (
        f"{n} examples are too few for so heavy a tail: the largest has {100 * size[0] / size.sum():.0f} % of the sum"
    )
