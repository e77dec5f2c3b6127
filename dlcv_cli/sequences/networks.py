"""The cells in torch, on torch.nn's own layers.

Letters: n sequences of one length, T steps, F inputs a step, D hidden size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dlcv_cli.sequences.cells import Cell, Parameters


class Constant(nn.Module):
    """The baseline: one number, whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.constant: Tensor
        self.register_buffer("constant", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(n, T, F) -> (n,)."""
        return self.constant.expand(len(x))


class Recurrent(nn.Module):
    """A recurrent layer from zero state, and a linear layer on its last hidden state."""

    def __init__(self, cell: Cell, inputs: int, hidden: int) -> None:
        super().__init__()
        layer = getattr(nn, str(cell.module))
        self.rnn: nn.RNNBase = layer(inputs, hidden, batch_first=True, **(cell.options or {}))
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, T, F) -> (n,)."""
        states, _ = self.rnn(x)  # (n, T, D)
        answer: Tensor = self.head(states[:, -1])  # (n, 1)
        return answer.squeeze(1)


def network(cell: Cell, parameters: Parameters) -> nn.Module:
    """The cell with these weights, widths taken from them.

    Raises:
        ValueError: the arrays are not those of this cell.
    """
    if any(array.dtype != np.float32 for array in parameters.values()):
        raise ValueError("its tensors are not all float32")
    module: nn.Module
    try:
        if cell.module is None:
            module = Constant()
        else:
            inputs = parameters["rnn.weight_ih_l0"].shape[1]
            hidden = parameters["rnn.weight_hh_l0"].shape[1]
            module = Recurrent(cell, inputs, hidden)
        module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in parameters.items()})
    except (RuntimeError, KeyError, IndexError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    return module


def parameters(module: nn.Module) -> Parameters:
    """The weights as arrays, by name."""
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}
