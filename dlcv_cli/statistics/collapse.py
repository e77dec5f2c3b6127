"""Networks that have learned to ignore what they see. Letters: N examples, K classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.statistics.metrics import CLOSE, regression
from dlcv_cli.statistics.significance import bca, mean_of, wilson

FEW = 4  # a network that answers with a quarter of the classes that occur, or fewer, has collapsed
FEWEST = 30  # on fewer examples even a good network cannot be told from the baseline: they say nothing
SAME = 0.95  # so has one with this share of its answers in one place


def of_classes(
    answered: NDArray[np.int64], labels: NDArray[np.int64], right: int, baseline: int, names: list[str]
) -> dict[str, Any]:
    """Whether an image network has collapsed.

    It has when it answers with few of the classes that occur, or is right no more often than the upper end of the 95 %
    interval of the baseline's accuracy, on FEWEST examples or more.

    Args:
        answered: (K,), how often it answers with each class. labels: (N,), of the same images.
        right: how many of its answers are. baseline: the class that the baseline always answers.

    Returns: collapsed; why, in words, or None; answers, how many different ones; most_frequent, a class name; share of
        the answers, in 0..1.
    """
    n, occur, different = len(labels), len(np.unique(labels)), int(np.count_nonzero(answered))
    low, high = wilson(int((labels == baseline).sum()), n)
    why = None
    if occur > 1 and different <= max(1, occur // FEW):
        why = f"answers with {different} of {occur} classes"
    elif n >= FEWEST and right / n <= high:
        why = f"no better than always {names[baseline]} ({100 * low:.1f} to {100 * high:.1f} % right)"
    most = int(answered.argmax())
    return _verdict(why, different, names[most], float(answered[most] / n))


def of_numbers(
    predictions: NDArray[np.float32], targets: NDArray[np.float32], constant: float, learns: bool = True
) -> dict[str, Any]:
    """Whether a cell has collapsed, in any of its runs: predictions (runs, N) against targets (N,).

    A run has when SAME of its answers lie within CLOSE of their median, or its mean squared error reaches the lower end
    of the 95 % interval of the constant's, on FEWEST sequences or more. What does not learn (the baseline) does not
    collapse.

    Returns: as `of_classes`, of the run with most answers in one place; answers None, they are numbers.
    """
    middles = np.median(predictions, axis=1)
    shares = np.mean(np.abs(predictions - middles[:, None]) < CLOSE, axis=1)
    spread = float(np.mean(np.abs(targets - np.median(targets)) < CLOSE))
    [(low, high)] = bca([mean_of((targets.astype(np.float64) - constant) ** 2)])
    whys = []
    for share, answers in zip(shares, predictions, strict=True):
        if share >= SAME > spread:
            whys.append(f"{100 * share:.0f} % of the answers are the same within {CLOSE}")
        elif len(targets) >= FEWEST and regression(answers, targets)["mse"] >= low:
            whys.append(f"no better than constant {constant:g} (MSE {low:.3g} to {high:.3g})")
    why = whys[0] if whys and learns else None
    if why and len(predictions) > 1:
        why = f"{len(whys)} of {len(predictions)} runs: {why}"
    most = int(shares.argmax())
    return _verdict(why, None, f"{middles[most]:.3g}", float(shares[most]))


def _verdict(why: str | None, answers: int | None, most_frequent: str, share: float) -> dict[str, Any]:
    return {
        "collapsed": why is not None, "why": why, "answers": answers, "most_frequent": most_frequent, "share": share,
    }  # fmt: skip
