"""Means of examples, recalls, and recipes over runs, examples and folds, against scipy, statsmodels and equations."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from numpy.random import default_rng
from scipy import stats
from sklearn.metrics import r2_score, recall_score
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from dlcv_cli.statistics import means, recalls, recipes  # not their functions: pytest would collect those named test_

CLOSE = {"rel": 1e-9, "abs": 1e-12}

# -------------------------------------------------------------------------------------------------------------- means


def test_means_match_scipy() -> None:
    """The interval has the outer ends of scipy's t interval and of quantiles of scipy's t of the same resamples."""
    for seed in range(12):
        values = default_rng(seed).gamma(0.5, 1, 30 + 7 * seed) - 0.3 * (seed % 3)
        n, mean, error = len(values), values.mean(), stats.sem(values)
        chosen = default_rng(n).integers(0, n, (1999, n), dtype=np.uint16)
        drawn = np.sort(stats.ttest_1samp(values[chosen], mean, axis=1).statistic)
        quantile = stats.t.ppf(0.975, n - 1)
        expected = mean - max(quantile, drawn[-49]) * error, mean - min(-quantile, drawn[48]) * error
        assert means.compute_mean_interval(values) == pytest.approx(expected, rel=1e-8)


def test_few_examples_have_students_interval() -> None:
    """With fewer than 30 differences, the test is scipy's t test."""
    for seed in range(100):
        values = default_rng(seed).lognormal(0, 1, 2 + seed % 28) - 1
        expected, result = stats.ttest_1samp(values, 0), means.test_mean(values)
        ends = expected.confidence_interval()
        assert result[0] == pytest.approx(values.mean())
        assert result[1] == pytest.approx((ends.low, ends.high), rel=1e-8)
        assert result[2] == pytest.approx(expected.pvalue, rel=1e-8)


@pytest.mark.parametrize("n", [10, 30, 45, 200])
def test_p_and_interval_of_means_agree(n: int) -> None:
    """p is below 0.05 exactly when 0 lies outside, also where it lies just inside or outside either end."""
    for seed in range(40):
        values = default_rng((n, seed)).standard_t(2, n) + 0.3 * default_rng(seed).gamma(0.2, 3, n)
        low, high = means.compute_mean_interval(values)
        for shift in (0.0, *(end + sign * 1e-9 for end in (low, high) for sign in (-1, 1))):
            _, (below, above), p = means.test_mean(values - shift)
            assert (p < 0.05) is not (below <= 0 <= above), (seed, shift)


def test_means_of_one_value_and_of_zeros() -> None:
    """Equal values have no width; a few values among zeros have finite ends around the mean, and no warning."""
    assert means.test_mean(np.full(40, 0.1)) == (pytest.approx(0.1), pytest.approx((0.1, 0.1)), 0)
    assert means.test_mean(np.zeros(40)) == (0, (0, 0), 1)
    assert means.test_mean(np.array([0.5])) == (0.5, (0.5, 0.5), 0)
    values = np.zeros(40)
    values[:2] = 1, 2
    mean, (low, high), p = means.test_mean(values)
    assert np.isfinite([low, high]).all()
    assert low < 0 < mean < high
    assert p > 0.05
    assert "all but 2 of 40" in means.judge_sample(values)


def test_many_examples_are_grouped() -> None:
    """Above 5,000 examples, the interval comes from groups, and is that of a normal mean."""
    values = np.sort(default_rng(0).gamma(0.5, 1, 20_000))
    half = 1.96 * values.std() / math.sqrt(len(values))
    expected = values.mean() - half, values.mean() + half
    assert means.compute_mean_interval(values) == pytest.approx(expected, abs=0.1 * half)


def test_r2_intervals() -> None:
    """The interval of R2 is around scikit-learn's, as wide as the bootstrap says, and does not change with the unit."""
    for seed in range(20):
        rng = default_rng(seed)
        targets = rng.random(400) + 100 * (seed % 2)
        answers = targets + rng.normal(0, 0.1 + 0.02 * seed, 400)
        low, high = means.compute_r2_interval(answers, targets)
        chosen = rng.integers(0, 400, (600, 400))
        drawn = np.array([r2_score(targets[row], answers[row]) for row in chosen])
        assert low < r2_score(targets, answers) < high <= 1
        assert high - low == pytest.approx(2 * 1.96 * drawn.std(), rel=0.15)
        scaled = means.compute_r2_interval(7 * answers + 3, 7 * targets + 3)
        assert scaled == pytest.approx((low, high), rel=1e-6)
    flat = np.full(40, 0.1)
    assert means.compute_r2_interval(flat, flat) == (1, 1)
    assert means.compute_r2_interval(flat + 0.1, flat) == (0, 0)


