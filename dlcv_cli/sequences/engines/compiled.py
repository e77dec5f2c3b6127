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
        self.weights = self._to_kernel(parameters)
        self.means, self.squares = (tuple(kernels.aligned(w * 0) for w in self.weights) for _ in range(2))
        if train:
            self.data = self._arrays(train)
            self.workspace = self._make_workspace(0, config.batch_size)

    def _make_workspace(self, steps: int, batch: int) -> tuple[NDArray[Any], ...]:
        return kernels.make_workspace(self.inputs, self.hidden, self.gates, steps, batch, self.dtype)

    def _arrays(self, data: Sequences) -> tuple[NDArray[Any], ...]:
        starts = np.concatenate([[0], np.cumsum(data.lengths)[:-1]])
        # writable, because numba would compile anew for arrays that are not
        inputs, lengths = (
            np.require(data.inputs, self.dtype, ["C", "W"]),
            np.require(data.lengths, np.int64, ["C", "W"]),
        )
        return inputs, starts, lengths, data.targets.astype(self.dtype)

    def advance(self, order: Order) -> tuple[float, int]:
        """See Engine."""
        c = self.config
        # a batch over an epoch's end may have a sequence twice: what it needs is known only from the order
        needed = int(np.add.reduceat(self.data[2][order], np.arange(0, len(order), c.batch_size)).max())
        if needed > len(self.workspace[0]):
            self.workspace = self._make_workspace(needed, c.batch_size)
        total, steps = kernels.train(
            self.gates, self.weights, self.means, self.squares, self.workspace, self.data, order, c.batch_size, c.lr,
            c.clip_norm or 0.0, self.done,
        )  # fmt: skip
        self.done += steps
        return total, steps

    def predict(self, data: Sequences) -> Floats:
        """See Engine."""
        out = np.empty(len(data.lengths), self.dtype)
        workspace = self._make_workspace(int(data.lengths.max()), 1)
        kernels.predict(self.gates, self.weights, workspace, self._arrays(data), out)
        return out

    def _to_kernel(self, parameters: Parameters) -> tuple[NDArray[Any], ...]:
        """Return arrays as the kernels take them: matrices with the gates innermost, vectors as one row."""
        arrays = (a.T if a.ndim == 2 and "rnn" in n else a for n, a in parameters.items())
        return tuple(kernels.aligned(np.atleast_2d(a).astype(self.dtype)) for a in arrays)

    def _from_kernel(self, arrays: tuple[NDArray[Any], ...]) -> Parameters:
        """Return copies as torch.nn has them: the opposite of `_to_kernel`."""
        named = zip(self.shapes.items(), arrays, strict=True)
        return {n: np.array(w.T if "weight" in n and "rnn" in n else w).reshape(shape) for (n, shape), w in named}

    def parameters(self) -> Parameters:
        """See Engine."""
        return self._from_kernel(self.weights)

    def moments(self) -> tuple[Parameters, Parameters]:
        """See Engine."""
        return self._from_kernel(self.means), self._from_kernel(self.squares)

    def restore(self, parameters: Parameters, means: Parameters, squares: Parameters, steps: int) -> None:
        """See Engine."""
        groups = ({name: group[name] for name in self.shapes} for group in (parameters, means, squares))
        self.weights, self.means, self.squares = (self._to_kernel(group) for group in groups)
        self.done = steps

    def pace(self) -> int:
        """See Engine."""
        n = self.gates * self.hidden
        # 2 operations a weight, forward, backward, and for the gradient; Adam takes some 20 a weight and batch
        sequence = 6 * self.data[2].mean() * n * (self.hidden + self.inputs)
        batch = sequence * self.config.batch_size + 20 * sum(w.size for w in self.weights)
        return max(1, int(PACE / batch))
