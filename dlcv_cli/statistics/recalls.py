"""Means over classes of means over examples: mean per-class recall. Letters: N examples, C classes, R rows.

The classes are fixed: new examples would be of the same classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.statistics.significance import TAIL, Interval, compute_wilson_interval

Array = NDArray[Any]
Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

PRIOR = 2  # how many examples' worth of the pooled variance each class's variance is mixed with
FEW_CLASSES = 5


@dataclass(frozen=True)
class Part:
    """A part of a mean's variance, and its degrees of freedom."""

    variance: float
    freedom: float


def weigh_by_class(classes: Labels) -> Floats:
    """Return the weight of each example (N,) in a mean over classes 0..C-1 (N,), each of which occurs."""
    counts = np.bincount(classes)
    return np.asarray(1 / (counts[classes] * len(counts)))


def measure_strata(rows: Floats, weights: Floats, classes: Labels) -> Part:
    """Return the variance of a weighted sum over examples that are drawn within classes, added over rows (R, N).

    Each class's variance is mixed with the pooled one, because a few equal values in a small class do not mean that it
    never varies. A class of one example has the pooled variance. The degrees of freedom are those of one row.
    Source: Cochran 1977, Sampling Techniques, 5.4; Satterthwaite 1946 (doi:10.2307/3002019).
    """
    counts = np.bincount(classes)
    if counts.max() == 1:  # nothing is known within classes
        classes = np.zeros_like(classes)

    def add(values: Floats) -> Floats:
        return np.asarray(np.bincount(classes, values), np.float64)

    share = weights / add(weights)[classes]
    means = np.array([add(row * share) for row in rows])
    squares = add(weights**2 * ((rows - means[:, classes]) ** 2).sum(0))
    total = add(weights**2)
    unit = add(weights**2 * (1 - 2 * share)) + total * add(share**2)  # what the squares of values of variance 1 come to
    several = np.bincount(classes) > 1
    freedom = np.where(several, total**2 / add(weights**4) - 1, 0)
    own = np.divide(squares, unit, out=np.zeros_like(squares), where=several)
    if not several.any():  # a single example
        return Part(0.0, 0.0)
    pooled = (own * freedom).sum() / freedom.sum()
    parts = total * (own * freedom + PRIOR * pooled) / (freedom + PRIOR)
    variance = float(parts.sum())
    if variance <= 1e-20 * float((rows**2).max() * total.sum()):  # all the same within classes, but for rounding
        return Part(0.0, float(freedom.sum()))
    return Part(variance, float(min(variance**2 / (parts**2 / (freedom + PRIOR)).sum(), freedom.sum())))


def test_recall_difference(differences: Array, labels: Array) -> tuple[float, Interval, float]:
    """Return (difference of mean per-class recalls, its 95 % interval, two-sided p), paired.

    Student's t of the stratified estimate; its variance has that of one more example that differs, so that systems
    which answer alike are not known to be equal. p < 0.05 exactly when 0 is outside the interval.

    Args:
        differences: (N,), -1, 0 or 1 (or means over runs): right of one system - right of the other. labels: (N,).
    """
    from scipy.special import stdtr

    mean, error, freedom, half = _measure_recall(np.asarray(differences, np.float64), labels, 1)
    p = float(2 * stdtr(freedom, -abs(mean) / error))
    return mean, (max(-1.0, mean - half), min(1.0, mean + half)), p


def compute_recall_interval(right: Array, labels: Array) -> Interval:
    """Return the 95 % interval of the mean per-class recall of right (N,) bool, of labels (N,).

    Student's t of the stratified estimate, as in test_recall_difference, with the variance of two more examples. With
    fewer than FEW_CLASSES classes its ends are not inside those that the classes' Wilson intervals come to.
    Source: Newcombe 1998, method 10 (doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I).
    """
    mean, _, _, half = _measure_recall(np.asarray(right, np.float64), labels, 2)
    low, high = mean - half, mean + half
    present = np.unique(labels)
    if len(present) < FEW_CLASSES:
        down, up = [], []
        for label in present:
            own = right[labels == label]
            below, above = compute_wilson_interval(int(own.sum()), len(own))
            down.append(own.mean() - below)
            up.append(above - own.mean())
        low = min(low, mean - float(np.linalg.norm(down)) / len(present))
        high = max(high, mean + float(np.linalg.norm(up)) / len(present))
    return max(0.0, low), min(1.0, high)


def _measure_recall(values: Floats, labels: Array, extra: int) -> tuple[float, float, float, float]:
    """Return the mean over classes, its standard error, degrees of freedom, and half the width of its interval.

    The variance has that of this many extra examples, of variance 1.
    """
    from scipy.special import stdtrit

    classes = np.unique(labels, return_inverse=True)[1]
    weights = weigh_by_class(classes)
    part = measure_strata(values[None], weights, classes)
    error = math.sqrt(part.variance + extra * float((weights**2).mean()))
    freedom = max(part.freedom, 1.0)
    return float(values @ weights), error, freedom, float(stdtrit(freedom, 1 - TAIL)) * error
