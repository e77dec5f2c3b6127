"""Equivalence, power, ranks and effect sizes, against scipy, statsmodels and counting on hundreds of random cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.random import default_rng
from scipy import stats
from statsmodels.stats.power import TTestPower, tt_solve_power
from statsmodels.stats.weightstats import ttost_paired

from dlcv_cli.statistics import recipes, verdicts  # not their functions: pytest would collect those named test_

CLOSE = {"rel": 1e-9, "abs": 1e-12}


def test_equivalence_matches_statsmodels() -> None:
    """The p of two one-sided tests is statsmodels', and below 0.05 when the 90 % interval is inside the margin."""
    for seed in range(300):
        rng = default_rng(seed)
        a = rng.lognormal(0, 1, int(rng.integers(2, 40)))
        b, margin = a + rng.normal(0.2, 1, len(a)), rng.uniform(0.01, 3)
        tested = recipes.build_tested(float((a - b).mean()), float(stats.sem(a - b)), len(a) - 1.0, "")
        p = verdicts.test_equivalence(tested, margin)
        assert p == pytest.approx(ttost_paired(a, b, -margin, margin)[0], rel=1e-7, abs=1e-12)
        low, high = stats.t.interval(0.9, len(a) - 1, (a - b).mean(), stats.sem(a - b))
        assert (p < 0.05) is bool(-margin < low and high < margin)
    same = recipes.build_tested(0.3, 0.0, 4.0, "")
    assert (verdicts.test_equivalence(same, 0.4), verdicts.test_equivalence(same, 0.3)) == (0, 1)
    with pytest.raises(ValueError, match="positive"):
        verdicts.test_equivalence(same, 0)


def test_power_matches_statsmodels() -> None:
    """Power, the smallest difference shown with it, and the number needed match statsmodels."""
    for seed in range(120):
        rng = default_rng(seed)
        runs, spread, power = int(rng.integers(3, 60)), rng.uniform(0.1, 5), rng.choice([0.5, 0.8, 0.9])
        tested = recipes.build_tested(rng.normal(), spread / math.sqrt(runs), runs - 1.0, "")
        effect = rng.uniform(0.05, 1.5)
        expected = TTestPower().power(effect, runs, 0.05)
        if math.isnan(expected):  # statsmodels does not compute the other tail so far out
            expected = TTestPower().power(effect, runs, 0.025, alternative="larger")
        assert verdicts.compute_power(effect * spread, tested.error, tested.freedom) == pytest.approx(
            expected, rel=1e-6
        )
        limit = verdicts.compute_power_limit(tested, power)
        assert TTestPower().power(limit / spread, runs, 0.05) == pytest.approx(power, rel=1e-6)
        needed = verdicts.count_needed(tested, effect * spread, runs, power)
        exact = float(np.squeeze(tt_solve_power(effect, None, 0.05, power)))
        assert needed == max(2, math.ceil(exact - 1e-6)), (effect, power)


def test_power_at_the_edges() -> None:
    """Without spread any difference shows; a hopeless one has a bound; 0 and a single run are errors."""
    same = recipes.build_tested(0.3, 0.0, 4.0, "")
    assert (verdicts.compute_power_limit(same), verdicts.count_needed(same, 0.1, 5)) == (0, 2)
    tested = recipes.build_tested(0.3, 1.0, 4.0, "")
    assert verdicts.count_needed(tested, 1e-9, 5) == verdicts.MOST
    assert verdicts.compute_power(1e6, 1.0, 4.0) == 1
    assert verdicts.compute_power(0.0, 1.0, 4.0) == pytest.approx(0.05)
    assert verdicts.count_needed(tested, -1.0, 5) == verdicts.count_needed(tested, 1.0, 5)
    for difference, per in ((0.0, 5), (1.0, 1)):
        with pytest.raises(ValueError, match="cannot be shown"):
            verdicts.count_needed(tested, difference, per)


def test_rank_tests_match_scipy() -> None:
    """Without ties, both exact tests match scipy's, whichever side has more runs."""
    for seed in range(300):
        rng = default_rng(seed)
        a = rng.normal(0.5, 1, int(rng.integers(1, 33)))
        b = rng.normal(0, 1, int(rng.integers(1, 33)))
        expected = stats.mannwhitneyu(a, b, method="exact").pvalue
        assert verdicts.run_rank_test(a, b, False) == pytest.approx(expected, **CLOSE)
        c = a - rng.normal(0.3, 1, len(a))
        assert verdicts.run_rank_test(a, c, True) == pytest.approx(stats.wilcoxon(a, c, method="exact").pvalue, **CLOSE)


