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
    keeps: int | None = None  # which gate keeps the state when it is open
    writes: int | None = None  # which gate lets new into it, where that is another one
    compiled: bool = False  # whether kernels.py has it; else it trains with --engine torch


CELLS: dict[str, Cell] = {
    "baseline": Cell(None, compiled=True),  # answers the task's constant whatever it sees
    "elman": Cell("RNN", gates=1, compiled=True),
    "lstm": Cell("LSTM", gates=4, keeps=1, writes=0, compiled=True),
    "gru": Cell("GRU", gates=3, keeps=1, compiled=True),
}


def shapes(cell: Cell, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """The shape of each weight by name: rnn.weight_ih_l0 (G*D, F), and so on; for the baseline only constant (1,)."""
    width = cell.gates * hidden
    if cell.module is None:
        return {"constant": (1,)}
    return {
        "rnn.weight_ih_l0": (width, inputs),
        "rnn.weight_hh_l0": (width, hidden),
        "rnn.bias_ih_l0": (width,),
        "rnn.bias_hh_l0": (width,),
        "head.weight": (1, hidden),
        "head.bias": (1,),
    }


def checked(cell: Cell, parameters: Parameters, inputs: int) -> Parameters:
    """The cell's weights in the order of `shapes`. ValueError unless these are they, for `inputs` numbers a step."""
    hidden = parameters.get("head.weight", np.empty(0)).size
    wanted, found = shapes(cell, inputs, hidden), {name: array.shape for name, array in parameters.items()}
    wrong = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if wrong:
        name = wrong[0]
        raise ValueError(f"tensor {name} is {found.get(name, 'missing')}, this cell has {wanted.get(name, 'none')}")
    if any(array.dtype != np.float32 for array in parameters.values()):
        raise ValueError("its tensors are not all float32")
    return {name: parameters[name] for name in wanted}


def initial_parameters(
    cell: Cell, inputs: int, hidden: int, constant: float, seed: int, chrono: int | None = None
) -> Parameters:
    """Random weights, all uniform in +-1/sqrt(D). Source: the initialisation of torch.nn.RNN and torch.nn.Linear.

    With `chrono`, the biases of the gate that keeps the state are log u instead, u uniform in [1, chrono - 1], so that
    each unit begins with a memory of some u steps; those of the gate that writes are the opposite.
    Source: Tallec & Ollivier 2018 (arXiv:1804.11188).

    Returns: float32 arrays of these `shapes`.
    """
    if cell.module is None:
        return {"constant": np.array([constant], np.float32)}
    rng, bound = np.random.default_rng(seed), hidden**-0.5
    wanted = shapes(cell, inputs, hidden)
    found = {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in wanted.items()}
    if chrono:
        memory = np.log(rng.uniform(1, chrono - 1, hidden)).astype(np.float32)
        for gate, bias in ((cell.keeps, memory), (cell.writes, -memory)):
            if gate is not None:
                units = slice(gate * hidden, (gate + 1) * hidden)
                found["rnn.bias_ih_l0"][units], found["rnn.bias_hh_l0"][units] = 0, bias
    return found
