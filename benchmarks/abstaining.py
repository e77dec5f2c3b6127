"""How often more answers are wrong than `predict --abstain` was asked for, simulated with a known truth.

Probabilities are drawn from Beta(4, 1) and are calibrated: an answer of probability p is right with chance p.
"""

from __future__ import annotations

import argparse

import numpy as np
from tabulate import tabulate

from dlcv_cli.statistics.calibration import Reliability

NEW = 400_000  # examples on which the share of wrong answers is exact


def simulate(n: int, error: float, repeats: int) -> tuple[float, float, float]:
    """Return the shares of repetitions beyond the error and without a threshold, and the mean share of answers."""
    rng, beyond, without, answered = np.random.default_rng(0), 0, 0, []
    new = np.sort(rng.beta(4, 1, NEW))[::-1]
    wrong_above = np.cumsum(1 - new) / np.arange(1, NEW + 1)
    for _ in range(repeats):
        probabilities = np.sort(rng.beta(4, 1, n))[::-1]
        places = np.flatnonzero(rng.random(n) >= probabilities)
        chosen = Reliability(n, [(float(probabilities[i]), int(i)) for i in places]).choose_threshold(error)
        if not chosen:
            without += 1
            continue
        count = int((new > chosen.probability).sum())
        answered.append(count / NEW)
        beyond += wrong_above[count - 1] > error
    return beyond / repeats, without / repeats, float(np.mean(answered)) if answered else 0.0


def main() -> None:
    """Print a table with a row for each number of validation examples and each error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000)
    repeats = parser.parse_args().repeats
    rows = [
        [n, f"{100 * error:g}", *(f"{100 * share:.1f}" for share in simulate(n, error, repeats))]
        for n in (100, 300, 1000, 5000)
        for error in (0.02, 0.05, 0.1)
    ]
    print(tabulate(rows, headers=["n", "asked for, %", "beyond, %", "no threshold, %", "answered, %"]))


if __name__ == "__main__":
    main()
