"""What a classifier achieves on the images of a part that have no near-duplicate among the training images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.files.near_duplicates import list_copied
from dlcv_cli.files.splits import Split
from dlcv_cli.results.evaluation import NearDuplicates


def measure_without(split: Split, part: str, right: NDArray[np.bool_]) -> NearDuplicates | None:
    """Return how many images of a part have a near-duplicate in the split's training part, and the others' accuracy.

    Args:
        right: (N,), of each image whether it was classified correctly.

    Returns: None if no image has one, the split records none, or the part is the training part.
    """
    copied = list_copied(split, part) if part != "train" else set()
    others = np.array([example.sha256 not in copied for example in split.parts[part]])
    if others.all():
        return None
    count = int(others.sum())
    accuracy = float(right[others].mean()) if count else None
    return NearDuplicates(n=len(others) - count, n_without=count, top1_accuracy=accuracy)
