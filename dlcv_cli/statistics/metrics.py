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
    """What a classifier makes of N images with these labels."""

    labels: Labels
    classes: int  # K
    predicted: Labels  # the class of the largest logit; of equal ones the lowest
    right: NDArray[np.bool_]
    in_five: NDArray[np.bool_]  # the label is among the five largest logits
    losses: NDArray[np.float64]  # cross-entropy in nats; NaN without logits
    confidences: NDArray[np.float64]  # probability of the predicted class, in 0..1; NaN without logits


def score_logits(logits: Floats, labels: Labels) -> Scores:
    """Return the scores of logits (N, K) against labels (N,)."""
    exact = logits.astype(np.float64)
    rows = np.arange(len(labels))
    shifted = exact - exact.max(1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(1))
    ranked = np.argsort(-exact, axis=1, kind="stable")[:, :5]
    hits = ranked == labels[:, None]
    losses, confidences = log_sum - shifted[rows, labels], np.exp(-log_sum)
    return Scores(labels, logits.shape[1], ranked[:, 0], hits[:, 0], hits.any(1), losses, confidences)


def score_predictions(predicted: Labels, labels: Labels, classes: int) -> Scores:
    """Return the scores of predicted classes (N,) that have no probabilities."""
    right, unknown = predicted == labels, np.full(len(labels), np.nan)
    return Scores(labels, classes, predicted, right, right, unknown, unknown)


def recall_of(values: NDArray[Any], labels: Labels) -> Statistic:
    """Mean over the classes that occur of each class's mean of values (N,): what is correct, or differences of it."""
    present, index = np.unique(labels, return_inverse=True)
    member = np.eye(len(present))[index]  # (N, classes that occur)

    def of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        counts, values = np.split(sums, 2, axis=-1)
        occurs = counts > 0  # a resample may lack a class
        means = np.divide(values, counts, out=np.zeros_like(values), where=occurs)
        return np.asarray(means.sum(-1) / occurs.sum(-1))

    return Statistic(np.hstack([member, member * values[:, None]]), of)


BINS = 15  # Source: Guo et al. 2017 (arXiv:1706.04599)


def bins(confidences: NDArray[np.float64]) -> Labels:
    """Which of BINS equal bins each confidence in 0..1 is in; a bin holds its upper edge."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidences).astype(np.int64)


def calibration_of(scores: Scores) -> Statistic:
    """Return the expected calibration error: |accuracy - mean confidence| of a bin, as a mean over the images.

    Source: Naeini et al. 2015; Guo et al. 2017 (arXiv:1706.04599), equation 3.
    """
    gaps = np.eye(BINS)[bins(scores.confidences)] * (scores.right - scores.confidences)[:, None]
    values = np.hstack([gaps, np.ones((len(gaps), 1))])
    return Statistic(values, lambda sums: np.asarray(np.abs(sums[..., :-1]).sum(-1) / sums[..., -1]))


def mean_per_class_recall(right: NDArray[np.bool_], labels: Labels) -> float:
    """Mean over the classes that occur of the share of `right` (N,) among their examples; `labels` is (N,)."""
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def largest_class(train_labels: Labels) -> int:
    """The most frequent training label; the lowest of equally frequent ones."""
    return int(np.bincount(train_labels).argmax())


CLOSE = 0.04  # Source: Hochreiter & Schmidhuber 1997, experiment 4: a smaller error counts as right


def absolute_errors(predictions: Floats, targets: Floats) -> NDArray[np.float64]:
    """Return how far predictions (..., N) are from targets (N,), in the targets' units."""
    return np.abs(predictions.astype(np.float64) - targets)


def explained_variance(predictions: Floats, targets: Floats) -> float:
    """Return R2, at most 1: the share of the targets' variance that is explained.

    Where the targets do not vary: 1 if all predictions are exact, else 0.
    """
    mse = float(np.mean(absolute_errors(predictions, targets) ** 2))
    varies = float(np.var(targets, dtype=np.float64))
    return 1 - mse / varies if varies > 0 else float(mse == 0)


def r2_of(predictions: Floats, targets: Floats) -> Statistic:
    """The share of the variance of targets (N,) that predictions (N,) explain, as a statistic of sums."""
    # from the middle, or the sums of squares would cancel
    t = targets.astype(np.float64) - targets.mean(dtype=np.float64)
    values = np.column_stack([(predictions - targets.astype(np.float64)) ** 2, t, t**2, np.ones(len(t))])

    def of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        error, first, second, n = np.moveaxis(sums, -1, 0)
        varies = second - first**2 / n
        flat = varies <= 1e-12 * second
        return np.asarray(np.where(flat, error == 0, 1 - error / np.where(flat, 1, varies)))

    return Statistic(values, of)


def over_runs(values: Sequence[float]) -> dict[str, float]:
    """Return mean, std (of the sample; 0 for a single run), min and max of a metric over independent runs."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": spread, "min": float(min(values)), "max": float(max(values))}
