"""Tests of two rows of a comparison: difference, 95 % interval and p. Letters: K, L runs, N examples.

The strongest question is asked that the runs of both can answer: over splits, seeds and examples, or examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.statistics.means import judge_sample, sum_groups, test_mean
from dlcv_cli.statistics.metrics import Labels
from dlcv_cli.statistics.recalls import test_recall_difference, weigh_by_class
from dlcv_cli.statistics.recipes import Tested, build_tested, test_crossed, test_resampled
from dlcv_cli.statistics.significance import Interval, compute_paired_interval, run_mcnemar

Array = NDArray[Any]
Over = Literal["examples", "seeds and examples", "splits"]


@dataclass(frozen=True)
class Fold:
    """The examples of a fold: how many, their strata (N,) if the metric has them, and the training examples' number."""

    n: int
    trained: int
    strata: Labels | None = None
    groups: Labels | None = None  # (N,), of examples that belong together

    @property
    def weights(self) -> NDArray[np.float64]:
        """The weight (N,) of each example in the metric; they sum to 1."""
        if self.strata is None:
            return np.full(self.n, 1 / self.n)
        return weigh_by_class(np.unique(self.strata, return_inverse=True)[1])

    def sum_groups(self, values: Array) -> Array:
        """Return values (K, G) of the groups, whose mean is the metric; without groups, the values (K, N)."""
        return values if self.groups is None else sum_groups(values, self.weights, self.groups)

    def count_groups(self) -> int:
        """Return how many groups there are; 0 without any."""
        return 0 if self.groups is None else len(np.unique(self.groups))

    def average(self, values: Array) -> NDArray[np.float64]:
        """Return the metric (K,) of values (K, N)."""
        return np.asarray(values @ self.weights, np.float64)


@dataclass(frozen=True)
class Sample:
    """One row: by fold, the values of its runs on the examples (K, N), and their seeds. A baseline has no seeds."""

    values: Mapping[int, Array]
    seeds: Mapping[int, Sequence[int]]

    @property
    def baseline(self) -> bool:
        """Whether nothing about it is random."""
        return not any(self.seeds.values())

    @property
    def runs(self) -> int:
        """How many runs there are; 0 of a baseline."""
        return sum(map(len, self.seeds.values()))


@dataclass(frozen=True)
class Difference:
    """A tested difference, sample - base, and what it takes as drawn at random."""

    difference: float
    interval: Interval
    p: float
    test: str
    over: Over
    n: int  # examples; of a fold on average
    groups: int = 0  # that the examples belong to, and that are drawn in their place
    folds: int = 0  # that both have, where the splits are drawn
    paired: bool = False  # by seed or by fold
    p_exact: float | None = None  # McNemar: without the mid-p correction
    only_row: int | None = None  # examples that only the sample gets right
    only_reference: int | None = None
    tested: Tested | None = None  # for equivalence and power
    doubt: str = ""  # why interval and p are not to be trusted


def compare(sample: Sample, base: Sample, folds: Mapping[int, Fold]) -> Difference:
    """Return the tested difference of two rows on the folds that both have, at least one."""
    shared = [fold for fold in folds if fold in sample.values and fold in base.values]
    if len(shared) > 1:
        return _compare_over_splits(sample, base, {fold: folds[fold] for fold in shared})
    [fold] = shared
    of = folds[fold]
    a, b = of.sum_groups(sample.values[fold]), of.sum_groups(base.values[fold])
    if len(a) == len(b) == 1:
        return _compare_over_examples(a[0], b[0], of)
    paired = list(sample.seeds.get(fold, ())) == list(base.seeds.get(fold, ()))
    tested = test_crossed(a, b, paired, labels=of.strata if of.groups is None else None)
    return _describe(tested, "seeds and examples", of.n, paired=paired, groups=of.count_groups())


def _compare_over_splits(sample: Sample, base: Sample, folds: Mapping[int, Fold]) -> Difference:
    """Return the test of the folds' differences, each of means over its runs."""
    means = [f.average(sample.values[k]).mean() - f.average(base.values[k]).mean() for k, f in folds.items()]
    share = float(np.mean([fold.n / fold.trained for fold in folds.values()]))
    n = round(float(np.mean([fold.n for fold in folds.values()])))
    return _describe(test_resampled(np.array(means), share), "splits", n, folds=len(folds), paired=True)


def _compare_over_examples(a: Array, b: Array, of: Fold) -> Difference:
    """Return the test of two runs, values (N,) or of groups: McNemar's of shares, otherwise of paired differences."""
    differences = a.astype(np.float64) - b
    if of.groups is not None:
        tested = _build(*test_mean(differences), len(differences), "paired t and bootstrap-t of groups")
        return _describe(tested, "examples", of.n, groups=len(differences), doubt=judge_sample(differences))
    if of.strata is not None:
        tested = _build(*test_recall_difference(differences, of.strata), of.n, "stratified t")
        return _describe(tested, "examples", of.n)
    if a.dtype != np.bool_:
        tested = _build(*test_mean(differences), of.n, "paired t and bootstrap-t")
        return _describe(tested, "examples", of.n, doubt=judge_sample(differences))
    error = float(differences.std(ddof=1)) / math.sqrt(of.n) if of.n > 1 else 0.0
    tested = build_tested(float(differences.mean()), error, max(of.n - 1.0, 1.0), "paired t")
    won, lost = int((a & ~b).sum()), int((b & ~a).sum())
    mid, exact = run_mcnemar(won, lost)
    interval = compute_paired_interval(won, lost, of.n)
    return Difference(
        tested.difference, interval, mid, "McNemar, mid-p", "examples", of.n,
        p_exact=exact, only_row=won, only_reference=lost, tested=tested,
    )  # fmt: skip


def _build(difference: float, interval: Interval, p: float, n: int, method: str) -> Tested:
    """Return a test over n examples with the standard error that its interval comes to."""
    from scipy.special import stdtrit

    error = (interval[1] - interval[0]) / 2 / float(stdtrit(n - 1, 0.975)) if n > 1 else 0.0
    return Tested(difference, interval, p, max(n - 1, 1), error, method)


def _describe(tested: Tested, over: Over, n: int, **more: Any) -> Difference:
    return Difference(tested.difference, tested.interval, tested.p, tested.method, over, n, tested=tested, **more)
