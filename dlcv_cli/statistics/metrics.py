"""Metrics: numbers computed from predictions. Letters: N examples, K classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


BINS = 15  # Source: Guo et al. 2017 (arXiv:1706.04599)


def assign_bins(confidences: NDArray[np.float64]) -> Labels:
    """Return the number of the bin, of BINS equal ones, of each confidence in 0..1. A bin includes its upper edge."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidences).astype(np.int64)


def compute_calibration_error(scores: Scores) -> float:
    """Return the expected calibration error: the mean over the images of their bin's |accuracy - mean confidence|.

    Source: Naeini et al. 2015; Guo et al. 2017 (arXiv:1706.04599), equation 3.
    """
    gaps = np.bincount(assign_bins(scores.confidences), scores.right - scores.confidences, BINS)
    return float(np.abs(gaps).sum() / len(scores.labels))


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
