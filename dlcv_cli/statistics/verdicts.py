"""What a tested difference does and does not show. Letters: K and L runs.

Results of a t test come as `Tested`: a difference, its standard error and its degrees of freedom.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.statistics.recipes import Tested
from dlcv_cli.statistics.significance import TAIL, Interval, Z

Array = NDArray[Any]
MOST = 10**9  # no comparison needs more runs or examples than this, or none can show it


def test_equivalence(tested: Tested, margin: float) -> float:
    """Return p of two one-sided tests: below 0.05, the true difference lies within +-margin (> 0).

    That is so exactly when the 90 % interval lies inside the margin.
    Source: Schuirmann 1987 (doi:10.1007/BF01068419).
    """
    from scipy.special import stdtr

    if margin <= 0:
        raise ValueError("a margin is a positive number")
    beyond = abs(tested.difference) - margin  # the nearer of the two borders decides
    if tested.error == 0:
        return 0.0 if beyond < 0 else 1.0
    return float(stdtr(tested.freedom, beyond / tested.error))


def compute_power(difference: float, error: float, freedom: float) -> float:
    """Return the chance that a two-sided t test at 0.05 shows a true difference, given its standard error > 0.

    Source: Student's noncentral t; Cohen 1988, Statistical Power Analysis, 2.
    """
    from scipy.special import nctdtr, stdtrit

    border, shift = float(stdtrit(freedom, 1 - TAIL)), abs(difference) / error
    if shift > border + 40:  # certain; the noncentral distribution is not computed so far out
        return 1.0
    wrong = nctdtr(freedom, shift, -border) if shift < 5 else 0.0  # of the other sign; further out it is not computed
    return float(1 - nctdtr(freedom, shift, border) + wrong)


def compute_power_limit(tested: Tested, power: float = 0.8) -> float:
    """Return the smallest true difference that this comparison would have shown with this power, at 0.05.

    It is a property of the standard error and the degrees of freedom, not of the difference that was seen.
    """
    if tested.error == 0:
        return 0.0
    low, high = 0.0, 1.0
    while compute_power(high, 1.0, tested.freedom) < power:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if compute_power(middle, 1.0, tested.freedom) >= power else (middle, high)
    return high * tested.error


def count_needed(tested: Tested, difference: float, per: int, power: float = 0.8) -> int:
    """Return how many runs (or examples) would show a true difference with this power, at 0.05; at most MOST.

    It assumes that the spread stays what it was, so that the standard error falls with the square root of the number,
    and the degrees of freedom grow as number - 1. So it holds for what was averaged: examples, or runs a side. In a
    crossed test more runs make only the runs' part of the error smaller, and the true number is larger.

    Args:
        difference: not 0. per: the number of runs (or examples) now, at least 2.
    """
    if difference == 0 or per < 2:
        raise ValueError("a difference of 0 cannot be shown, and the spread of a single run is not known")

    def suffices(number: int) -> bool:
        error = tested.error * math.sqrt(per / number)
        return error == 0 or compute_power(difference, error, tested.freedom * (number - 1) / (per - 1)) >= power

    low, high = 1, 2
    while not suffices(high):
        if high >= MOST:
            return MOST
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def compute_improvement(a: Array, b: Array) -> tuple[float, Interval]:
    """Return the chance that a run of A (K,) has a larger value than a run of B (L,), ties half, and its 95 % interval.

    The interval is all chances from which the observed one is within Z standard errors, so it has a width even if all
    runs of one side are better. Source: Mann & Whitney 1947 (doi:10.1214/aoms/1177730491); Newcombe 2006, method 5
    (doi:10.1002/sim.2324); use for runs: Agarwal et al. 2021 (arXiv:2108.13264).
    """
    gaps = np.asarray(a, np.float64)[:, None] - np.asarray(b, np.float64)
    chance = float(np.mean((gaps > 0) + 0.5 * (gaps == 0)))

    def is_far(theta: float) -> bool:
        more = (sum(gaps.shape) / 2) - 1
        spread = 1 + more * (1 - theta) / (2 - theta) + more * theta / (1 + theta)
        return (chance - theta) ** 2 > Z * Z * theta * (1 - theta) * spread / gaps.size

    ends = []
    for end in (0.0, 1.0):
        outside, inside = end, chance
        for _ in range(60) if is_far(end) else ():
            middle = (outside + inside) / 2
            outside, inside = (middle, inside) if is_far(middle) else (outside, middle)
        ends.append(inside if is_far(end) else end)
    return chance, (ends[0], ends[1])


def run_rank_test(a: Array, b: Array, paired: bool) -> float:
    """Return the exact two-sided p that runs of A and B differ: from ranks, so that a failed run counts as one run.

    Not paired: Mann and Whitney's test of a (K,) and b (L,); paired: Wilcoxon's signed ranks of a - b (K,), without
    equal pairs. Ties have their mean rank, and p is exact given the ties. Fewer than 6 pairs cannot reach 0.05 (at
    least 2 / 2**K); Mann and Whitney's test reaches it from 4 runs a side.
    Source: Mann & Whitney 1947 (doi:10.1214/aoms/1177730491); Wilcoxon 1945 (doi:10.2307/3001968).
    """
    if paired:
        differences = (a - b)[a != b]
        ranks = _double_ranks(np.abs(differences))
        counts = np.zeros(ranks.sum() + 1)
        counts[0] = 1
        for rank in ranks:  # each sign is + or -, so each sum of ranks may have this one or not
            counts[rank:] += counts[: len(counts) - rank].copy()
        return _double_tail(counts, int(ranks[differences > 0].sum()))
    ranks = _double_ranks(np.concatenate([a, b]))
    few = min(len(a), len(b))  # the sum of either side's ranks says that of the other
    table = np.zeros((few + 1, ranks.sum() + 1))  # how many choices of runs have this sum of ranks
    table[0, 0] = 1
    for rank in ranks:
        table[1:, rank:] += table[:-1, : table.shape[1] - rank].copy()
    own = ranks[: len(a)] if few == len(a) else ranks[len(a) :]
    return _double_tail(table[few], int(own.sum()))


def _double_ranks(values: Array) -> NDArray[np.int64]:
    """Return twice the rank of each value; equal ones share their mean rank, and twice that is whole."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    twice: NDArray[np.int64] = (2 * last - counts + 1)[index]
    return twice


