"""Intervals and tests that dlcv used before, for benchmarks/coverage.py: BCa, paired permutation, t over runs.

Letters: N examples, M sums, B draws, P pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.statistics.metrics import BINS, Scores, assign_bins
from dlcv_cli.statistics.significance import TAIL, Interval, Z, group_sums

Array = NDArray[Any]
Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

DRAWS = 9_999
EXACT = 13  # up to this number of differences, every assignment of signs is tried: 2**13 < DRAWS
_ROWS = 500  # draws at a time: bounds the memory


@dataclass(frozen=True)
class Statistic:
    """A number that is a function of sums over examples, so that a resample costs one matrix product.

    values: (N, M) float64, the terms of each example. of: the number of sums (..., M) -> (...).
    """

    values: Floats
    of: Callable[[Floats], Floats]

    @property
    def estimate(self) -> float:
        """The value on the examples themselves."""
        return float(self.of(self.values.sum(0)))


def build_mean(values: Array) -> Statistic:
    """Return the mean of values (N,)."""
    return Statistic(np.column_stack([values, np.ones(len(values))]), lambda sums: sums[..., 0] / sums[..., 1])


def build_recall(values: NDArray[Any], labels: Labels) -> Statistic:
    """Return the mean over the classes that occur of each class's mean of values (N,): correctness, or differences."""
    present, index = np.unique(labels, return_inverse=True)
    member = np.eye(len(present))[index]  # (N, classes that occur)

    def average(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        counts, values = np.split(sums, 2, axis=-1)
        occurs = counts > 0  # a resample may lack a class
        means = np.divide(values, counts, out=np.zeros_like(values), where=occurs)
        return np.asarray(means.sum(-1) / occurs.sum(-1))

    return Statistic(np.hstack([member, member * values[:, None]]), average)


def build_calibration(scores: Scores) -> Statistic:
    """Return the expected calibration error: the mean over the images of their bin's |accuracy - mean confidence|.

    Source: Naeini et al. 2015; Guo et al. 2017 (arXiv:1706.04599), equation 3.
    """
    gaps = np.eye(BINS)[assign_bins(scores.confidences)] * (scores.right - scores.confidences)[:, None]
    values = np.hstack([gaps, np.ones((len(gaps), 1))])
    return Statistic(values, lambda sums: np.asarray(np.abs(sums[..., :-1]).sum(-1) / sums[..., -1]))


def build_r2(predictions: Floats, targets: Floats) -> Statistic:
    """Return R2 of predictions (N,) for targets (N,), as a statistic of sums."""
    # relative to the mean: sums of squares of large targets would cancel
    t = targets.astype(np.float64) - targets.mean(dtype=np.float64)
    values = np.column_stack([(predictions - targets.astype(np.float64)) ** 2, t, t**2, np.ones(len(t))])

    def explain(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        error, first, second, n = np.moveaxis(sums, -1, 0)
        variance = second - first**2 / n
        flat = variance <= 1e-12 * second
        return np.asarray(np.where(flat, error == 0, 1 - error / np.where(flat, 1, variance)))

    return Statistic(values, explain)


def bootstrap(statistics: Sequence[Statistic], draws: int = DRAWS) -> list[Interval]:
    """Return 95 % intervals, bias-corrected and accelerated, of statistics of the same N examples, from the same draws.

    An interval has no width if all draws agree (one example, equal values).
    Source: Efron 1987 (doi:10.2307/2289144).
    """
    values = group_sums(np.column_stack([s.values for s in statistics]))
    edges = list(itertools.accumulate((s.values.shape[1] for s in statistics), initial=0))
    drawn = np.concatenate([counts @ values for counts in draw_counts(len(values), draws)])
    without = values.sum(0) - values  # the sums without one example each
    intervals = []
    for statistic, low, high in zip(statistics, edges, edges[1:], strict=False):
        own = slice(low, high)
        jackknife = statistic.of(without[:, own]) if len(values) > 1 else np.zeros(1)
        intervals.append(_correct_bias(statistic.estimate, statistic.of(drawn[:, own]), jackknife))
    return intervals


def _correct_bias(estimate: float, drawn: Floats, jackknife: Floats) -> Interval:
    from scipy.special import ndtr, ndtri

    tolerance = 1e-12 * max(abs(estimate), 1e-300)
    if np.ptp(drawn) <= tolerance:
        return estimate, estimate
    z0 = ndtri((np.mean(drawn < estimate) + np.mean(drawn <= estimate)) / 2)
    influence = jackknife.mean() - jackknife
    spread = np.sum(influence**2) ** 1.5
    acceleration = np.sum(influence**3) / (6 * spread) if spread > 0 else 0.0
    if not np.isfinite(z0):  # all draws on one side: nothing to correct by
        z0, acceleration = 0.0, 0.0
    tails = z0 + np.array([-Z, Z])
    low, high = np.quantile(drawn, ndtr(z0 + tails / (1 - acceleration * tails)))
    return float(low), float(high)


def draw_counts(n: int, draws: int) -> Iterator[Floats]:
    """Yield the count of each of n examples in draws with replacement, (.., n) with up to _ROWS draws at a time."""
    rng = np.random.default_rng(n)
    for begin in range(0, draws, _ROWS):
        chosen = rng.integers(0, n, (min(_ROWS, draws - begin), n), dtype=np.uint16)
        yield np.array([np.bincount(row, minlength=n) for row in chosen], np.float64)


def flip_signs(differences: Array, draws: int = DRAWS) -> list[float]:
    """Return the two-sided p of each row of paired differences (P, N): the share of sign flips with a sum as large.

    It tries every assignment of signs up to EXACT differences that are not 0, else `draws` random ones and the actual.
    Source: Fisher 1935, The Design of Experiments, 21; Phipson & Smyth 2010 (doi:10.2202/1544-6115.1585).
    """
    grouped = group_sums(np.asarray(differences, np.float64).T)
    # minus what may be rounding: flips with an equal sum count
    totals = np.abs(grouped.sum(0)) - 1e-12 * np.abs(grouped).sum(0)
    few = [np.count_nonzero(column) <= EXACT for column in grouped.T]
    as_large = np.zeros(grouped.shape[1])
    if not all(few):
        rng, n = np.random.default_rng(len(grouped)), len(grouped)
        for begin in range(0, draws, _ROWS):
            rows = min(_ROWS, draws - begin)
            bits = np.unpackbits(np.frombuffer(rng.bytes(-(-rows * n // 8)), np.uint8), count=rows * n)
            signs = 2.0 * bits.reshape(rows, n) - 1
            as_large += (np.abs(signs @ grouped) >= totals).sum(0)
    ps = (as_large + 1) / (draws + 1)
    for number in np.flatnonzero(few):
        nonzero = grouped[grouped[:, number] != 0, number]
        signs = 2.0 * ((np.arange(2 ** len(nonzero))[:, None] >> np.arange(len(nonzero))) & 1) - 1
        ps[number] = np.mean(np.abs(signs @ nonzero) >= totals[number])
    return [float(p) for p in ps]


def compute_t_interval(values: Array) -> Interval:
    """Return the 95 % interval of the mean of K >= 2 values. Source: Student 1908 (doi:10.2307/2331554)."""
    return run_t_test(values, 0.0, paired=False)[1]


def run_t_test(a: Array, b: Array | float, paired: bool) -> tuple[float, Interval, float]:
    """Return (mean a - mean b, its 95 % interval, two-sided p) of K >= 2 runs each, or of runs against a fixed number.

    Paired: a[k] and b[k] belong together; else Welch's test. Source: Student 1908; Welch 1947 (doi:10.2307/2332510).
    """
    if paired or isinstance(b, float):
        d = a - b
        return _test_by_t(d.mean(), d.std(ddof=1) / math.sqrt(len(d)), len(d) - 1)
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)  # of the means
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)) if va + vb > 0 else 1.0
    return _test_by_t(a.mean() - b.mean(), math.sqrt(va + vb), freedom)


def _test_by_t(mean: float, error: float, freedom: float) -> tuple[float, Interval, float]:
    from scipy.special import stdtr, stdtrit

    mean, error = float(mean), float(error)
    if error <= 1e-14 * abs(mean) or error == 0:  # all the same, but for rounding
        return mean, (mean, mean), 1.0 if mean == 0 else 0.0
    half = float(stdtrit(freedom, 1 - TAIL)) * error
    return mean, (mean - half, mean + half), float(2 * stdtr(freedom, -abs(mean) / error))
