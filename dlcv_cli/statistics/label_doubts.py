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
    """What is said of each label: a doubt or not, how good it is, and which other class is the most probable."""

    doubted: NDArray[np.bool_]  # (N,)
    scores: Floats  # (N,) in 0..1; the lowest are the most doubtful
    suggested: Ints  # (N,)


def find_doubts(probabilities: Floats, labels: Ints) -> LabelDoubts:
    """Return which labels are in doubt.

    A label is in doubt if its example is confidently in another class, and the label is not its most probable class.
    The score is the normalised margin: (1 + p(label) - the largest p of another class) / 2.

    Args:
        probabilities: (N, K), each row with the sum 1, from a model that was not trained on that example.
        labels: (N,) in 0..K-1.
    """
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    suggested = others.argmax(1)
    margins = probabilities[rows, labels] - probabilities[rows, suggested]
    confident = find_confident_classes(probabilities, find_thresholds(probabilities, labels))
    doubted = (confident != NO_CLASS) & (confident != labels) & (margins < 0)
    return LabelDoubts(doubted, (1 + margins) / 2, suggested)


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
    """Return the most probable class of those that reach their thresholds, or NO_CLASS: (N,).

    With the labels, these count the confident joint: how many examples of a label are confidently in each class.
    """
    reached = np.where(probabilities >= thresholds, probabilities, -np.inf)
    classes: Ints = np.where(np.isfinite(reached.max(1)), reached.argmax(1), NO_CLASS)
    return classes
