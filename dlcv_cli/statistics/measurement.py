"""What an evaluation says of one network's predictions: metrics, intervals, baselines, and where it goes wrong.

Letters: N examples, K classes or runs, R baselines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlcv_cli.statistics.metrics import (
    BINS,
    Floats,
    Labels,
    Scores,
    bins,
    classification,
    mean_per_class_recall,
    over_runs,
    r2_of,
    recall_of,
    regression,
)
from dlcv_cli.statistics.significance import Statistic, bca, mean_of, t_interval, wilson

MOST_CONFUSED = 10
HIGHEST_LOSS = 16
RANGES = {"mse": (0, np.inf), "mae": (0, np.inf), "close": (0, 1), "r2": (-np.inf, 1)}
JSON = dict[str, Any]


def images(found: Scores, labels: Labels, baselines: Labels, names: Sequence[str]) -> JSON:
    """metrics, intervals and baselines of N images; `baselines` (R, N) are what those of these names answer.

    The calibration error has no interval: none of the usual ones holds (docs/statistics.md).
    """
    shares = {"top1_accuracy": found.right, "top5_accuracy": found.in_five}
    statistics = {
        "loss": mean_of(found.losses),
        "mean_per_class_recall": recall_of(found.right, labels),
    }
    always = [answers == labels for answers in baselines]
    of_baselines = [
        {"top1_accuracy": float(right.mean()), "mean_per_class_recall": mean_per_class_recall(right, labels)}
        for right in always
    ]
    drawn = bca([*statistics.values(), *(recall_of(right, labels) for right in always)])
    intervals = {key: wilson(int(right.sum()), len(labels)) for key, right in shares.items()}
    intervals |= dict(zip(statistics, drawn, strict=False))
    metrics = classification(found, labels)
    described = [
        {
            "name": name,
            "metrics": values,
            "intervals": {
                "top1_accuracy": list(wilson(int(right.sum()), len(labels))), "mean_per_class_recall": list(recall),
            },
        }
        for name, values, right, recall in zip(names, of_baselines, always, drawn[len(statistics) :], strict=True)
    ]  # fmt: skip
    in_order = {key: list(intervals[key]) for key in metrics if key in intervals}
    return {"metrics": metrics, "intervals": in_order, "baselines": described}


def sequences(predictions: Floats, targets: Floats, baselines: Floats, names: Sequence[str]) -> JSON:
    """metrics, intervals and baselines of N sequences, and what the runs make of them.

    Args:
        predictions: (K, N), a run each; the metrics are means over the runs. targets: (N,).
        baselines: (R, N), what those of these names answer.

    Returns: those; intervals_over, `examples` for one run, else `seeds`; by_run, each run's metrics; for several runs
        also `runs`, how far they lie apart.
    """
    by_run = [regression(answers, targets) for answers in predictions]
    values = {key: np.array([run[key] for run in by_run]) for key in by_run[0]}
    several = len(predictions) > 1
    described = _described([*([] if several else predictions), *baselines], targets)
    if several:
        intervals = {key: [float(x) for x in np.clip(t_interval(of), *RANGES[key])] for key, of in values.items()}
    else:
        intervals = described.pop(0)["intervals"]
    runs = {"runs": {key: over_runs(of.tolist()) for key, of in values.items()}} if several else {}
    return {
        "metrics": {key: float(np.mean(of)) for key, of in values.items()},
        "intervals": intervals,
        "intervals_over": "seeds" if several else "examples",
        "baselines": [{"name": name, **one} for name, one in zip(names, described, strict=True)],
        "by_run": by_run,
        **runs,
    }


def _described(systems: Sequence[Floats], targets: Floats) -> list[JSON]:
    """metrics and intervals over the examples of each system's predictions (N,), from the same draws."""
    statistics: list[Statistic] = []
    for answers in systems:
        errors = np.abs(answers.astype(np.float64) - targets)
        statistics += [mean_of(errors**2), mean_of(errors), r2_of(answers, targets)]
    drawn = iter(bca(statistics))
    found = []
    for answers in systems:
        metrics = regression(answers, targets)
        intervals = {key: list(next(drawn)) for key in ("mse", "mae", "r2")}
        intervals["close"] = list(wilson(round(metrics["close"] * len(targets)), len(targets)))
        found.append({"metrics": metrics, "intervals": {key: intervals[key] for key in metrics}})
    return found


def confusion(found: Scores, labels: Labels, classes: Sequence[str]) -> JSON:
    """per_class, confusion and confused of N images.

    Returns: of each class n, recall (None without images), precision (None without answers) and how often it is
        answered; (label, answer, count) where that is not 0; the pairs of classes most often confused, most first.
    """
    table = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(table, (labels, found.answers), 1)
    counts, answered = table.sum(1), table.sum(0)
    cells = [(int(i), int(j), int(table[i, j])) for i, j in np.argwhere(table)]
    wrong = sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: (-cell[2], cell))
    return {
        "per_class": [
            {
                "class": name,
                "n": int(counts[k]),
                "recall": float(table[k, k] / counts[k]) if counts[k] else None,
                "precision": float(table[k, k] / answered[k]) if answered[k] else None,
                "answered": int(answered[k]),
            }
            for k, name in enumerate(classes)
        ],
        "confusion": [list(cell) for cell in cells],
        "confused": [
            {"true": classes[i], "answered": classes[j], "n": n, "share": float(n / counts[i])}
            for i, j, n in wrong[:MOST_CONFUSED]
        ],
    }


def calibration(found: Scores) -> list[JSON]:
    """Mean confidence and accuracy of the images in each bin of confidence that has any."""
    member = bins(found.confidences)
    return [
        {
            "low": b / BINS,
            "high": (b + 1) / BINS,
            "n": int((member == b).sum()),
            "confidence": float(found.confidences[member == b].mean()),
            "accuracy": float(found.right[member == b].mean()),
        }
        for b in np.unique(member).tolist()
    ]


def highest_loss(
    found: Scores, labels: Labels, classes: Sequence[str], about: Sequence[Mapping[str, str]]
) -> list[JSON]:
    """The images with the highest loss, highest first; `about` (N) says what else there is to know of each."""
    order = np.argsort(-found.losses, kind="stable")[:HIGHEST_LOSS]
    return [
        {
            **about[i],
            "label": classes[labels[i]],
            "answer": classes[found.answers[i]],
            "loss": float(found.losses[i]),
            "probability": float(np.exp(-found.losses[i])),
        }
        for i in order
    ]
