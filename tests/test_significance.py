"""Every interval and p-value against scipy, statsmodels or mlxtend, on hundreds of random cases and the edge ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from mlxtend.evaluate import mcnemar as mlxtend_mcnemar
from numpy.random import default_rng
from numpy.typing import NDArray
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import r2_score, recall_score
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import zconfint

from dlcv_cli.statistics import significance
from dlcv_cli.statistics.metrics import build_calibration, build_r2, build_recall, score_logits
from dlcv_cli.statistics.significance import (
    Statistic,
    bootstrap,
    build_mean,
    compute_paired_interval,
    compute_t_interval,
    compute_wilson_interval,
    correct_by_holm,
    flip_signs,
    run_mcnemar,
    run_t_test,
)

Floats = NDArray[np.float64]
CLOSE = {"rel": 1e-9, "abs": 1e-12}


# ------------------------------------------------------------------------------------------------------------- shares


def test_wilson_matches_statsmodels() -> None:
    """Wilson's interval matches for all successes of 1 to 40 examples and for larger n."""
    cases = [(k, n) for n in range(1, 41) for k in range(n + 1)]
    cases += [(int(rng.integers(0, n + 1)), n) for rng, n in ((default_rng(i), 41 + 37 * i) for i in range(100))]
    for successes, n in cases:
        expected = proportion_confint(successes, n, method="wilson")
        assert compute_wilson_interval(successes, n) == pytest.approx(expected, **CLOSE), (successes, n)


def test_wilson_at_0_and_n() -> None:
    """The interval of 0 of n starts at 0, that of n of n ends at 1, and neither has zero width."""
    assert compute_wilson_interval(0, 7)[0] == 0 < compute_wilson_interval(0, 7)[1]
    assert compute_wilson_interval(7, 7)[0] < 1 == compute_wilson_interval(7, 7)[1]


def test_paired_interval_matches_statsmodels() -> None:
    """The interval is statsmodels' z interval of the differences with +1 and -1 added."""
    for seed in range(200):
        rng = default_rng(seed)
        n = int(rng.integers(1, 400))
        a, b, _ = rng.multinomial(n, rng.dirichlet([1, 1, 5]))
        differences = np.repeat([1.0, -1.0, 0.0], [a + 1, b + 1, n - a - b])
        expected = np.clip(zconfint(differences, ddof=0), -1, 1)
        assert compute_paired_interval(int(a), int(b), n) == pytest.approx(expected, **CLOSE)
    low, high = compute_paired_interval(0, 0, 1)
    assert -1 <= low < 0 < high <= 1, "identical systems, one example: no certainty"


def test_mcnemar_matches_statsmodels_and_mlxtend() -> None:
    """The exact p matches for tables up to 25; mid-p subtracts half the table's probability."""
    for a in range(26):
        for b in range(26):
            mid, exact = run_mcnemar(a, b)
            assert exact == pytest.approx(statsmodels_mcnemar([[3, a], [b, 5]], exact=True).pvalue, **CLOSE)
            expected = stats.binomtest(a, a + b).pvalue - stats.binom.pmf(a, a + b, 0.5) if a != b else 1.0
            assert mid == pytest.approx(expected, **CLOSE), (a, b)
    for a, b in ((9, 2), (12, 12), (1, 30), (170, 130)):
        _, p = mlxtend_mcnemar(np.array([[3, a], [b, 5]]), exact=True)
        assert run_mcnemar(a, b)[1] == pytest.approx(min(1, p), **CLOSE)
    assert run_mcnemar(0, 0) == (1, 1), "identical systems"


# ---------------------------------------------------------------------------------------------------------- bootstrap


def share_draws(monkeypatch: pytest.MonkeyPatch, n: int, draws: int) -> Floats:
    """Return resamples for both scipy and dlcv: the counts of rows of indices."""
    index = default_rng((n, draws)).integers(0, n, (draws, n))
    counts = np.array([np.bincount(row, minlength=n) for row in index], np.float64)
    monkeypatch.setattr(significance, "draw_counts", lambda size, count: [counts])
    return index