def _double_tail(counts: NDArray[np.float64], observed: int) -> float:
    """Return twice the smaller tail of a distribution, in counts by value, at a value; at most 1."""
    return float(min(1.0, 2 * min(counts[: observed + 1].sum(), counts[observed:].sum()) / counts.sum()))


def compute_iqm(values: Array) -> float:
    """Return the interquartile mean of (K,): without the lowest and the highest quarter, each rounded down.

    Source: Agarwal et al. 2021 (arXiv:2108.13264).
    """
    cut = len(values) // 4
    return float(np.sort(values)[cut : len(values) - cut].mean())


def compute_effect_size(a: Array, b: Array) -> float:
    """Return Hedges' g of a (K,) and b (L,), at least 3 runs in all: the difference in pooled standard deviations.

    Corrected for small numbers. Infinite if no side varies and they differ. Source: Hedges 1981 (doi:10.2307/1164588).
    """
    from scipy.special import gammaln

    freedom, gap = len(a) + len(b) - 2, float(np.mean(a) - np.mean(b))
    pooled = math.sqrt((np.var(a) * len(a) + np.var(b) * len(b)) / freedom)
    if pooled == 0:
        return math.copysign(math.inf, gap) if gap else 0.0
    if freedom == 1:  # the correction's limit
        return 0.0
    correction = math.exp(gammaln(freedom / 2) - gammaln((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return gap / pooled * correction
