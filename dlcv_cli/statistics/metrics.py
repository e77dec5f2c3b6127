"""Numbers from predictions. Letters: N examples, K classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.statistics.significance import Statistic

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """What each of N images' logits say against its label."""

    losses: NDArray[np.float64]  # cross-entropy in nats
    answers: Labels  # the class of the largest logit; of equal ones the lowest
    right: NDArray[np.bool_]
    in_five: NDArray[np.bool_]  # the label is among the five largest logits
    confidences: NDArray[np.float64]  # probability of the answer, in 0..1


def scores(logits: Floats, labels: Labels) -> Scores:
    """What logits (N, K) say of each image against labels (N,)."""
    exact = logits.astype(np.float64)
    rows = np.arange(len(labels))
    shifted = exact - exact.max(1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(1))
    ranked = np.argsort(-exact, axis=1, kind="stable")[:, :5]
    hits = ranked == labels[:, None]
    return Scores(log_sum - shifted[rows, labels], ranked[:, 0], hits[:, 0], hits.any(1), np.exp(-log_sum))


def classification(found: Scores, labels: Labels) -> dict[str, float]:
    """Metrics of N images.

    Returns: loss, mean cross-entropy in nats; top1_accuracy and top5_accuracy; mean_per_class_recall over the classes
        that occur; expected_calibration_error. All but the first in 0..1. A tie counts for the lower class number.
    """
    return {
        "loss": float(found.losses.mean()),
        "top1_accuracy": float(found.right.mean()),
        "top5_accuracy": float(found.in_five.mean()),
        "mean_per_class_recall": mean_per_class_recall(found.right, labels),
        "expected_calibration_error": calibration_of(found).estimate,
    }


def recall_of(values: NDArray[Any], labels: Labels) -> Statistic:
    """Mean over the classes that occur of each class's mean of values (N,): right answers, or differences of them."""
    present, index = np.unique(labels, return_inverse=True)
    member = np.eye(len(present))[index]  # (N, classes that occur)

    def of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        counts, values = np.split(sums, 2, axis=-1)
        there = counts > 0  # a resample may lack a class
        means = np.divide(values, counts, out=np.zeros_like(values), where=there)
        return np.asarray(means.sum(-1) / there.sum(-1))

    return Statistic(np.hstack([member, member * values[:, None]]), of)


BINS = 15  # Source: Guo et al. 2017 (arXiv:1706.04599)


def bins(confidences: NDArray[np.float64]) -> Labels:
    """Which of BINS equal bins each confidence in 0..1 is in; a bin holds its upper edge."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidences).astype(np.int64)


def calibration_of(found: Scores) -> Statistic:
    """Expected calibration error: how far accuracy and mean confidence lie apart in a bin, mean over the images.

    Source: Naeini et al. 2015; Guo et al. 2017 (arXiv:1706.04599), equation 3.
    """
    gaps = np.eye(BINS)[bins(found.confidences)] * (found.right - found.confidences)[:, None]
    values = np.hstack([gaps, np.ones((len(gaps), 1))])
    return Statistic(values, lambda sums: np.asarray(np.abs(sums[..., :-1]).sum(-1) / sums[..., -1]))


def mean_per_class_recall(right: NDArray[np.bool_], labels: Labels) -> float:
    """Mean over the classes that occur of the share of their examples answered right; `right` and `labels` are (N,)."""
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def largest_class(train_labels: Labels) -> int:
    """The most frequent training label; the lowest of equally frequent ones."""
    return int(np.bincount(train_labels).argmax())


CLOSE = 0.04  # Source: Hochreiter & Schmidhuber 1997, experiment 4: nearer than that, an answer is right


def regression(predictions: Floats, targets: Floats) -> dict[str, float]:
    """Metrics of predictions (..., N) against targets (N,), each a mean over all of them.

    Returns: mse and mae in the targets' units; close, the share of errors < CLOSE; r2, the share of the targets'
        variance that is explained, at most 1; where they do not vary, 1 if all answers are exact, else 0.
    """
    errors = np.abs(predictions.astype(np.float64) - targets)
    mse, varies = float(np.mean(errors**2)), float(np.var(targets, dtype=np.float64))
    r2 = 1 - mse / varies if varies > 0 else float(mse == 0)
    return {"mse": mse, "mae": float(np.mean(errors)), "close": float(np.mean(errors < CLOSE)), "r2": r2}


def r2_of(predictions: Floats, targets: Floats) -> Statistic:
    """The share of the variance of targets (N,) that predictions (N,) explain, as `regression` has it."""
    # from the middle, or the sums of squares would cancel
    t = targets.astype(np.float64) - targets.mean(dtype=np.float64)
    values = np.column_stack([(predictions - targets.astype(np.float64)) ** 2, t, t**2, np.ones(len(t))])

    def of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        error, first, second, n = np.moveaxis(sums, -1, 0)
        varies = second - first**2 / n
        flat = varies <= 1e-12 * second
        return np.asarray(np.where(flat, error == 0, 1 - error / np.where(flat, 1, varies)))

    return Statistic(values, of)


def regression_by_length(predictions: Floats, targets: Floats, lengths: Labels) -> list[dict[str, float]]:
    """mse, mae and close for the sequences of each length, with `length` and their number `n`; predictions (K, N)."""
    found = []
    for length in np.unique(lengths):
        here = lengths == length
        values = regression(predictions[:, here], targets[here])
        del values["r2"]  # says little within a length, and nothing of a single sequence
        found.append({"length": int(length), "n": int(here.sum()), **values})
    return found


def over_runs(values: Sequence[float]) -> dict[str, float]:
    """Mean, sample standard deviation (0 for one), least and largest of a metric over independent runs."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": spread, "min": float(min(values)), "max": float(max(values))}
