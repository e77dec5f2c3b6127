"""Intervals and tests, as pure functions of arrays. docs/statistics.md says which is used where, and why.

Random draws are a function of the data's size alone, so the same predictions give the same numbers.
Letters: N examples, M sums, B draws, P pairs, K runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
Interval = tuple[float, float]

TAIL = 0.025  # on each side of a 95 % interval
Z = 1.959963984540054  # the normal distribution's 97.5 % point
DRAWS = 9_999
LARGEST = 5_000  # above this number of examples, groups of them are drawn
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


def compute_wilson_interval(successes: int, n: int) -> Interval:
    """Return the 95 % interval of a share of n >= 1 independent examples. Source: Wilson 1927 (doi:10.2307/2276774)."""
    z, p = Z, successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 0.0 if successes == 0 else middle - half, 1.0 if successes == n else middle + half


def estimate_share(values: Array) -> Interval:
    """Return the 95 % interval of the share of values (N,) bool that are true."""
    return compute_wilson_interval(int(values.sum()), len(values))


def compute_paired_interval(only_a: int, only_b: int, n: int) -> Interval:
    """Return the 95 % interval of share a - share b, where only_a and only_b of n examples succeed in one alone.

    Wald's interval after adding one example of either kind. It lies in [-1, 1] and always has a width.
    Source: Bonett & Price 2012 (doi:10.3102/1076998611411915).
    """
    a, b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = Z * math.sqrt((a + b - (a - b) ** 2) / (n + 2))
    return max(-1.0, a - b - half), min(1.0, a - b + half)


def run_mcnemar(only_a: int, only_b: int) -> tuple[float, float]:
    """Return (mid-p, exact p), two-sided; only_a and only_b are the examples on which one of the two alone succeeds.

    Source: McNemar 1947 (doi:10.1007/BF02295996); mid-p: Fagerland et al. 2013 (doi:10.1186/1471-2288-13-91).
    """
    from scipy.special import bdtr, gammaln

    n, least = only_a + only_b, min(only_a, only_b)
    below = 2 * float(bdtr(least, n, 0.5))
    point = math.exp(gammaln(n + 1) - gammaln(least + 1) - gammaln(n - least + 1) - n * math.log(2))
    return min(1.0, below - point), min(1.0, below)


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


def group_sums(values: Floats) -> Floats:
    """Return the values (N, M), or above LARGEST examples the sums of LARGEST random groups, to bound the time."""
    n = len(values)
    if n <= LARGEST:
        return values
    order = np.random.default_rng(n).permutation(n)
    grouped: Floats = np.add.reduceat(values[order], np.arange(LARGEST) * n // LARGEST)
    return grouped


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


def correct_by_holm(ps: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number: the chance of any false alarm among them is that of one test.

    Source: Holm 1979 (Scandinavian Journal of Statistics 6, 65-70).
    """
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, number in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[number]))
        corrected[number] = largest
    return corrected
