"""Intervals and tests, as pure functions of arrays. docs/statistics.md says which is used where, and why.

Letters: N examples, M sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
Interval = tuple[float, float]

TAIL = 0.025  # on each side of a 95 % interval
Z = 1.959963984540054  # the normal distribution's 97.5 % point
LARGEST = 5_000  # above this number of examples, groups of them are drawn


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


def group_sums(values: Floats) -> Floats:
    """Return the values (N, M), or above LARGEST examples the sums of LARGEST random groups, to bound the time."""
    n = len(values)
    if n <= LARGEST:
        return values
    order = np.random.default_rng(n).permutation(n)
    grouped: Floats = np.add.reduceat(values[order], np.arange(LARGEST) * n // LARGEST)
    return grouped


def correct_by_holm(ps: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number: the chance of any false alarm among them is that of one test.

    Source: Holm 1979 (Scandinavian Journal of Statistics 6, 65-70).
    """
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, number in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[number]))
        corrected[number] = largest
    return corrected
