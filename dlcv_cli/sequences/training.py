"""One training loop for all cells: one sequence a step, mean squared error, Adam.

Letters: N sequences, n of one length, T steps, F inputs a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dlcv_cli.config import SeqTrainConfig
from dlcv_cli.errors import DlcvError
from dlcv_cli.sequences.tasks import Floats, Sequences

EVALUATION_STEPS = 2**18  # at most so many time steps in one batch, to bound memory


@dataclass(frozen=True)
class Record:
    """A look at the losses: means of squared errors per sequence."""

    iteration: int  # sequences trained on so far
    train_loss: float | None  # mean since the last record, before each step; None when nothing was trained
    val_loss: float
    best: bool  # the lowest validation loss so far, the earliest where several are equal


def predict(module: nn.Module, data: Sequences) -> Floats:
    """Predictions (N,) in the order of the data; sequences of one length share a batch, so nothing is padded."""
    starts = np.concatenate([[0], np.cumsum(data.lengths)[:-1]])
    answers = np.empty(len(data.lengths), np.float32)
    with torch.inference_mode():
        for steps in np.unique(data.lengths):
            chosen = np.flatnonzero(data.lengths == steps)
            share = max(1, EVALUATION_STEPS // int(steps))
            for some in (chosen[i : i + share] for i in range(0, len(chosen), share)):
                x = data.inputs[starts[some, None] + np.arange(steps)]  # (n, T, F)
                answers[some] = module(torch.from_numpy(x)).numpy()
    return answers


def mean_squared_error(module: nn.Module, data: Sequences) -> float:
    """Mean of squared errors over the sequences, in float64."""
    return float(np.mean((predict(module, data).astype(np.float64) - data.targets) ** 2))


def fit(module: nn.Module, train: Sequences, val: Sequences, config: SeqTrainConfig) -> Iterator[Record]:
    """Trains in place; afterwards the module holds the weights of the lowest validation loss.

    The order is a function of (seed, epoch). A module without parameters is looked at once, at iteration 0.

    Raises:
        DlcvError: the loss stopped being a finite number.
    """
    weights = list(module.parameters())
    if not weights:
        yield Record(0, None, mean_squared_error(module, val), True)
        return
    xs = [torch.from_numpy(x)[None] for x in np.split(train.inputs, np.cumsum(train.lengths)[:-1])]  # (1, T, F) each
    targets = torch.from_numpy(train.targets)
    optimizer = torch.optim.Adam(weights, lr=config.lr, fused=True)
    total = config.epochs * len(xs)
    losses: list[torch.Tensor] = []
    lowest, best = math.inf, {}
    for iteration, i in enumerate(_order(len(xs), config), 1):
        loss = (module(xs[i]) - targets[i]).square().sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.detach())
        if iteration % config.record_every and iteration < total:
            continue
        train_loss, val_loss = float(torch.stack(losses).double().mean()), mean_squared_error(module, val)
        losses.clear()
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise DlcvError(f"the loss is no longer a finite number at iteration {iteration:,}: try a lower --lr")
        improved = val_loss < lowest
        if improved:
            lowest, best = val_loss, {name: t.clone() for name, t in module.state_dict().items()}
        yield Record(iteration, train_loss, val_loss, improved)
    module.load_state_dict(best)


def _order(count: int, config: SeqTrainConfig) -> Iterator[int]:
    for epoch in range(config.epochs):
        order: NDArray[np.int64] = np.random.default_rng((config.seed, epoch)).permutation(count)
        yield from order.tolist()
