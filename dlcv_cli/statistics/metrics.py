"""Metrics: numbers computed from predictions. Letters: N examples, K classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.statistics.significance import Statistic

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """The predictions of a classifier for N images, scored against their labels. Arrays are (N,)."""

    labels: Labels
    classes: int  # K
    predicted: Labels  # the class of the largest logit; of equal ones the lowest
    right: NDArray[np.bool_]
    in_five: NDArray[np.bool_]  # the label is among the five largest logits
    losses: NDArray[np.float64]  # cross-entropy in nats; NaN without logits
    confidences: NDArray[np.float64]  # probability of the predicted class, in 0..1; NaN without logits
    groups: Labels | None = None  # of images that belong together: the number of each image's group


def score_logits(logits: NDArray[np.floating], labels: Labels) -> Scores:
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
    """Return the scores of predicted classes (N,) against labels (N,); losses and confidences are NaN."""
    right, unknown = predicted == labels, np.full(len(labels), np.nan)
    return Scores(labels, classes, predicted, right, right, unknown, unknown)


def build_recall(values: NDArray[Any], labels: Labels) -> Statistic:
    """Return the mean over the classes that occur of each class's mean of values (N,): correctness, or differences."""
    present, index = np.unique(labels, return_inverse=True)
    member = np.eye(len(present))[index]  # (N, classes that occur)

    def average(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        counts, values = np.split(sums, 2, axis=-1)
        occurs = counts > 0  # a resample may lack a class
        means = np.divide(values, counts, out=np.zeros_like(values), where=occurs)
        return np.asarray(means.sum(-1) / occurs.sum(-1))

    return Statistic(np.hstack([member, member * values[:, None]]), average)


BINS = 15  # Source: Guo et al. 2017 (arXiv:1706.04599)


def assign_bins(confidences: NDArray[np.float64]) -> Labels:
    """Return the number of the bin, of BINS equal ones, of each confidence in 0..1. A bin includes its upper edge."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidences).astype(np.int64)


def build_calibration(scores: Scores) -> Statistic:
    """Return the expected calibration error: the mean over the images of their bin's |accuracy - mean confidence|.

    Source: Naeini et al. 2015; Guo et al. 2017 (arXiv:1706.04599), equation 3.
    """
    gaps = np.eye(BINS)[assign_bins(scores.confidences)] * (scores.right - scores.confidences)[:, None]
    values = np.hstack([gaps, np.ones((len(gaps), 1))])
    return Statistic(values, lambda sums: np.asarray(np.abs(sums[..., :-1]).sum(-1) / sums[..., -1]))


def compute_mean_recall(right: NDArray[np.bool_], labels: Labels) -> float:
    """Return the mean over the classes that occur of each class's share of `right` (N,); `labels` is (N,)."""
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def find_largest_class(train_labels: Labels) -> int:
    """Return the most frequent training label; of equally frequent ones the lowest."""
    return int(np.bincount(train_labels).argmax())


CLOSE = 0.04  # Source: Hochreiter & Schmidhuber 1997, experiment 4: a smaller error counts as right


def compute_absolute_errors(predictions: Floats, targets: Floats) -> NDArray[np.float64]:
    """Return the absolute errors (..., N) of predictions (..., N), in the units of the targets (N,)."""
    return np.abs(predictions.astype(np.float64) - targets)


def compute_explained_variance(predictions: Floats, targets: Floats) -> float:
    """Return R2, at most 1: the share of the targets' variance that is explained.

    If the targets do not vary, return 1 if all predictions are exact, else 0.
    """
    mse = float(np.mean(compute_absolute_errors(predictions, targets) ** 2))
    variance = float(np.var(targets, dtype=np.float64))
    return 1 - mse / variance if variance > 0 else float(mse == 0)


def build_r2(predictions: Floats, targets: Floats) -> Statistic:
    """Return R2 of predictions (N,) for targets (N,), as a statistic of sums."""
    # relative to the mean: sums of squares of large targets would cancel
    t = targets.astype(np.float64) - targets.mean(dtype=np.float64)
    values = np.column_stack([(predictions - targets.astype(np.float64)) ** 2, t, t**2, np.ones(len(t))])

    def explain(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        error, first, second, n = np.moveaxis(sums, -1, 0)
        variance = second - first**2 / n
        flat = variance <= 1e-12 * second
        return np.asarray(np.where(flat, error == 0, 1 - error / np.where(flat, 1, variance)))

    return Statistic(values, explain)