def test_heavy_tails_are_named() -> None:
    """Squared normal errors are trusted; those with a kurtosis of 30 mostly not, until there are 2,000."""
    trusted = {"normal": 0, "heavy": 0, "heavy, many": 0}
    for seed in range(100):
        rng = default_rng(seed)
        normal, heavy = rng.normal(0, 1, 2000), rng.normal(0, 1, 2000) * np.exp(rng.normal(0, 0.7587, 2000))
        trusted["normal"] += not means.judge_sample(normal[:500] ** 2)
        trusted["heavy"] += not means.judge_sample(heavy[:200] ** 2)
        trusted["heavy, many"] += not means.judge_sample(heavy**2)
    assert trusted["normal"] > 95
    assert trusted["heavy"] < 30
    assert trusted["heavy, many"] > 85
    assert means.judge_sample(np.ones(29)) == "29 examples are too few"
    assert means.judge_sample(np.zeros(50)) == ""
    heavy = np.arange(1.0, 31) ** 6
    assert means.judge_sample(heavy).endswith(f"the largest has {100 * heavy[-1] / heavy.sum():.0f} % of the sum")


# ------------------------------------------------------------------------------------------------------------ recalls


def measure_by_hand(values: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the variance of the mean over classes, and its degrees of freedom, one class after the other."""
    classes = np.unique(labels)
    inside = {c: values[labels == c] for c in classes}
    degrees = {c: len(v) - 1 for c, v in inside.items()}
    pooled = sum(((v - v.mean()) ** 2).sum() for v in inside.values()) / sum(degrees.values())
    parts = [
        (((v - v.mean()) ** 2).sum() + 2 * pooled) / (degrees[c] + 2) / len(v) / len(classes) ** 2
        for c, v in inside.items()
    ]
    spread = sum(part**2 / (degrees[c] + 2) for part, c in zip(parts, classes, strict=True))
    if spread == 0:
        return 0.0, sum(degrees.values())
    return sum(parts), min(sum(parts) ** 2 / spread, sum(degrees.values()))


def test_recall_difference_matches_the_equation() -> None:
    """The test is Student's of the stratified mean, with one more example that differs; p and interval agree."""
    for seed in range(200):
        rng = default_rng(seed)
        labels = np.concatenate([[0, 0], rng.integers(0, 6, int(rng.integers(10, 80)))])
        truth = rng.random(len(labels))
        right, other = truth < 0.8, np.where(rng.random(len(labels)) < 0.5, truth, rng.random(len(labels))) < 0.6
        mean, (low, high), p = recalls.test_recall_difference(right * 1.0 - other, labels)
        ours = [recall_score(labels, np.where(r, labels, 9), average="macro", labels=np.unique(labels), zero_division=0)
                for r in (right, other)]  # fmt: skip
        assert mean == pytest.approx(ours[0] - ours[1], **CLOSE)
        variance, degrees = measure_by_hand(right * 1.0 - other, labels)
        _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        error = math.sqrt(variance + np.mean(1 / (counts[index] * len(counts)) ** 2))
        half = stats.t.ppf(0.975, max(1, degrees)) * error
        assert (low, high) == pytest.approx((max(-1, mean - half), min(1, mean + half)), rel=1e-7)
        assert p == pytest.approx(2 * stats.t.sf(abs(mean) / error, max(1, degrees)), rel=1e-7)
        assert (p < 0.05) is not (low <= 0 <= high)


def test_equal_answers_are_not_known_to_be_equal() -> None:
    """Systems that answer alike have p = 1 and an interval around 0, also with one image of each class."""
    for labels in (np.arange(40) % 4, np.arange(40), np.zeros(1, int)):
        mean, (low, high), p = recalls.test_recall_difference(np.zeros(len(labels)), labels)
        assert (mean, p) == (0, 1)
        assert -1 <= low < 0 < high <= 1


def test_recall_intervals() -> None:
    """The interval is around the mean of recalls, in 0..1, never empty, and of two classes not inside Wilson's."""
    for seed in range(100):
        rng = default_rng(seed)
        labels = rng.integers(0, 2 + seed % 6, 60)
        right = rng.random(60) < (1 if seed % 4 == 0 else 0.85)
        low, high = recalls.compute_recall_interval(right, labels)
        recall = np.mean([right[labels == c].mean() for c in np.unique(labels)])
        assert 0 <= low < recall <= high <= 1
        variance, degrees = measure_by_hand(right * 1.0, labels)
        _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        error = math.sqrt(variance + 2 * np.mean(1 / (counts[index] * len(counts)) ** 2))
        expected = recall - stats.t.ppf(0.975, degrees) * error
        assert low == pytest.approx(max(0, expected), rel=1e-7) if len(counts) >= 5 else low <= max(0, expected) + 1e-8
        if len(np.unique(labels)) < 5:
            arms = [(right[labels == c].mean(), stats.binomtest(int(right[labels == c].sum()), int((labels == c).sum()))
                     .proportion_ci(method="wilson")) for c in np.unique(labels)]  # fmt: skip
            down = math.sqrt(sum((mean - ends.low) ** 2 for mean, ends in arms)) / len(arms)
            assert low <= max(0, recall - down) + 1e-12


def test_variance_within_classes_is_right_on_average() -> None:
    """The mean of the measured variances is the variance of the sums, for weights that differ within classes too."""
    rng = default_rng(0)
    classes, weights = np.repeat([0, 1, 2], [3, 9, 20]), rng.dirichlet(np.ones(32))
    rows = rng.normal(0, 1, (4000, 32)) + np.array([3.0, 0, -2])[classes]
    measured = [recalls.measure_strata(row[None], weights, classes).variance for row in rows]
    assert np.mean(measured) == pytest.approx((rows @ weights).var(), rel=0.06)
    both = recalls.measure_strata(rows[:2], weights, classes)
    assert both.variance == pytest.approx(measured[0] + measured[1])


# ------------------------------------------------------------------------------------------------------------- crossed


def analyse(values: np.ndarray) -> tuple[float, float, float]:
    """Return statsmodels' mean squares of runs, examples and residuals of values (runs, examples)."""
    run, example = np.indices(values.shape)
    table = pd.DataFrame({"y": values.ravel(), "run": run.ravel(), "example": example.ravel()})
    squares = anova_lm(ols("y ~ C(run) + C(example)", table).fit())["mean_sq"]
    return float(squares["C(run)"]), float(squares["C(example)"]), float(squares["Residual"])


def test_crossed_intervals_match_statsmodels() -> None:
    """The error of a mean comes from statsmodels' mean squares: (runs + examples - residual) / (K N), and its floor."""
    floors = 0
    for seed in range(40):
        rng = default_rng(seed)
        k, n = int(rng.integers(3, 8)), int(rng.integers(4, 15))
        values = rng.normal(0, 1, (k, n)) + rng.normal(0, seed % 3, (k, 1)) + rng.normal(0, seed % 2, n)
        of_runs, of_examples, residual = analyse(values)
        plain = (of_runs + of_examples - residual) / (k * n)
        variance = max(plain, of_runs / (k * n), of_examples / (k * n))
        floors += variance > plain
        shares = np.array([of_runs, of_examples, residual]) / (k * n)
        freedom = variance**2 / (shares**2 / [k - 1, n - 1, (k - 1) * (n - 1)]).sum()
        half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
        expected = values.mean() - half, values.mean() + half
        assert recipes.compute_crossed_interval(values) == pytest.approx(expected, rel=1e-6)
        baseline = rng.normal(0, 1, (1, n))
        for tested in (recipes.test_crossed(values + baseline, baseline, False),
                       recipes.test_crossed(values + baseline, np.repeat(baseline, k, axis=0), True)):  # fmt: skip
            assert tested.interval == pytest.approx(expected, rel=1e-6)
            assert tested.freedom == pytest.approx(freedom)
        swapped = recipes.test_crossed(baseline, values + baseline, False)
        assert swapped.interval == pytest.approx((-expected[1], -expected[0]), rel=1e-6)
    assert floors > 5, "the floor is tried too"


def test_crossed_differences_match_the_equation() -> None:
    """Of other seeds, both sides' runs vary by themselves, and the examples by the difference of their means."""
    for seed in range(100):
        rng = default_rng(seed)
        k, other, n = (int(rng.integers(3, 12)) for _ in range(3))
        shared = rng.normal(0, 2, n)
        a = rng.normal(0.5, 1, (k, n)) + rng.normal(0, 1, (k, 1)) + shared
        b = rng.normal(0, 2, (other, n)) + rng.normal(0, 0.5, (other, 1)) + shared
        tested = recipes.test_crossed(a, b, False)
        gap = a.mean(0) - b.mean(0)
        parts = [(a.mean(1).var(ddof=1) / k, k - 1), (b.mean(1).var(ddof=1) / other, other - 1),
                 (gap.var(ddof=1) / n, n - 1)]  # fmt: skip
        for side in (a, b):
            residual = side - side.mean(0) - side.mean(1, keepdims=True) + side.mean()
            freedom = (len(side) - 1) * (n - 1)
            parts.append((-(residual**2).sum() / freedom / (len(side) * n), freedom))
        variance = max(sum(v for v, _ in parts), parts[0][0] + parts[1][0], parts[2][0])
        freedom = variance**2 / sum(v**2 / df for v, df in parts)
        assert tested.difference == pytest.approx(a.mean() - b.mean(), **CLOSE)
        assert (tested.error, tested.freedom) == pytest.approx((math.sqrt(variance), freedom), rel=1e-9)
        assert tested.p == pytest.approx(2 * stats.t.sf(abs(tested.difference) / tested.error, freedom), rel=1e-7)
        assert (tested.p < 0.05) is not (tested.interval[0] <= 0 <= tested.interval[1])
        weighted = recipes.test_crossed(a, b, False, np.full(n, 1 / n))
        assert (weighted.error, weighted.freedom) == pytest.approx((tested.error, tested.freedom))


def test_crossed_recalls() -> None:
    """With labels, the estimate is the mean over classes, and what differs between classes adds no error."""
    rng = default_rng(0)
    labels = np.repeat([0, 1, 2], [4, 10, 26])
    a = rng.normal(0, 0.1, (5, 40)) + rng.normal(0, 0.01, (5, 1)) + np.array([0.0, 5, 10])[labels]
    b = rng.normal(0, 0.1, (4, 40))
    weights = recalls.weigh_by_class(labels)
    by_class, alone = recipes.test_crossed(a, b, False, labels=labels), recipes.test_crossed(a, b, False, weights)
    expected = np.mean([a[:, labels == c].mean() - b[:, labels == c].mean() for c in range(3)])
    assert by_class.difference == pytest.approx(expected) == pytest.approx(alone.difference)
    assert by_class.error < 0.1 < alone.error, "weights alone do not say what the classes are"
    assert recipes.test_crossed(a, b, False, weights, labels) == by_class


def test_crossed_needs_two_runs() -> None:
    """Single runs, and paired sides of different sizes, are errors; equal values have p = 1, or 0 if they differ."""
    values = np.ones((3, 5))
    for a, b, paired in ((values[:1], values[:1], False), (values[:2], values, True)):
        with pytest.raises(ValueError, match="runs"):
            recipes.test_crossed(a, b, paired)
    assert recipes.test_crossed(values, values, False).p == 1
    assert recipes.test_crossed(values, values - 0.5, False).p == 0


# --------------------------------------------------------------------------------------------------------- runs, folds


def test_resampled_matches_the_equation() -> None:
    """The folds' t is the mean by sqrt((1 / J + test share) variance), with J - 1 degrees of freedom."""
    for seed in range(200):
        rng = default_rng(seed)
        values, share = rng.normal(0.3, 1, int(rng.integers(2, 30))), rng.uniform(0, 1)
        tested = recipes.test_resampled(values, share)
        error = math.sqrt((1 / len(values) + share) * values.var(ddof=1))
        half = stats.t.ppf(0.975, len(values) - 1) * error
        assert tested.interval == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-7)
        assert tested.p == pytest.approx(2 * stats.t.sf(abs(values.mean()) / error, len(values) - 1), rel=1e-7)
        assert recipes.compute_resampled_interval(values, share) == tested.interval
        if not share:
            assert tested.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    with pytest.raises(ValueError, match="single fold"):
        recipes.test_resampled(np.ones(1), 0.2)


def test_runs_that_are_not_to_be_trusted() -> None:
    """A run far from the others is counted; few runs may miss a failure; 29 alike are trusted."""
    alike = default_rng(0).normal(0, 1, 29)
    assert recipes.judge_runs(alike) == ""
    assert recipes.judge_runs(alike[:28]) == "28 runs may miss a failure of up to 10 % of the seeds"
    assert recipes.judge_runs(alike[:10]) == "10 runs may miss a failure of up to 26 % of the seeds"
    assert recipes.judge_runs(np.append(alike, 50)) == "1 of 30 runs lies far from the others"
    assert recipes.judge_runs(np.append(alike, [50, -50])) == "2 of 31 runs lie far from the others"
