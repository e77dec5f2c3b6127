"""The networks that read a sequence, one entry each in CELLS: a recurrent layer and a linear layer on its last state.

Tensors have torch.nn's names behind `rnn.` (nn.RNN, nn.LSTM, nn.GRU) and `head.` (nn.Linear), so a checkpoint
loads into those classes. Initial weights come from NumPy: the same for whatever computes with them.
Letters: F inputs a step, D hidden size, G gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Parameters = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Cell:
    """One network: its recurrent layer's class in torch.nn and its gates; none for the baseline."""

    module: str | None
    gates: int = 0
    options: Mapping[str, str] | None = None  # for torch.nn's class


CELLS: dict[str, Cell] = {
    "baseline": Cell(None),  # answers the task's constant whatever it sees
    "elman": Cell("RNN", gates=1),
    "lstm": Cell("LSTM", gates=4),
    "gru": Cell("GRU", gates=3),
}


def initial_parameters(cell: Cell, inputs: int, hidden: int, constant: float, seed: int) -> Parameters:
    """Random weights, all uniform in +-1/sqrt(D). Source: the initialisation of torch.nn.RNN and torch.nn.Linear.

    Returns: rnn.weight_ih_l0 (G*D, F), rnn.weight_hh_l0 (G*D, D), rnn.bias_ih_l0 and rnn.bias_hh_l0 (G*D,),
        head.weight (1, D), head.bias (1,); for the baseline only constant (1,). float32.
    """
    if cell.module is None:
        return {"constant": np.array([constant], np.float32)}
    rng, bound, width = np.random.default_rng(seed), hidden**-0.5, cell.gates * hidden
    shapes = {
        "rnn.weight_ih_l0": (width, inputs),
        "rnn.weight_hh_l0": (width, hidden),
        "rnn.bias_ih_l0": (width,),
        "rnn.bias_hh_l0": (width,),
        "head.weight": (1, hidden),
        "head.bias": (1,),
    }
    return {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}
