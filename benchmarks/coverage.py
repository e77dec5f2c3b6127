"""Do 95 % intervals hold 95 % of the time, and do tests at the 5 % level raise 5 % false alarms? By simulation.

    python benchmarks/coverage.py [--comparisons 2000] [--draws 999] [--only WORD]

Each case draws data sets from a known truth, makes an interval or a test of each with dlcv's own functions, and counts
how often the truth lies in the interval, and how often p <= 0.05 where there is no difference. The cases are made to
look like what dlcv measures: correlated answers of two networks, classes of very different sizes, losses and squared
errors with heavy tails, ten to 32 seeds. Beside each share stands twice its standard error. The bar: 93 to 97 % held,
3 to 6 % false alarms.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from dlcv_cli.statistics.metrics import build_calibration, build_r2, build_recall, score_predictions
from dlcv_cli.statistics.significance import (
    Interval,
    bootstrap,
    build_mean,
    compute_paired_interval,
    compute_t_interval,
    compute_wilson_interval,
    flip_signs,
    run_mcnemar,
    run_t_test,
)

if __name__ != "__main__":
    # numba asks for the package of this name, and finds this file when another benchmark is run from the same folder
    raise ImportError("not the package coverage")

Floats = NDArray[np.float64]
Outcome = tuple[str, bool]  # what was looked at, and whether it was so
Case = Callable[[Generator, int], Iterator[Outcome]]
CLASSES = 101


def holds(interval: Interval, truth: float) -> bool:
    """Whether the truth lies in the interval."""
    return interval[0] <= truth <= interval[1]


def size(rng: Generator) -> int:
    """How many test examples: from a small study's to Caltech101's."""
    return int(rng.choice([200, 500, 1736]))


# ------------------------------------------------------------------------------------------------------------- images


def rights(rng: Generator, n: int, a: Floats | float, b: Floats | float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which answers of two networks are right, with these chances: seven in ten images are as hard for both."""
    first = rng.random(n)
    second = np.where(rng.random(n) < 0.7, first, rng.random(n))
    return first < a, second < b


def accuracy(rng: Generator, draws: int) -> Iterator[Outcome]:
    n, truth = size(rng), rng.uniform(0.5, 0.98)
    yield "interval", holds(compute_wilson_interval(int(rng.binomial(n, truth)), n), truth)


def accuracies(rng: Generator, draws: int) -> Iterator[Outcome]:
    n, a = size(rng), rng.uniform(0.5, 0.98)
    gap = rng.uniform(0, 0.02)
    for name, b in (("interval, no difference", a), ("interval, a difference", a - gap)):
        one, other = rights(rng, n, a, b)
        only, lost = int((one & ~other).sum()), int((other & ~one).sum())
        yield name, holds(compute_paired_interval(only, lost, n), a - b)
        if name == "interval, no difference":
            mid, exact = run_mcnemar(only, lost)
            yield "alarms, McNemar mid-p", mid <= 0.05
            yield "alarms, McNemar exact (not what is reported)", exact <= 0.05


def classes(rng: Generator, n: int) -> tuple[NDArray[np.int64], Floats]:
    """Labels of n images in classes of very different sizes, at least one each; and each class's accuracy."""
    share = np.random.default_rng(0).pareto(1.2, CLASSES) + 0.3
    more = rng.choice(CLASSES, n - 3 * CLASSES, p=share / share.sum())
    return np.concatenate([np.repeat(np.arange(CLASSES), 3), more]), rng.beta(6, 1.2, CLASSES)


def recall(rng: Generator, draws: int) -> Iterator[Outcome]:
    labels, chances = classes(rng, 1736)
    one, other = rights(rng, len(labels), chances[labels], chances[labels])
    own, difference = bootstrap([build_recall(one, labels), build_recall(one * 1.0 - other, labels)], draws)
    yield "interval", holds(own, chances.mean())
    yield "difference's interval, no difference", holds(difference, 0)
    yield "alarms, permutation, no difference in any class", flips(one, other, labels, draws) <= 0.05


def recall_by_class(rng: Generator, draws: int) -> Iterator[Outcome]:
    labels, chances = classes(rng, 1736)
    shift = rng.normal(0, 0.05, CLASSES)
    other_chances = np.clip(chances + shift, 0, 1)
    truth = chances.mean() - other_chances.mean()
    one, other = rights(rng, len(labels), chances[labels], other_chances[labels])
    yield (
        "difference's interval, classes differ",
        holds(bootstrap([build_recall(one * 1.0 - other, labels)], draws)[0], truth),
    )


def flips(one: NDArray[np.bool_], other: NDArray[np.bool_], labels: NDArray[np.int64], draws: int) -> float:
    """p of the paired permutation of mean per-class recalls, as the comparison has it."""
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return flip_signs(((one * 1.0 - other) / (counts[index] * len(counts)))[None], draws)[0]


def loss(rng: Generator, draws: int) -> Iterator[Outcome]:
    losses = rng.gamma(0.25, 1.7, size(rng))  # most near 0, mean 0.43, skewness 4
    yield "interval", holds(bootstrap([build_mean(losses)], draws)[0], 0.25 * 1.7)


