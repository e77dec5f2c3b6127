"""The sequence networks, one entry each in CELLS: a recurrent layer, and a linear layer on its last state.

Tensors are named as in torch.nn, with the prefix `rnn.` (nn.RNN, nn.LSTM, nn.GRU) or `head.` (nn.Linear), so a
checkpoint loads into those classes. Initial weights come from NumPy and are the same for every engine.

A cell of your own is an entry whose `module` is a class (or a function that returns a module) called and shaped like
nn.GRU: `module(inputs, hidden, batch_first=True, **options)`, whose parameters are weight_ih_l0 (G*D, F),
weight_hh_l0 (G*D, D), bias_ih_l0 and bias_hh_l0 (G*D), and which returns (states (n, T, D), anything). It trains with
`--engine torch`; `compiled=True` needs kernels for it in engines/kernels.py.

Letters: n sequences of a batch, T steps, F inputs a step, D hidden size, G gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Parameters = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Cell:
    """One network. `module` is its recurrent layer: a name in torch.nn, or a class; None for the baseline."""

    module: str | Callable[..., Any] | None
    gates: int = 0
    options: Mapping[str, Any] | None = None  # further arguments of the layer's class
    keeps: int | None = None  # number of the gate that keeps the state while it is open
    writes: int | None = None  # number of the gate that lets new values into the state, if it is another gate
    compiled: bool = False  # whether engines/kernels.py has kernels for it; if not, it trains with --engine torch


CELLS: dict[str, Cell] = {
    "baseline": Cell(None, compiled=True),  # predicts the task's constant for every sequence
    "elman": Cell("RNN", gates=1, compiled=True),
    "lstm": Cell("LSTM", gates=4, keeps=1, writes=0, compiled=True),
    "gru": Cell("GRU", gates=3, keeps=1, compiled=True),
}


def list_shapes(cell: Cell, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight by name: rnn.weight_ih_l0 (G*D, F), ...; for the baseline only constant (1,)."""
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


def check_parameters(cell: Cell, parameters: Parameters, inputs: int) -> Parameters:
    """Return the weights in the order of `list_shapes`. Raise ValueError unless they are float32 of these shapes."""
    hidden = parameters.get("head.weight", np.empty(0)).size
    expected, actual = list_shapes(cell, inputs, hidden), {name: array.shape for name, array in parameters.items()}
    wrong = [name for name in expected | actual if expected.get(name) != actual.get(name)]
    if wrong:
        name = wrong[0]
        raise ValueError(f"tensor {name} is {actual.get(name, 'missing')}, this cell has {expected.get(name, 'none')}")
    if any(array.dtype != np.float32 for array in parameters.values()):
        raise ValueError("its tensors are not all float32")
    return {name: parameters[name] for name in expected}


def draw_parameters(
    cell: Cell, inputs: int, hidden: int, constant: float, seed: int, chrono: int | None = None
) -> Parameters:
    """Return random float32 weights of the shapes of `list_shapes`, all uniform in +-1/sqrt(D).

    With `chrono`, the biases of the gate that keeps the state are log u instead, u uniform in [1, chrono - 1], so that
    each unit starts with a memory of about u steps; those of the gate that writes are -log u.

    Source: the initialisation of torch.nn.RNN and torch.nn.Linear; Tallec & Ollivier 2018 (arXiv:1804.11188).
    """
    if cell.module is None:
        return {"constant": np.array([constant], np.float32)}
    rng, bound = np.random.default_rng(seed), hidden**-0.5
    parameters = {
        name: rng.uniform(-bound, bound, shape).astype(np.float32)
        for name, shape in list_shapes(cell, inputs, hidden).items()
    }
    if chrono:
        memory = np.log(rng.uniform(1, chrono - 1, hidden)).astype(np.float32)
        for gate, bias in ((cell.keeps, memory), (cell.writes, -memory)):
            if gate is not None:
                units = slice(gate * hidden, (gate + 1) * hidden)
                parameters["rnn.bias_ih_l0"][units], parameters["rnn.bias_hh_l0"][units] = 0, bias
    return parameters
