"""Collapse: networks that ignore their input. Letters: N examples, K classes or runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlcv_cli.statistics.metrics import CLOSE, compute_absolute_errors
from dlcv_cli.statistics.significance import bootstrap, build_mean, compute_wilson_interval

FEW = 4  # a network that predicts a quarter of the classes that occur, or fewer, has collapsed
FEWEST = 30  # with fewer examples even a good network cannot be distinguished from the baseline
SAME = 0.95  # a network with this share of its predictions in one place has collapsed


@dataclass(frozen=True)
class Collapse:
    """Whether a network ignores its input, and its most frequent prediction. Part of an evaluation file."""

    collapsed: bool
    why: str | None  # the reason in words; None if it has not collapsed
    classes_predicted: Annotated[int, msgspec.Meta(ge=0)] | None  # None: it predicts numbers
    most_frequent: str  # prediction
    share: Annotated[float, msgspec.Meta(ge=0, le=1)]  # of the predictions that equal the most frequent one

    def describe(self) -> str:
        """Return the most frequent prediction and its share in words."""
        near = "near " if self.classes_predicted is None else ""
        return f"{100 * self.share:.1f} % of its predictions are {near}{self.most_frequent}"


def judge_classes(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], right: int, baseline: int, names: list[str]
) -> Collapse:
    """Return whether a classifier has collapsed.

    It has if it predicts few of the classes that occur, or if on FEWEST examples or more its accuracy does not exceed
    the upper end of the 95 % interval of the baseline's accuracy.

    Args:
        predicted: (K,), the number of predictions of each class. labels: (N,), of the same images.
        right: the number of correct predictions. baseline: the class that the baseline always predicts.
    """
    n, occur, different = len(labels), len(np.unique(labels)), int(np.count_nonzero(predicted))
    low, high = compute_wilson_interval(int((labels == baseline).sum()), n)
    why = None
    if occur > 1 and different <= max(1, occur // FEW):
        why = f"predicts {different} of {occur} classes"
    elif n >= FEWEST and right / n <= high:
        why = f"no better than always {names[baseline]} ({100 * low:.1f} to {100 * high:.1f} % right)"
    most = int(predicted.argmax())
    return Collapse(why is not None, why, different, names[most], float(predicted[most] / n))


def judge_numbers(
    predictions: NDArray[np.float32], targets: NDArray[np.float32], constant: float, learns: bool = True
) -> Collapse:
    """Return whether a cell has collapsed in any of its runs: predictions (K, N) against targets (N,).

    A run has if SAME of its predictions lie within CLOSE of their median, or if on FEWEST sequences or more its mean
    squared error reaches the lower end of the 95 % interval of the constant's. What does not learn (the baseline) does
    not collapse. The verdict's prediction and share are those of the run with most predictions in one place.
    """
    middles = np.median(predictions, axis=1)
    shares = np.mean(np.abs(predictions - middles[:, None]) < CLOSE, axis=1)
    spread = float(np.mean(np.abs(targets - np.median(targets)) < CLOSE))
    [(low, high)] = bootstrap([build_mean((targets.astype(np.float64) - constant) ** 2)])
    reasons = []
    for share, run in zip(shares, predictions, strict=True):
        if share >= SAME > spread:
            reasons.append(f"{100 * share:.0f} % of the predictions are the same within {CLOSE}")
        elif len(targets) >= FEWEST and np.mean(compute_absolute_errors(run, targets) ** 2) >= low:
            reasons.append(f"no better than constant {constant:g} (MSE {low:.3g} to {high:.3g})")
    why = reasons[0] if reasons and learns else None
    if why and len(predictions) > 1:
        why = f"{len(reasons)} of {len(predictions)} runs: {why}"
    most = int(shares.argmax())
    return Collapse(why is not None, why, None, f"{middles[most]:.3g}", float(shares[most]))
