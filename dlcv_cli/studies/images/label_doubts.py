"""Out-of-fold probabilities of images: each from a linear head that has not seen it, on the features of frozen layers.

Letters: N images, C channels, K classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dlcv_cli.context import Context, Reporter
from dlcv_cli.studies.images.features import FrozenLayers, open_sources
from dlcv_cli.vision.linear import LinearHead, list_decays, solve
from dlcv_cli.vision.splits import Example, link_examples
from dlcv_cli.vision.transforms import Images

DECAYS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)  # in units of the features' variance
BATCH = 256  # images that are pooled at a time


@dataclass(frozen=True)
class OutOfFold:
    """Probabilities of images, from heads that were trained without them and the images linked to them."""

    probabilities: NDArray[np.float64]  # (N, K)
    weight_decay: float  # of the heads


def assign_folds(examples: Sequence[Example], folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each example (N,), in 0..folds-1. Each class is divided evenly; linked examples stay together.

    The order in which they are dealt out depends on the seed and the paths alone.
    """
    counts: dict[tuple[int, int], int] = defaultdict(int)  # fold, label: examples
    totals = [0] * folds
    by_path: dict[str, int] = {}
    for group in link_examples(examples, seed):
        fold = min(range(folds), key=lambda own: (counts[own, group.label], totals[own]))
        totals[fold] += len(group.examples)
        for example in group.examples:
            counts[fold, example.label] += 1
            by_path[example.path] = fold
    return np.array([by_path[example.path] for example in examples], np.int64)


def pool_features(frozen: FrozenLayers, parts: Sequence[Images], context: Context) -> Tensor:
    """Return the input of a linear head (N, C) float32 for the images of all parts, one part after the other."""
    sources, _ = open_sources(frozen, parts, [1] * len(parts), context)
    head, total, pooled = LinearHead.of(frozen.split), sum(map(len, sources)), list[Tensor]()
    with torch.inference_mode():
        for source in sources:
            for x in source.batches(np.arange(len(source)), BATCH, 0):
                pooled.append(head.pool(x))
                context.reporter.progress("pooling features", sum(map(len, pooled)), total)
        return torch.cat(pooled).clone()


def predict_out_of_fold(x: Tensor, labels: Tensor, classes: int, folds: Tensor, reporter: Reporter) -> OutOfFold:
    """Return each image's probabilities by the head that was trained on the other folds.

    The weight decay is chosen on fold 0: from the strongest on, until the loss there rises. All heads have that one, so
    all probabilities are of one kind.

    Args:
        x: features (N, C) float32. labels, folds: (N,) int64; all on one device.
    """
    count = int(folds.max()) + 1
    decay, first = _choose_decay(x, labels, classes, folds == 0)
    probabilities = torch.empty(len(x), classes, dtype=torch.float64, device=x.device)
    probabilities[folds == 0] = first
    reporter.progress("folds", 1, count)
    for fold in range(1, count):
        own = folds == fold
        (solution,) = solve(x[~own], labels[~own], classes, [decay], F.cross_entropy)
        probabilities[own] = F.linear(x[own], solution.weight, solution.bias).double().softmax(1)
        reporter.progress("folds", fold + 1, count)
    return OutOfFold(probabilities.cpu().numpy(), decay)


def _choose_decay(x: Tensor, labels: Tensor, classes: int, held_out: Tensor) -> tuple[float, Tensor]:
    """Return the weight decay with the lowest loss on the images held out, and their probabilities (n, K) float64."""
    train, best_loss, best = ~held_out, float("inf"), (0.0, torch.empty(0))
    decays = list_decays(x[train], DECAYS)
    for solution in solve(x[train], labels[train], classes, decays, F.cross_entropy):
        logits = F.linear(x[held_out], solution.weight, solution.bias).double()
        loss = F.cross_entropy(logits, labels[held_out]).item()
        if loss >= best_loss:
            break
        best_loss, best = loss, (solution.weight_decay, logits.softmax(1))
    return best
