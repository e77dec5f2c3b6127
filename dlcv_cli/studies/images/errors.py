"""Where a classifier goes wrong, and which images belong together. Letters: N images, K classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.results.evaluation import CalibrationBin, ConfusedPair, HighLoss, ImageDetails, PerClass
from dlcv_cli.statistics import metrics
from dlcv_cli.statistics.metrics import Scores
from dlcv_cli.vision.splits import Example

MOST_CONFUSED = 10
HIGHEST_LOSS = 16


def number_groups(examples: Sequence[Example]) -> NDArray[np.int64] | None:
    """Return the number of each image's group (N,), those without one alone; None if no two images share one."""
    names = [example.group or f"\0{example.path}" for example in examples]
    _, numbers = np.unique(names, return_inverse=True)
    return numbers.astype(np.int64) if len({*names}) < len(names) else None


def describe_errors(scores: Scores, classes: Sequence[str], examples: Sequence[Example], root: str) -> ImageDetails:
    """Return where a classifier goes wrong, on the images of these scores."""
    table = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(table, (scores.labels, scores.predicted), 1)
    counts, predicted, right = table.sum(1), table.sum(0), table.diagonal()
    cells = [(int(i), int(j), int(table[i, j])) for i, j in np.argwhere(table)]
    wrong = sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: (-cell[2], cell))
    return ImageDetails(
        per_class=[
            PerClass(
                name=name,
                n=int(counts[k]),
                recall=float(right[k] / counts[k]) if counts[k] else None,
                precision=float(right[k] / predicted[k]) if predicted[k] else None,
                predicted=int(predicted[k]),
            )
            for k, name in enumerate(classes)
        ],
        confusion=cells,
        confused=[
            ConfusedPair(true=classes[i], predicted=classes[j], n=n, share=float(n / counts[i]))
            for i, j, n in wrong[:MOST_CONFUSED]
        ],
        calibration=_bin_by_confidence(scores),
        highest_loss=describe_examples(
            scores, classes, examples, np.argsort(-scores.losses, kind="stable")[:HIGHEST_LOSS]
        ),
        root=root,
    )


def describe_examples(
    scores: Scores, classes: Sequence[str], examples: Sequence[Example], indices: Iterable[int]
) -> list[HighLoss]:
    """Return what these examples are, and what was predicted of them."""
    return [
        HighLoss(
            path=examples[i].path,
            sha256=examples[i].sha256,
            label=classes[scores.labels[i]],
            predicted=classes[scores.predicted[i]],
            loss=float(scores.losses[i]),
            probability=float(np.exp(-scores.losses[i])),
        )
        for i in indices
    ]


def _bin_by_confidence(scores: Scores) -> list[CalibrationBin]:
    """Return the bins of confidence that have any images."""
    member = metrics.assign_bins(scores.confidences)
    return [
        CalibrationBin(
            low=b / metrics.BINS,
            high=(b + 1) / metrics.BINS,
            n=int((member == b).sum()),
            confidence=float(scores.confidences[member == b].mean()),
            accuracy=float(scores.right[member == b].mean()),
        )
        for b in np.unique(member).tolist()
    ]
