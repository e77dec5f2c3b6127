"""Numbers from predictions. Letters: N examples, K classes."""

from __future__ import annotations

from collections.abc import Sequence

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


CLOSE = 0.04  # Source: Hochreiter & Schmidhuber 1997, experiment 4: nearer than that, an answer is right


def regression(predictions: Floats, targets: Floats) -> dict[str, float]:
    """mse and mae of predictions (..., N) against targets (N,), in its units; close, the share of errors < CLOSE."""
    errors = np.abs(predictions.astype(np.float64) - targets)
    return {"mse": float(np.mean(errors**2)), "mae": float(np.mean(errors)), "close": float(np.mean(errors < CLOSE))}


def regression_by_length(predictions: Floats, targets: Floats, lengths: Labels) -> list[dict[str, float]]:
    """`regression` for the sequences of each length, with `length` and their number `n`; predictions (K, N)."""
    found = []
    for length in np.unique(lengths):
        here = lengths == length
        values = regression(predictions[:, here], targets[here])
        found.append({"length": int(length), "n": int(here.sum()), **values})
    return found


def over_runs(values: Sequence[float]) -> dict[str, float]:
    """Mean, sample standard deviation (0 for one), least and largest of a metric over independent runs."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": spread, "min": float(min(values)), "max": float(max(values))}
