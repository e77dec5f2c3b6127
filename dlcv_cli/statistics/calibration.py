"""Probabilities that mean what they say: a temperature, and thresholds below which no answer is given.

Letters: N examples, K classes, E wrong answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.statistics.metrics import Scores, score_logits

TEMPERATURES = (0.01, 100.0)  # range that is searched
CONFIDENCE = 0.95  # that the share of wrong answers is no larger than stated


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the number by which logits (N, K) are divided so that their mean cross-entropy is lowest.

    Source: Guo et al. 2017 (arXiv:1706.04599), temperature scaling.

    Raises:
        ValueError: there is no lowest one in the range, or every answer is right: then the loss falls to 0 with it.
    """
    from scipy.optimize import minimize_scalar

    exact = logits.astype(np.float64)
    if score_logits(exact, labels).right.all():
        raise ValueError("every answer is right, and the lower the temperature, the lower the loss")

    def loss(log_temperature: float) -> float:
        return float(score_logits(exact / math.exp(log_temperature), labels).losses.mean())

    low, high = map(math.log, TEMPERATURES)
    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x
    if min(best - low, high - best) < 1e-3:
        raise ValueError(f"the loss is lowest beyond the temperatures {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g}")
    return math.exp(best)


@dataclass(frozen=True)
class Threshold:
    """A probability that an answer must exceed, and what that gave on the examples it was chosen on."""

    probability: float
    answered: int
    wrong: int
    n: int


@dataclass(frozen=True)
class Reliability:
    """How often a classifier is wrong above each probability, on N examples.

    wrong: for each wrong answer, the most confident first: its probability, and the number of answers above that.
    """

    n: int
    wrong: list[tuple[float, int]]

    def choose_threshold(self, error: float) -> Threshold | None:
        """Return the lowest threshold above which at most this share of answers is wrong; None: there is none.

        The share's upper limit counts (Clopper and Pearson, one-sided), not the share itself, which is as often too
        low as too high. Source: Geifman & El-Yaniv 2017 (arXiv:1705.08500), without their search's correction.
        """
        best = None
        for limit, threshold in self._list_limits():
            if limit <= error:
                best = threshold
        return best

    @property
    def lowest_error(self) -> float:
        """The lowest share that `choose_threshold` finds a threshold for; 1 if there is none."""
        return min((limit for limit, _ in self._list_limits()), default=1.0)

    def _list_limits(self) -> list[tuple[float, Threshold]]:
        """Return the upper limit of the share of wrong answers above each threshold that is worth a look.

        These are just above the next wrong answer, where the answers are most for that number of wrong ones.
        """
        from scipy.special import betaincinv

        places = enumerate([*self.wrong, (0.0, self.n)])
        return [
            (
                float(betaincinv(wrong + 1, own - wrong, CONFIDENCE)),
                Threshold(probability, own, wrong, self.n),
            )
            for wrong, (probability, own) in places
            if own > wrong
        ]


def measure_reliability(scores: Scores) -> Reliability:
    """Return how often the predictions (N,) are wrong above each probability."""
    confidences = np.sort(scores.confidences)
    wrong = np.sort(scores.confidences[~scores.right])[::-1]
    above = len(confidences) - np.searchsorted(confidences, wrong, side="right")
    return Reliability(len(confidences), list(zip(wrong.tolist(), above.tolist(), strict=True)))
