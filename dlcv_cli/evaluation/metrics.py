"""Numbers from predictions. Letters: N examples, K classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


def classification(logits: Floats, labels: Labels) -> dict[str, float]:
    """Metrics of logits (N, K) against labels (N,).

    Returns: loss, mean cross-entropy in nats; top1_accuracy and top5_accuracy; mean_per_class_recall over the classes
        that occur. The last three in 0..1. A tie counts for the lower class number.
    """
    exact = logits.astype(np.float64)
    rows = np.arange(len(labels))
    shifted = exact - exact.max(1, keepdims=True)
    loss = np.log(np.exp(shifted).sum(1)) - shifted[rows, labels]
    ranked = np.argsort(-exact, axis=1, kind="stable")[:, :5]
    hits = ranked == labels[:, None]
    return {
        "loss": float(loss.mean()),
        "top1_accuracy": float(hits[:, 0].mean()),
        "top5_accuracy": float(hits.any(1).mean()),
        "mean_per_class_recall": mean_per_class_recall(hits[:, 0], labels),
    }


def mean_per_class_recall(right: NDArray[np.bool_], labels: Labels) -> float:
    """Mean over the classes that occur of the share of their examples answered right; `right` and `labels` are (N,)."""
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def largest_class(train_labels: Labels, labels: Labels) -> dict[str, float | int]:
    """What a network scores on labels (N,) that always answers with the most frequent training class.

    Returns: label, and accuracy and mean per-class recall in 0..1. The lowest of equally frequent classes.
    """
    label = int(np.bincount(train_labels).argmax())
    right = labels == label
    return {
        "label": label,
        "top1_accuracy": float(right.mean()),
        "mean_per_class_recall": mean_per_class_recall(right, labels),
    }


def regression(predictions: Floats, targets: Floats) -> dict[str, float]:
    """mse and mae of predictions (N,) against targets (N,), in the target's units."""
    errors = predictions.astype(np.float64) - targets
    return {"mse": float(np.mean(errors**2)), "mae": float(np.mean(np.abs(errors)))}