def compute_scipys_bca(statistic: Callable[[NDArray[np.int64]], float], index: Floats, n: int) -> tuple[float, float]:
    """Return scipy's BCa interval of a function of example numbers, from these resamples."""
    distribution = np.array([statistic(row) for row in index])
    result = stats.bootstrap(
        (np.arange(n),), lambda indices, axis=-1: np.apply_along_axis(statistic, axis, indices),
        bootstrap_result=type("Given", (), {"bootstrap_distribution": distribution})(), n_resamples=0, method="BCa",
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def make_case(kind: str, rng: np.random.Generator, n: int) -> tuple[Statistic, Callable[[NDArray[np.int64]], float]]:
    """Return a statistic, and the same by scikit-learn or NumPy as a function of example numbers."""
    labels = rng.integers(0, 4, n)
    logits = rng.normal(0, 2, (n, 4)).astype(np.float32)
    logits[np.arange(n), labels] += 1
    scores = score_logits(logits, labels)
    if kind == "mean":
        return build_mean(scores.losses), lambda i: float(scores.losses[i].mean())
    if kind == "recall":
        return build_recall(scores.right, labels), lambda i: float(
            recall_score(labels[i], scores.predicted[i], labels=np.unique(labels[i]), average="macro")
        )
    if kind == "calibration":

        def ece(i: NDArray[np.int64]) -> float:
            right, sure = scores.right[i], scores.confidences[i]
            accuracy, confidence = calibration_curve(right, sure, n_bins=15)
            counts = np.bincount(np.clip(np.ceil(sure * 15) - 1, 0, 14).astype(int), minlength=15)
            return float(np.abs(accuracy - confidence) @ counts[counts > 0] / len(i))

        return build_calibration(scores), ece
    targets = rng.random(n).astype(np.float32)
    predictions = (targets + rng.normal(0, 0.2, n)).astype(np.float32)
    return build_r2(predictions, targets), lambda i: float(
        r2_score(targets[i].astype(float), predictions[i].astype(float))
    )


@pytest.mark.parametrize("kind", ["mean", "recall", "calibration", "r2"])
def test_statistics_of_resamples_match_scikit_learn(kind: str) -> None:
    """A statistic of sums matches scikit-learn on resamples that may lack classes."""
    for seed in range(25):
        rng = default_rng(seed)
        n = int(rng.integers(6, 60))
        statistic, truth = make_case(kind, rng, n)
        index = rng.integers(0, n, n)
        sums = np.bincount(index, minlength=n) @ statistic.values
        assert float(statistic.of(sums)) == pytest.approx(truth(index), **CLOSE)
        assert statistic.estimate == pytest.approx(truth(np.arange(n)), **CLOSE)


@pytest.mark.parametrize(("kind", "repeats"), [("mean", 60), ("recall", 4), ("calibration", 4), ("r2", 6)])
def test_bca_matches_scipy(monkeypatch: pytest.MonkeyPatch, kind: str, repeats: int) -> None:
    """From the same resamples, the interval is that of scipy.stats.bootstrap."""
    for seed in range(repeats):
        rng = default_rng((1, seed))
        n = int(rng.integers(12, 50))
        statistic, truth = make_case(kind, rng, n)
        index = share_draws(monkeypatch, n, 199)
        [interval] = bootstrap([statistic])
        assert interval == pytest.approx(compute_scipys_bca(truth, index, n), rel=1e-7)


def test_bca_of_several_statistics() -> None:
    """Statistics that share their draws have the intervals of each alone."""
    statistics = [make_case(kind, default_rng(5), 40)[0] for kind in ("mean", "recall", "calibration", "r2")]
    assert bootstrap(statistics, 499) == [pytest.approx(bootstrap([statistic], 499)[0]) for statistic in statistics]
    assert bootstrap(statistics, 499) == bootstrap(statistics, 499), "the draws are a function of the data's size"


def test_bca_with_own_draws_matches_scipy() -> None:
    """With its own draws, the interval matches scipy's up to the chance of 9,999 draws."""
    values = default_rng(3).gamma(0.5, 1, 300)
    expected = stats.bootstrap((values,), np.mean, rng=default_rng(0)).confidence_interval
    [(low, high)] = bootstrap([build_mean(values)])
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.03 * (expected.high - expected.low))


@pytest.mark.parametrize("values", [[0.5], [2.0, 2.0, 2.0], [0.0, 0.0]])
def test_bca_without_spread(values: list[float]) -> None:
    """One example, or equal values, give an interval of zero width and no warning."""
    assert bootstrap([build_mean(np.array(values))]) == [(values[0], values[0])]


def test_bca_of_mostly_ties() -> None:
    """A statistic with nearly all draws tied has a finite interval around it."""
    values = np.zeros(300)
    values[0] = 1
    [(low, high)] = bootstrap([build_mean(values)])
    assert 0 <= low <= values.mean() <= high < 0.1


def test_bca_of_many_examples() -> None:
    """Above LARGEST examples, the interval of drawn groups matches that of all examples."""
    values = np.sort(default_rng(0).gamma(0.5, 1, 20_000))  # sorted as a split is by class: groups must not follow it
    grouped = bootstrap([build_mean(values)])[0]
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert grouped == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


