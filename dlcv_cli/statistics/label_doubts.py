"""Labels that look wrong, from out-of-fold probabilities: confident learning.

Source: Northcutt, Jiang & Chuang 2021, Confident learning: estimating uncertainty in dataset labels
(doi:10.1613/jair.1.12125, arXiv:1911.00068).

Letters: N examples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NO_CLASS = -1  # of an example that is confidently in no class


@dataclass(frozen=True)
class LabelDoubts:
    """What is said of each label: how good it is, whether it is in doubt, and the most probable other class."""

    scores: Floats  # (N,) in 0..1, the probability of the label: the lowest are the most doubtful
    doubted: NDArray[np.bool_]  # (N,)
    suggested: Ints  # (N,)


def find_doubts(probabilities: Floats, labels: Ints) -> LabelDoubts:
    """Return which labels are in doubt: of each class, as many as the confident joint says are wrong.

    They are those of the lowest probability (the source's prune by class), unless the label is the most probable class.

    Args:
        probabilities: (N, K), each row with the sum 1, from a model that was not trained on that example.
        labels: (N,) in 0..K-1.
    """
    rows = np.arange(len(labels))
    scores = probabilities[rows, labels]
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    suggested = others.argmax(1)
    doubted = np.zeros(len(labels), bool)
    for label, count in enumerate(count_wrong(probabilities, labels)):
        own = np.flatnonzero(labels == label)
        doubted[own[np.argsort(scores[own], kind="stable")[: round(count)]]] = True
    return LabelDoubts(scores, doubted & (scores < others.max(1)), suggested)


def count_wrong(probabilities: Floats, labels: Ints) -> Floats:
    """Return how many examples with each label are of another class (K,), estimated.

    The estimate is the label's number of examples times the share of those confidently in a class that are confidently
    in another: a row of the confident joint, calibrated to the number of examples.
    """
    classes = probabilities.shape[1]
    confident = find_confident_classes(probabilities, find_thresholds(probabilities, labels))
    in_any, in_other = confident != NO_CLASS, (confident != NO_CLASS) & (confident != labels)
    counts, of_any, of_other = (
        np.bincount(labels[chosen], minlength=classes) for chosen in (labels >= 0, in_any, in_other)
    )
    wrong: Floats = counts * of_other / np.maximum(of_any, 1)
    return wrong


def find_thresholds(probabilities: Floats, labels: Ints) -> Floats:
    """Return the probability from which an example is confidently in a class: its mean over the class's own (K,).

    A class without examples has the threshold infinity.
    """
    classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, own, classes)
    thresholds = np.full(classes, np.inf)
    np.divide(sums, counts, out=thresholds, where=counts > 0)
    return thresholds


def find_confident_classes(probabilities: Floats, thresholds: Floats) -> Ints:
    """Return the most probable class of those that reach their thresholds, or NO_CLASS: (N,)."""
    reached = np.where(probabilities >= thresholds, probabilities, -np.inf)
    classes: Ints = np.where(np.isfinite(reached.max(1)), reached.argmax(1), NO_CLASS)
    return classes
