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
from dlcv_cli.vision.transforms import Images, map_in_order

DECAYS = (1e-3, 1e-4, 1e-5, 1e-6)  # in units of the features' variance, the strongest first
ITERATIONS = 30  # at each decay: 100 give the same ranking
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


def predict_out_of_fold(
    x: Tensor, labels: Tensor, classes: int, folds: Tensor, threads: int, reporter: Reporter
) -> OutOfFold:
    """Return each image's probabilities by the head that was trained on the other folds.

    The weight decay is chosen on fold 0: from the strongest on, until the loss there rises. All heads have that one, so
    all probabilities are of one kind. Each head is computed by a single thread, so that the number of threads does not
    change it, and several heads at a time.

    Args:
        x: features (N, C) float32. labels, folds: (N,) int64; all on one device.
    """
    count = int(folds.max()) + 1
    probabilities = torch.empty(len(x), classes, dtype=torch.float64, device=x.device)

    def predict(fold: int) -> list[tuple[float, Tensor]]:
        return _solve_fold(x, labels, classes, folds == fold, decays, choose=fold == 0)

    decays = list_decays(x, DECAYS)
    for jobs in ((0,), range(1, count)):
        for fold, solved in map_in_order(predict, jobs, threads, threads):
            probabilities[folds == fold] = solved[-1][1]
            decays = [decay for decay, _ in solved]
            reporter.progress("folds", fold + 1, count)
    return OutOfFold(probabilities.cpu().numpy(), decays[-1])


def _solve_fold(
    x: Tensor, labels: Tensor, classes: int, held_out: Tensor, decays: Sequence[float], choose: bool
) -> list[tuple[float, Tensor]]:
    """Return each decay with the probabilities (n, K) float64 of the images held out; the last are the ones to take.

    Args:
        decays: each begins where the one before ends, so those before the last are needed too.
        choose: end at the decay behind which the loss rises.
    """
    solved: list[tuple[float, Tensor]] = []
    best = float("inf")
    for solution in solve(x[~held_out], labels[~held_out], classes, decays, F.cross_entropy, ITERATIONS):
        logits = F.linear(x[held_out], solution.weight, solution.bias).double()
        loss = F.cross_entropy(logits, labels[held_out]).item()
        if choose and loss >= best:
            break
        best = loss
        solved.append((solution.weight_decay, logits.softmax(1)))
    return solved
