"""Every interval and p-value against scipy, statsmodels or mlxtend, on hundreds of random cases and the edge ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from mlxtend.evaluate import mcnemar as mlxtend_mcnemar
from numpy.random import default_rng
from numpy.typing import NDArray
from scipy import stats
from sklearn.calibration import calibration_curve
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import zconfint

from dlcv_cli.statistics.metrics import compute_calibration_error, score_logits
from dlcv_cli.statistics.significance import (
    compute_paired_interval,
    compute_wilson_interval,
    correct_by_holm,
    run_mcnemar,
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


# -------------------------------------------------------------------------------------------------------- calibration


def test_calibration_error_matches_scikit_learn() -> None:
    """The expected calibration error is the sum over scikit-learn's bins, weighted by their images."""
    for seed in range(25):
        rng = default_rng(seed)
        n = int(rng.integers(6, 200))
        labels = rng.integers(0, 4, n)
        logits = rng.normal(0, 2, (n, 4)).astype(np.float32)
        logits[np.arange(n), labels] += 1
        scores = score_logits(logits, labels)
        accuracy, confidence = calibration_curve(scores.right, scores.confidences, n_bins=15)
        counts = np.bincount(np.clip(np.ceil(scores.confidences * 15) - 1, 0, 14).astype(int), minlength=15)
        expected = np.abs(accuracy - confidence) @ counts[counts > 0] / n
        assert compute_calibration_error(scores) == pytest.approx(expected, **CLOSE)


# ------------------------------------------------------------------------------------------------------- many tests


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