# ------------------------------------------------------------------------------------------------------- permutations


def compute_scipys_flips(differences: Floats, draws: int) -> float:
    """Return scipy's two-sided p of swapping the members of pairs."""
    result = stats.permutation_test(
        (differences, np.zeros_like(differences)), lambda a, b, axis: np.sum(a - b, axis=axis), vectorized=True,
        permutation_type="samples", n_resamples=draws, rng=default_rng(0),
    )  # fmt: skip
    return float(result.pvalue)


def test_exact_sign_flips_match_scipy() -> None:
    """Up to 10 pairs, p is scipy's exact one, including ties and zeros."""
    for seed in range(150):
        rng = default_rng(seed)
        n = int(rng.integers(2, 11))
        values = rng.normal(0.3, 1, n) if seed % 3 else rng.integers(-2, 3, n) / 7
        result = flip_signs(values[None])[0]
        assert result == pytest.approx(compute_scipys_flips(values, 5000), **CLOSE), values


def test_random_sign_flips_match_scipy() -> None:
    """For more pairs, p matches scipy's up to chance and is never 0; rows are independent."""
    rng = default_rng(0)
    rows = rng.standard_t(3, (40, 60)) + np.linspace(0, 0.4, 40)[:, None]
    result = flip_signs(rows)
    for p, row in zip(result, rows, strict=True):
        assert p == pytest.approx(compute_scipys_flips(row, 4999), abs=4 * math.sqrt(2 * p / 4999))
    assert flip_signs(rows[3:4]) == [pytest.approx(result[3])]
    assert flip_signs(np.ones((1, 200))) == [1 / 10_000]


def test_sign_flips_without_a_difference() -> None:
    """Identical systems, and a single example, have p = 1."""
    assert flip_signs(np.zeros((2, 500))) == [1, 1]
    assert flip_signs(np.array([[0.3]])) == [1]


# -------------------------------------------------------------------------------------------------------------- seeds


def test_t_tests_match_scipy() -> None:
    """Differences, intervals and p match: paired, of different seeds, and against a fixed number."""
    for seed in range(150):
        rng = default_rng(seed)
        a, b = rng.lognormal(0, 0.5, int(rng.integers(2, 40))), rng.lognormal(0.1, 0.3, int(rng.integers(2, 40)))
        c = a * rng.lognormal(0, 0.2, len(a))
        for expected, result, gap in (
            (stats.ttest_rel(a, c), run_t_test(a, c, True), a.mean() - c.mean()),
            (stats.ttest_ind(a, b, equal_var=False), run_t_test(a, b, False), a.mean() - b.mean()),
            (stats.ttest_1samp(a - 1.1, 0), run_t_test(a, 1.1, False), a.mean() - 1.1),
        ):
            ends = expected.confidence_interval()
            assert result[0] == pytest.approx(gap, **CLOSE)
            assert result[1] == pytest.approx((ends.low, ends.high), rel=1e-8, abs=1e-12)
            assert result[2] == pytest.approx(expected.pvalue, rel=1e-8)
        mean, error = a.mean(), stats.sem(a)
        assert compute_t_interval(a) == pytest.approx(stats.t.interval(0.95, len(a) - 1, mean, error), **CLOSE)


def test_t_tests_without_spread() -> None:
    """Equal runs have p = 1 without a difference, else 0, and no warning of a division by 0."""
    same = np.full(5, 0.1)
    assert run_t_test(same, same, True) == (0, (0, 0), 1)
    assert run_t_test(same, same.copy(), False) == (0, (0, 0), 1)
    difference, interval, p = run_t_test(same, 0.3, False)
    assert (difference, interval, p) == (pytest.approx(-0.2), pytest.approx((-0.2, -0.2)), 0)


def test_holm_matches_statsmodels() -> None:
    """Corrected p-values match statsmodels, and Bonferroni over all hypotheses, in the given order."""
    for seed in range(200):
        rng = default_rng(seed)
        ps = rng.random(int(rng.integers(1, 7))).round(int(rng.integers(1, 6))).tolist()
        closed = [
            max(
                min(1.0, len(tested) * min(tested))
                for size in range(len(ps))
                for others in itertools.combinations(ps[:i] + ps[i + 1 :], size)
                if (tested := [p, *others])
            )
            for i, p in enumerate(ps)
        ]
        assert correct_by_holm(ps) == pytest.approx(closed, **CLOSE)
        if seed < 3:  # slow: it collects garbage, of which a process that has run tests has much
            assert correct_by_holm(ps) == pytest.approx(multipletests(ps, method="holm")[1], **CLOSE)
    assert correct_by_holm([]) == []