def test_rank_tests_with_ties() -> None:
    """With ties, p is the doubled share of all assignments of runs, or of signs, with a rank sum as far out."""
    for seed in range(120):
        rng = default_rng(seed)
        a, b = rng.integers(0, 4, int(rng.integers(1, 6))), rng.integers(0, 4, int(rng.integers(1, 6)))
        ranks = stats.rankdata(np.concatenate([a, b]))
        sums = np.array([sum(chosen) for chosen in itertools.combinations(ranks, len(a))])
        own = ranks[: len(a)].sum()
        expected = min(1, 2 * min(np.mean(sums <= own + 1e-9), np.mean(sums >= own - 1e-9)))
        assert verdicts.run_rank_test(a, b, False) == pytest.approx(expected, **CLOSE)
        c, d = rng.integers(0, 4, (2, int(rng.integers(1, 9))))
        gaps = (c - d)[c != d]
        ranks = stats.rankdata(np.abs(gaps))
        sums = np.array([ranks @ signs for signs in itertools.product((0, 1), repeat=len(gaps))])
        own = ranks @ (gaps > 0)
        expected = min(1, 2 * min(np.mean(sums <= own + 1e-9), np.mean(sums >= own - 1e-9)))
        assert verdicts.run_rank_test(c, d, True) == pytest.approx(expected, **CLOSE)


def test_ranks_of_failed_runs() -> None:
    """Four failed runs against 32 good ones have p = 2 of all choices of 4 from 36, however far they fell."""
    good = default_rng(0).normal(0.9, 0.01, 32)
    p = verdicts.run_rank_test(np.array([0.1, 0.2, 0.1, -1e9]), good, False)
    assert p == pytest.approx(2 / math.comb(36, 4)) == pytest.approx(3.4e-5, rel=0.01)
    assert verdicts.run_rank_test(good[:5], good[:5], True) == 1
    assert verdicts.run_rank_test(good[:5], good[:5] - 1, True) == 2 / 2**5, "five pairs cannot reach 0.05"


def test_improvement_matches_scipy() -> None:
    """The chance is Mann and Whitney's U, ties half; the ends solve Newcombe's equation; A and B can be swapped."""
    for seed in range(200):
        rng = default_rng(seed)
        k, other = (int(rng.integers(2, 33)) for _ in range(2))
        a, b = rng.normal(rng.choice([0, 1, 3]), 1, k).round(1), rng.normal(0, 1, other).round(1)
        chance, (low, high) = verdicts.compute_improvement(a, b)
        assert chance == pytest.approx(stats.mannwhitneyu(a, b).statistic / (k * other), **CLOSE)
        assert 0 <= low <= chance <= high <= 1
        for end in (low, high):
            if 0 < end < 1:
                extra = ((k + other) / 2 - 1) * ((1 - end) / (2 - end) + end / (1 + end))
                variance = end * (1 - end) * (1 + extra) / (k * other)
                assert abs(chance - end) == pytest.approx(stats.norm.ppf(0.975) * math.sqrt(variance), rel=1e-6)
        mirrored, (lower, upper) = verdicts.compute_improvement(b, a)
        assert (mirrored, lower, upper) == pytest.approx((1 - chance, 1 - high, 1 - low), abs=1e-9)
    chance, (low, high) = verdicts.compute_improvement(np.arange(5) + 9.0, np.arange(5))
    assert (chance, high) == (1, 1)
    assert 0.5 < low < 0.8, "five better runs leave room"


def test_means_and_effects_match_scipy() -> None:
    """The interquartile mean is scipy's trimmed mean, and g is the corrected difference in pooled deviations."""
    for seed in range(200):
        rng = default_rng(seed)
        a, b = rng.lognormal(0, 1, int(rng.integers(2, 40))), rng.lognormal(0.5, 1, int(rng.integers(2, 40)))
        assert verdicts.compute_iqm(a) == pytest.approx(stats.trim_mean(a, 0.25), **CLOSE)
        m = len(a) + len(b) - 2
        pooled = math.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / m)
        exact = math.gamma(m / 2) / (math.sqrt(m / 2) * math.gamma((m - 1) / 2))
        assert verdicts.compute_effect_size(a, b) == pytest.approx((a.mean() - b.mean()) / pooled * exact, **CLOSE)
    same = np.full(3, 0.5)
    assert verdicts.compute_effect_size(same, same) == 0
    assert verdicts.compute_effect_size(same, same + 1) == -math.inf
