"""The default engine: the compiled cells of kernels.py, without torch.

Letters: N sequences, S steps of all of them, F inputs a step, D hidden size, G gates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.config import SeqTrainConfig
from dlcv_cli.sequences.cells import Cell, Parameters, check_parameters
from dlcv_cli.sequences.engines import kernels
from dlcv_cli.sequences.engines.base import Order
from dlcv_cli.sequences.tasks import Floats, Sequences

PACE = 2e9  # operations: 0.04 to 0.3 s on one core


class Compiled:
    """One network on one thread. The kernels release the GIL, so several train side by side in threads.

    `dtype` is float32, or float64 to check the kernels' gradients.
    """

    def __init__(
        self,
        cell: Cell,
        parameters: Parameters,
        config: SeqTrainConfig,
        train: Sequences | None = None,
        dtype: Any = np.float32,
    ) -> None:
        self.inputs, self.hidden = parameters["rnn.weight_ih_l0"].shape[-1], parameters["head.weight"].shape[-1]
        parameters = check_parameters(cell, parameters, self.inputs)
        self.gates, self.config, self.dtype, self.done = cell.gates, config, dtype, 0
        self.shapes = {name: array.shape for name, array in parameters.items()}
        self.sizes = tuple(array.shape for array in self._to_kernel(parameters))
        steps, batch = (_count_steps(train.lengths, config.batch_size), config.batch_size) if train else (0, 1)
        self.weights, self.means, self.squares, self.workspace = self._allocate(steps, batch)
        _copy(self._to_kernel(parameters), self.weights)
        if train:
            self.data = self._to_arrays(train)

    def _allocate(self, steps: int, batch: int) -> list[tuple[NDArray[Any], ...]]:
        """Return the arrays of weights, both moments and workspace, for batches of at most `steps` steps."""
        of_workspace = kernels.list_workspace_shapes(self.inputs, self.hidden, self.gates, steps, batch)
        arrays = kernels.allocate([*self.sizes * 3, *of_workspace], self.dtype)
        groups = [arrays[i * len(self.sizes) : (i + 1) * len(self.sizes)] for i in range(3)]
        workspace = arrays[3 * len(self.sizes) :]
        workspace[9][:] = 1
        return [*groups, workspace]

    def _to_arrays(self, data: Sequences) -> tuple[NDArray[Any], ...]:
        """Return inputs (S, F), starts (N,), lengths (N,) and targets (N,). Writable, or numba compiles anew."""
        starts = np.concatenate([[0], np.cumsum(data.lengths)[:-1]])
        inputs = np.require(data.inputs, self.dtype, ["C", "W"])
        return inputs, starts, np.require(data.lengths, np.int64, ["C", "W"]), data.targets.astype(self.dtype)

    def advance(self, order: Order) -> tuple[float, int]:
        """See Engine."""
        c = self.config
        total, steps = kernels.train(
            self.gates, self.weights, self.means, self.squares, self.workspace, self.data, order, c.batch_size, c.lr,
            c.clip_norm or 0.0, self.done,
        )  # fmt: skip
        self.done += steps
        return total, steps

    def predict(self, data: Sequences) -> Floats:
        """See Engine."""
        out = np.empty(len(data.lengths), self.dtype)
        weights, _, _, workspace = self._allocate(int(data.lengths.max()), 1)
        _copy(self.weights, weights)
        kernels.predict(self.gates, weights, workspace, self._to_arrays(data), out)
        return out

    def _to_kernel(self, parameters: Parameters) -> tuple[NDArray[Any], ...]:
        """Return copies as the kernels take them: matrices with the gates innermost, vectors as one row."""
        arrays = (a.T if a.ndim == 2 and "rnn" in n else a for n, a in parameters.items())
        return tuple(np.atleast_2d(a).astype(self.dtype) for a in arrays)

    def _from_kernel(self, arrays: tuple[NDArray[Any], ...]) -> Parameters:
        """Return copies as torch.nn has them: the inverse of `_to_kernel`."""
        named = zip(self.shapes.items(), arrays, strict=True)
        return {n: np.array(w.T if "weight" in n and "rnn" in n else w).reshape(shape) for (n, shape), w in named}

    def copy_parameters(self) -> Parameters:
        """See Engine."""
        return self._from_kernel(self.weights)

    def copy_moments(self) -> tuple[Parameters, Parameters]:
        """See Engine."""
        return self._from_kernel(self.means), self._from_kernel(self.squares)

    def restore(self, parameters: Parameters, means: Parameters, squares: Parameters, steps: int) -> None:
        """See Engine."""
        for group, arrays in ((parameters, self.weights), (means, self.means), (squares, self.squares)):
            _copy(self._to_kernel({name: group[name] for name in self.shapes}), arrays)
        self.done = steps

    def choose_pace(self) -> int:
        """See Engine."""
        n = self.gates * self.hidden
        # 2 operations per weight, each for forward, backward and gradient; Adam: about 20 per weight and batch
        sequence = 6 * self.data[2].mean() * n * (self.hidden + self.inputs)
        batch = sequence * self.config.batch_size + 20 * sum(w.size for w in self.weights)
        return max(1, int(PACE / batch))


def _copy(sources: tuple[NDArray[Any], ...], targets: tuple[NDArray[Any], ...]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target[...] = source


def _count_steps(lengths: NDArray[np.int64], batch: int) -> int:
    """Return the largest number of steps in a batch, which may hold a sequence twice where two epochs meet."""
    times = -(-batch // len(lengths)) + 1
    return int(np.sort(np.repeat(lengths, times))[-batch:].sum())
