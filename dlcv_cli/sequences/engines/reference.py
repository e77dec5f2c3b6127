"""The reference engine: the cells on torch.nn's own layers, with autograd and torch.optim.Adam.

Letters: n sequences of one length, T steps, F inputs a step, D hidden size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dlcv_cli.config import SeqTrainConfig
from dlcv_cli.errors import SettingError
from dlcv_cli.sequences.cells import Cell, Parameters, check_parameters
from dlcv_cli.sequences.engines.base import Order
from dlcv_cli.sequences.tasks import Floats, Sequences

PREDICT_STEPS = 2**18  # most time steps in one batch of predictions, to bound memory
PACE = 2000  # time steps that take a few tenths of a second


class Recurrent(nn.Module):
    """A recurrent layer from zero state, and a linear layer on its last hidden state."""

    def __init__(self, cell: Cell, inputs: int, hidden: int) -> None:
        super().__init__()
        layer = getattr(nn, cell.module, None) if isinstance(cell.module, str) else cell.module
        if layer is None:
            raise SettingError(f"torch.nn has no layer {cell.module!r}: give the class itself in the cell's entry")
        self.rnn = layer(inputs, hidden, batch_first=True, **(cell.options or {}))
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, T, F) -> (n,)."""
        states, _ = self.rnn(x)  # (n, T, D)
        prediction: Tensor = self.head(states[:, -1])  # (n, 1)
        return prediction.squeeze(1)


class Constant(nn.Module):
    """The baseline, which predicts its constant (1,) for every sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(n, T, F) -> (n,)."""
        return self.constant.expand(x.shape[0])


def build_module(cell: Cell, parameters: Parameters, inputs: int) -> nn.Module:
    """Return the network with these weights: (n, T, F) -> (n,)."""
    module = Recurrent(cell, inputs, parameters["head.weight"].shape[1]) if cell.module else Constant()
    module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in parameters.items()})
    return module.eval()


class Reference:
    """One network. Sets torch's threads to one: at this size a second thread makes it slower."""

    def __init__(
        self, cell: Cell, parameters: Parameters, config: SeqTrainConfig, train: Sequences | None = None
    ) -> None:
        torch.set_num_threads(1)
        inputs = parameters["rnn.weight_ih_l0"].shape[-1]
        parameters = check_parameters(cell, parameters, inputs)
        self.module = Recurrent(cell, inputs, parameters["head.weight"].shape[1])
        own = {name: tuple(tensor.shape) for name, tensor in self.module.state_dict().items()}
        for name in own | parameters:
            expected = parameters[name].shape if name in parameters else "none"
            if own.get(name) != expected:
                difference = f"{name} is {own.get(name, 'missing')}, and by `gates` and names it would be {expected}"
                raise SettingError(f"the cell's layer has other parameters than its entry says: {difference}")
        self._load(parameters)
        self.config = config
        if train:
            self.xs = [torch.from_numpy(x)[None] for x in np.split(train.inputs, np.cumsum(train.lengths)[:-1])]
            self.targets = torch.from_numpy(train.targets)
            self.optimizer = torch.optim.Adam(self.module.parameters(), lr=config.lr, fused=True)

    def _load(self, parameters: Parameters) -> None:
        self.module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in parameters.items()})

    def advance(self, order: Order) -> tuple[float, int]:
        """See Engine."""
        total, size = 0.0, self.config.batch_size
        for step, first in enumerate(range(0, len(order), size)):
            batch = order[first : first + size]
            errors = torch.cat([self.module(self.xs[i]) - self.targets[i] for i in batch.tolist()])
            loss = errors.square().sum()
            if not torch.isfinite(loss):
                return total, step
            self.optimizer.zero_grad()
            torch.autograd.backward(loss / len(batch))
            if self.config.clip_norm:
                nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
            self.optimizer.step()
            total += loss.item()
        return total, -(-len(order) // size)

    def predict(self, data: Sequences) -> Floats:
        """See Engine. Sequences of equal length share a batch."""
        starts = np.concatenate([[0], np.cumsum(data.lengths)[:-1]])
        predictions = np.empty(len(data.lengths), np.float32)
        with torch.inference_mode():
            for steps in np.unique(data.lengths):
                numbers = np.flatnonzero(data.lengths == steps)
                size = max(1, PREDICT_STEPS // int(steps))
                for batch in (numbers[i : i + size] for i in range(0, len(numbers), size)):
                    x = data.inputs[starts[batch, None] + np.arange(steps)]  # (n, T, F)
                    predictions[batch] = self.module(torch.from_numpy(x)).numpy()
        return predictions

    def copy_parameters(self) -> Parameters:
        """See Engine."""
        return {name: tensor.detach().numpy().copy() for name, tensor in self.module.state_dict().items()}

    def copy_moments(self) -> tuple[Parameters, Parameters]:
        """See Engine."""
        states = {name: self.optimizer.state[p] for name, p in self.module.named_parameters()}
        zeros = {name: torch.zeros_like(p) for name, p in self.module.named_parameters()}  # before the first step
        means, squares = (
            {name: state.get(key, zeros[name]).numpy().copy() for name, state in states.items()}
            for key in ("exp_avg", "exp_avg_sq")
        )
        return means, squares

    def restore(self, parameters: Parameters, means: Parameters, squares: Parameters, steps: int) -> None:
        """See Engine."""
        self._load(parameters)
        for name, p in self.module.named_parameters():
            mean, square = (torch.from_numpy(moments[name].copy()) for moments in (means, squares))
            self.optimizer.state[p] = {"step": torch.tensor(float(steps)), "exp_avg": mean, "exp_avg_sq": square}

    def choose_pace(self) -> int:
        """See Engine."""
        steps = sum(x.shape[1] for x in self.xs) / len(self.xs) * self.config.batch_size
        return max(1, int(PACE / steps))
