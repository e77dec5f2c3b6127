"""Collapse: networks that ignore their input. Letters: N examples, K classes or runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlcv_cli.statistics.means import test_mean
from dlcv_cli.statistics.metrics import CLOSE, compute_absolute_errors
from dlcv_cli.statistics.significance import Z, run_mcnemar

Counts = NDArray[np.int64]

FEW = 4  # a network that predicts a quarter of the classes that occur, or fewer, has collapsed
FEWEST = 30  # with fewer examples even a good network cannot be distinguished from the baseline
FEWEST_OTHERS = 10  # nor with fewer examples that the baseline gets wrong
SAME = 0.95  # a network with this share of its predictions in one place has collapsed


@dataclass(frozen=True)
class Collapse:
    """Whether a network ignores its input, and its most frequent prediction. Part of an evaluation file."""

    collapsed: bool  # of several runs: at least half of them
    why: str | None  # the reason in words; None if it has not collapsed
    classes_predicted: Annotated[int, msgspec.Meta(ge=0)] | None  # None: it predicts numbers
    most_frequent: str  # prediction
    share: Annotated[float, msgspec.Meta(ge=0, le=1)]  # of the predictions that equal the most frequent one
    runs_collapsed: Annotated[int, msgspec.Meta(ge=0)] = 0

    def describe(self) -> str:
        """Return the most frequent prediction and its share in words."""
        near = "near " if self.classes_predicted is None else ""
        return f"{100 * self.share:.1f} % of its predictions are {near}{self.most_frequent}"


def judge_classes(
    predicted: Counts, right: Counts, labels: NDArray[np.int64], baseline: int, names: list[str]
) -> Collapse:
    """Return whether a classifier has collapsed.

    It has if it predicts few of the classes that occur. It also has if nothing shows that it looks at its input:
    neither is its accuracy better than the baseline's on the same images (McNemar's test), nor its mean per-class
    recall better than that of predictions that do not depend on the image. The second is what a network gains that
    gives up common images for rare ones. Both are tested at 2.5 %, where there are enough images.

    Args:
        predicted: (K,), the number of predictions of each class. right: (K,), how many of each class are right.
        labels: (N,), of the same images. baseline: the class that the baseline always predicts.
    """
    n, counts = len(labels), np.bincount(labels, minlength=len(names))
    occur, different = int(np.count_nonzero(counts)), int(np.count_nonzero(predicted))
    why = None
    if occur > 1 and different <= max(1, occur // FEW):
        why = f"predicts {different} of {occur} classes"
    elif n >= FEWEST and n - counts[baseline] >= FEWEST_OTHERS:
        won, lost = int(right.sum() - right[baseline]), int(counts[baseline] - right[baseline])
        better = won > lost and run_mcnemar(won, lost)[0] < 0.05
        recall, guessing, spread = _compare_with_guessing(predicted, right, counts)
        if not better and recall <= guessing + Z * spread:
            why = f"no better than always {names[baseline]} ({100 * counts[baseline] / n:.1f} % right)"
            why += f" or guessing (mean per-class recall {100 * recall:.1f} %)"
    most = int(predicted.argmax())
    return Collapse(why is not None, why, different, names[most], float(predicted[most] / n), int(why is not None))


def _compare_with_guessing(predicted: Counts, right: Counts, counts: Counts) -> tuple[float, float, float]:
    """Return the mean per-class recall, and its mean and deviation if the same predictions met the images at random.

    Source: Hoeffding 1951 (doi:10.1214/aoms/1177729545), of sums over a random permutation.
    """
    occurs, n = counts > 0, int(counts.sum())
    weight = 1 / (counts[occurs] * np.count_nonzero(occurs))  # of an image in the mean recall
    label, answer = counts[occurs] / n, predicted[occurs] / n  # shares
    mean = float((label * weight * answer).sum())  # per image
    square = label * answer * weight**2  # an image's contribution is its weight or 0; less what each margin explains
    variance = (square - label * (weight * answer) ** 2 - answer * (weight * label) ** 2).sum() + mean**2
    return float((right[occurs] * weight).sum()), n * mean, n * math.sqrt(max(0.0, float(variance)) / (n - 1))


def judge_numbers(
    predictions: NDArray[np.float32], targets: NDArray[np.float32], constant: float, learns: bool = True
) -> Collapse:
    """Return whether a cell has collapsed: predictions of one run (N,) or of several (K, N), against targets (N,).

    A run has if SAME of its predictions lie within CLOSE of their median, or if on FEWEST sequences or more its mean
    squared error is not shown to be smaller than the constant's on the same sequences. Several runs have if at least
    half of them have. What does not learn (the baseline) does not collapse. The verdict's prediction and share are
    those of the run with most predictions in one place.
    """
    runs = np.atleast_2d(predictions)
    middles = np.median(runs, axis=1)
    shares = np.mean(np.abs(runs - middles[:, None]) < CLOSE, axis=1)
    spread = float(np.mean(np.abs(targets - np.median(targets)) < CLOSE))
    of_constant = (targets.astype(np.float64) - constant) ** 2
    reasons = []
    for share, run in zip(shares, runs, strict=True):
        errors = compute_absolute_errors(run, targets) ** 2
        if share >= SAME > spread:
            reasons.append(f"{100 * share:.0f} % of the predictions are the same within {CLOSE}")
        elif len(targets) >= FEWEST and test_mean(of_constant - errors)[1][0] <= 0:
            reasons.append(f"no better than constant {constant:g} (MSE {errors.mean():.3g}, {of_constant.mean():.3g})")
    fallen = len(reasons) if learns else 0
    why = reasons[0] if fallen and 2 * fallen >= len(runs) else None
    if why and len(runs) > 1:
        why = f"{fallen} of {len(runs)} runs: {why}"
    most = int(shares.argmax())
    return Collapse(why is not None, why, None, f"{middles[most]:.3g}", float(shares[most]), fallen)