def calibration(rng: Generator, draws: int) -> Iterator[Outcome]:
    for name, wrong in (("8 points: BCa (not what is reported)", 0.08), ("2 points: BCa (not what is reported)", 0.02)):
        confidences = 0.25 + 0.75 * rng.beta(4, 1, 1736)
        right = rng.random(1736) < confidences - wrong
        labels = np.zeros(len(right), np.int64)
        scores = replace(score_predictions(labels, labels, CLASSES), right=right, confidences=confidences)
        yield name, holds(bootstrap([build_calibration(scores)], draws)[0], wrong)


# ---------------------------------------------------------------------------------------------------------- sequences

HEAVY = 0.4  # spread of the errors' log scale: a kurtosis of 5.7; the demo's three cells have 4.3 to 5.4


def errors(rng: Generator, n: int, heavy: float = HEAVY) -> tuple[Floats, Floats]:
    """Errors (n,) of two cells with a mean square of 1 each: scales shared for one half, errors correlated by 0.5."""
    scale, own = rng.normal(0, heavy, n), rng.normal(0, heavy, n)
    a, b = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], n).T
    unit = np.exp(-(heavy**2))  # E exp(2 s) = exp(2 heavy^2)
    return a * np.exp(scale) * unit, b * np.exp((scale + own) / np.sqrt(2)) * unit


def mse(rng: Generator, draws: int) -> Iterator[Outcome]:
    n = int(rng.choice([500, 2000]))
    a, b = errors(rng, n)
    light = rng.normal(0, 1, n)
    own, equal, other = bootstrap([build_mean(a**2), build_mean(a**2 - b**2), build_mean(a**2 - 0.8 * b**2)], draws)
    alike, heavier = flip_signs(np.array([a**2 - b**2, a**2 - light**2]), draws)
    yield "interval", holds(own, 1)
    yield "difference's interval, no difference", holds(equal, 0)
    yield "difference's interval, a difference", holds(other, 0.2)
    yield "alarms, permutation", alike <= 0.05
    yield "alarms, permutation, one with heavier tails", heavier <= 0.05


def r2(rng: Generator, draws: int) -> Iterator[Outcome]:
    n = int(rng.choice([500, 2000]))
    targets = rng.random(n) + rng.random(n)
    answers = (targets + 0.1 * errors(rng, n)[0]).astype(np.float32)
    yield "interval", holds(bootstrap([build_r2(answers, targets.astype(np.float32))], draws)[0], 1 - 0.01 * 6)


# -------------------------------------------------------------------------------------------------------------- seeds


def seeds(rng: Generator, draws: int) -> Iterator[Outcome]:
    k = int(rng.integers(10, 33))
    order = rng.normal(0, 1, k)  # a seed's order of examples, which both cells see
    a, b = (np.exp(0.3 * (0.5 * order + rng.normal(0, 0.87, k))) for _ in range(2))
    truth = np.exp(0.3**2 / 2 * (0.25 + 0.87**2))
    yield "t interval", holds(compute_t_interval(a), truth)
    _, interval, p = run_t_test(a, b, paired=True)
    yield "paired t, difference's interval", holds(interval, 0)
    yield "alarms, paired t", p <= 0.05
    yield "alarms, t against a fixed answer", run_t_test(a, float(truth), paired=False)[2] <= 0.05


def other_seeds(rng: Generator, draws: int) -> Iterator[Outcome]:
    a = rng.lognormal(-(0.3**2) / 2, 0.3, int(rng.integers(10, 33)))
    b = rng.lognormal(-(0.15**2) / 2, 0.15, int(rng.integers(10, 33)))
    _, interval, p = run_t_test(a, b, paired=False)
    yield "Welch, difference's interval", holds(interval, 0)
    yield "alarms, Welch", p <= 0.05


CASES: dict[str, Case] = {
    "accuracy": accuracy,
    "accuracies": accuracies,
    "per-class recall": recall,
    "per-class recall, by class": recall_by_class,
    "loss": loss,
    "calibration error": calibration,
    "MSE": mse,
    "R2": r2,
    "seeds": seeds,
    "other seeds": other_seeds,
}


def main() -> None:
    """Runs the cases and prints a line for each interval and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=999, help="of a bootstrap or permutation; dlcv takes 9,999")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    options = parser.parse_args()
    for number, (name, case) in enumerate(CASES.items()):
        if options.only not in name:
            continue
        begun, actual = time.perf_counter(), defaultdict(list)
        for repeat in range(options.comparisons):
            for what, so in case(np.random.default_rng((number, repeat)), options.draws):
                actual[what].append(so)
        for what, many in actual.items():
            share, alarms = 100 * float(np.mean(many)), "alarms" in what
            error = 2 * np.sqrt(share * (100 - share) / len(many))
            low, high = (3, 6) if alarms else (93, 97)
            verdict = "" if low <= share <= high or "not what" in what else f"  outside {low} to {high}"
            print(f"{name:28} {what:48} {share:6.2f} % +- {error:.2f}{verdict}", flush=True)
        print(f"{name:28} {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
