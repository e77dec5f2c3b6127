"""The laws that coverage.py draws from: what dlcv measures, made up, with a known truth."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from dlcv_cli.statistics.metrics import Scores, score_predictions

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

EXAMPLES = (30, 50, 100, 500, 2000)
RUNS = (3, 5, 10, 32)

# spread of the errors' log scale, by the kurtosis of the errors: 3 exp(4 s^2). The demo's three cells have 4.3 to 5.4
SCALES = {kurtosis: float(np.sqrt(np.log(kurtosis / 3)) / 2) for kurtosis in (3, 5.7, 10, 30)}

_CALTECH = np.random.default_rng(0).pareto(1.2, 101) + 0.3
CLASS_SIZES: dict[str, list[int]] = {
    "27, 3": [27, 3],
    "45, 5": [45, 5],
    "25, 25": [25, 25],
    "950, 50": [950, 50],
    "10 of 3": [3] * 10,
    "10 of 5": [5] * 10,
    "20 of 5": [5] * 20,
    "101 of 5": [5] * 101,
    "Caltech101": (3 + np.random.default_rng(1).multinomial(1736 - 303, _CALTECH / _CALTECH.sum())).tolist(),
    "10 of 200": [200] * 10,
}


def draw_errors(rng: Generator, n: int, law: str) -> tuple[Floats, float]:
    """Return squared errors (n,) with a mean of 1 of a kurtosis, or cross-entropies; and their true mean."""
    if law == "loss":
        return rng.gamma(0.25, 1.7, n), 0.25 * 1.7  # most near 0, skewness 4
    spread = SCALES[float(law.removeprefix("kurtosis "))]
    return (rng.normal(0, 1, n) * np.exp(rng.normal(0, spread, n) - spread**2)) ** 2, 1.0


def draw_shared_errors(rng: Generator, n: int, law: str) -> tuple[Floats, float]:
    """Return differences (n,) of the squared errors of two cells, correlated by 0.5, and their true mean.

    The law is `equal 5.7`, with that kurtosis on both sides; `lighter 5.7`, where the second's errors are normal and
    independent, with the same mean square; or `better 5.7`, where the second's mean square is 0.8 of the first's.
    """
    kind, kurtosis = law.split()
    spread = SCALES[float(kurtosis)]
    shared, own = rng.normal(0, spread, (2, n))
    first = rng.normal(0, 1, n)
    second = 0.5 * first + np.sqrt(0.75) * rng.normal(0, 1, n)
    a = first * np.exp(shared - spread**2)
    if kind == "lighter":
        return a**2 - rng.normal(0, 1, n) ** 2, 0.0
    b = second * np.exp((shared + own) / np.sqrt(2) - spread**2)
    share = 0.8 if kind == "better" else 1.0
    return a**2 - share * b**2, 1 - share


def draw_answers(rng: Generator, a: Floats, b: Floats) -> tuple[Bools, Bools]:
    """Return which answers of two networks are right, with these chances (n,): seven in ten are as hard for both."""
    first = rng.random(len(a))
    second = np.where(rng.random(len(a)) < 0.7, first, rng.random(len(a)))
    return first < a, second < b


def draw_confidences(rng: Generator, n: int, wrong: float) -> Scores:
    """Return scores of n images whose confidence is too high by `wrong`, wherever it lies."""
    confidences, labels = 0.25 + 0.75 * rng.beta(4, 1, n), np.zeros(n, np.int64)
    right = rng.random(n) < confidences - wrong
    return replace(score_predictions(labels, labels, 101), right=right, confidences=confidences)


FAILING = 0.1


def draw_runs(rng: Generator, k: int, law: str) -> Floats:
    """Return what the seed adds to each of k runs: a mean of 0 and a deviation of 1, but for the law `failing`.

    There a run fails with the chance FAILING, and is 10 deviations worse; the mean is still 0.
    """
    if law == "normal":
        return rng.normal(0, 1, k)
    if law == "failing":
        return rng.normal(0, 1, k) + 10 * ((rng.random(k) < FAILING) - FAILING)
    spread = {"lognormal 0.3": 0.3, "lognormal 0.8": 0.8}[law]
    variance = np.exp(spread**2) - 1
    return np.asarray((np.exp(rng.normal(0, spread, k) - spread**2 / 2) - 1) / np.sqrt(variance))


def draw_crossed(rng: Generator, shape: tuple[int, int], law: str, examples: Floats) -> Floats:
    """Return values (k, n) of runs on examples, whose own effects (n,) are shared between recipes; a mean of 0.

    Seeds move the mean of a run by a tenth of what examples differ by, so at n = 100 both count alike.
    """
    k, n = shape
    return draw_runs(rng, k, law)[:, None] * 0.1 + examples + rng.normal(0, 1, (k, n)) + rng.normal(0, 0.7, n)


def resample_crossed(rng: Generator, sides: list[Floats], draws: int) -> tuple[float, float]:
    """Return the percentile interval of the sum of means of (k, n), with runs and examples drawn with replacement.

    Source: Owen 2007 (doi:10.1214/07-AOAS122), the pigeonhole bootstrap.
    """
    n = sides[0].shape[1]
    weights = rng.multinomial(n, np.full(n, 1 / n), draws) / n
    total = np.zeros(draws)
    for side in sides:
        k = len(side)
        chosen = rng.multinomial(k, np.full(k, 1 / k), draws) / k
        total += np.einsum("bn,bn->b", chosen @ side, weights)
    low, high = np.quantile(total, [0.025, 0.975])
    return float(low), float(high)


_CENTRES = np.random.default_rng(0).normal(0, 0.45, (4, 10))


def compare_on_folds(rng: Generator, folds: int, splits: bool = False) -> tuple[Floats, Floats]:
    """Return the accuracies (folds,) of two nearest-centroid classifiers with equal true accuracy.

    200 examples in 4 classes; each classifier sees ten features of its own, with the same centres. Instead of folds,
    it may be as many random splits into 160 and 40.
    """
    n, classes = 200, len(_CENTRES)
    labels = rng.permutation(np.arange(n) % classes)
    part = np.arange(n) * folds // n
    tests = [rng.permutation(n) < n // 5 if splits else part == fold for fold in range(folds)]
    scores = np.empty((2, folds))
    for side in range(2):
        x = _CENTRES[labels] + rng.normal(0, 1, (n, 10))
        for fold, test in enumerate(tests):
            train = ~test
            means = np.array([x[train & (labels == c)].mean(0) for c in range(classes)])
            nearest = ((x[test, None] - means) ** 2).sum(2).argmin(1)
            scores[side, fold] = np.mean(nearest == labels[test])
    return scores[0], scores[1]


@lru_cache
def know_accuracy(folds: int) -> float:
    """Return the true accuracy of either classifier, trained on all folds but one: the mean of 2,000 trainings."""
    return float(np.mean([compare_on_folds(np.random.default_rng((7, k)), folds) for k in range(2000)]))
