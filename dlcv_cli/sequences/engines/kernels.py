"""The compiled cells: forward, backward through time and Adam, one batch after the other, without torch.

One training step touches a few thousand numbers, so the speed comes from what it avoids: allocations, calls into a
framework, gradients in memory. A weight matrix is stored with the gates innermost, (inputs, G*D), so that every inner
loop runs over contiguous numbers: products with a state add rows, several at a time; the gradient of one row is summed
over the steps of the batch and passed to Adam at once.

The kernels take more parameters than functions elsewhere: numba compiles arrays one by one, not objects that hold them.

Letters: N sequences, S steps of all of them end to end, T steps of one, F inputs a step, D hidden size, G gates.
Equations: torch.nn.RNN, torch.nn.LSTM and torch.nn.GRU, whose order of gates is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.sequences.engines.arithmetic import (
    add_product,
    add_product_back,
    inlined,
    kernel,
    outer_product_sum,
    part,
    sigmoid_of_sum,
    tanh,
)

ELMAN, GRU, LSTM = 1, 3, 4  # G, which tells the cells apart


@inlined
def _forward(
    cell: int, wx: Any, wh: Any, bx: Any, bh: Any, x: Any, h: Any, c: Any, gates: Any, recurrent: Any, at: int,
    steps: int,
) -> None:  # fmt: skip
    """Run one sequence from zero state, in the rows from `at` of x and of the arrays that are written.

    More than 6 parameters: see the module.

    Args:
        wx, wh, bx, bh: (F, G*D), (D, G*D), (1, G*D), (1, G*D).
        x: (S, F).
        h, c: (S + 1, D), receive the states before each step, then the last one; c for LSTM only.
        gates: (S, G*D), receives the activation of each gate.
        recurrent: (S, G*D), receives the recurrent part of each gate's input.
    """
    d, n = wh.shape
    zero = wh.dtype.type(0)
    for k in range(d):
        h[at, k] = zero
        c[at, k] = zero
    for t in range(at, at + steps):
        for k in range(n):
            gates[t, k] = bx[0, k]
            recurrent[t, k] = bh[0, k]
        add_product(gates, t, x, t, wx)
        add_product(recurrent, t, h, t, wh)
        if cell == ELMAN:
            for k in range(d):
                h[t + 1, k] = tanh(gates[t, k] + recurrent[t, k])
        elif cell == GRU:
            sigmoid_of_sum(gates, recurrent, t, 0, 2 * d)
            for k in range(d):
                new = tanh(gates[t, 2 * d + k] + gates[t, k] * recurrent[t, 2 * d + k])
                gates[t, 2 * d + k] = new
                h[t + 1, k] = new + gates[t, d + k] * (h[t, k] - new)
        else:
            sigmoid_of_sum(gates, recurrent, t, 0, 2 * d)
            for k in range(2 * d, 3 * d):
                gates[t, k] = tanh(gates[t, k] + recurrent[t, k])
            sigmoid_of_sum(gates, recurrent, t, 3 * d, 4 * d)
            for k in range(d):
                c[t + 1, k] = gates[t, d + k] * c[t, k] + gates[t, k] * gates[t, 2 * d + k]
                h[t + 1, k] = gates[t, 3 * d + k] * tanh(c[t + 1, k])


@inlined
def _backward(
    cell: int, wh: Any, h: Any, c: Any, gates: Any, recurrent: Any, dx: Any, dh: Any, ds: Any, dc: Any, at: int,
    steps: int,
) -> None:  # fmt: skip
    """Compute the gradients with respect to each gate's input, for one sequence.

    More than 6 parameters: see the module.

    Args:
        h, c, gates, recurrent, at, steps: as `_forward` wrote them.
        dx, dh: (S, G*D), receive the gradients of the input and the recurrent part (one array, except for GRU).
        ds: (D,), the gradient with respect to the last state; overwritten.
        dc: (D,), workspace.
    """
    d = len(wh)
    zero, one = wh.dtype.type(0), wh.dtype.type(1)
    for k in range(d):
        dc[k] = zero
    for t in range(at + steps - 1, at - 1, -1):
        if cell == ELMAN:
            for k in range(d):
                dx[t, k] = ds[k] * (one - h[t + 1, k] * h[t + 1, k])
                ds[k] = zero
        elif cell == GRU:
            for k in range(d):
                reset, update, new, s = gates[t, k], gates[t, d + k], gates[t, 2 * d + k], ds[k]
                by_new = s * (one - update) * (one - new * new)
                by_reset = by_new * recurrent[t, 2 * d + k] * reset * (one - reset)
                by_update = s * (h[t, k] - new) * update * (one - update)
                dx[t, k] = by_reset
                dh[t, k] = by_reset
                dx[t, d + k] = by_update
                dh[t, d + k] = by_update
                dx[t, 2 * d + k] = by_new
                dh[t, 2 * d + k] = by_new * reset
                ds[k] = s * update
        else:
            for k in range(d):
                i, f, new, o = gates[t, k], gates[t, d + k], gates[t, 2 * d + k], gates[t, 3 * d + k]
                tanh_c = tanh(c[t + 1, k])
                by_c = dc[k] + ds[k] * o * (one - tanh_c * tanh_c)
                dx[t, k] = by_c * new * i * (one - i)
                dx[t, d + k] = by_c * c[t, k] * f * (one - f)
                dx[t, 2 * d + k] = by_c * i * (one - new * new)
                dx[t, 3 * d + k] = ds[k] * tanh_c * o * (one - o)
                dc[k] = by_c * f
                ds[k] = zero
        if t > at:
            add_product_back(ds, wh, dh, t)


@inlined
def _update(p: Any, m: Any, v: Any, left: Any, right: Any, count: int, row: Any, rates: Any) -> None:
    """Update p (a, b) by Adam; its gradient is the product of left (count, a), transposed, and right (count, b).

    More than 6 parameters: see the module.
    Source: Kingma & Ba 2015 (arXiv:1412.6980), as torch.optim.Adam has it.
    """
    scale, step, root, b1, b2, a1, a2, eps = rates
    for j in range(len(p)):
        outer_product_sum(row, left, j, right, count)
        for k in range(p.shape[1]):
            by = scale * row[0, k]
            mean = b1 * m[j, k] + a1 * by
            square = b2 * v[j, k] + a2 * by * by
            m[j, k] = mean
            v[j, k] = square
            p[j, k] -= step * mean / (math.sqrt(square) * root + eps)


@inlined
def _squares(p: Any, left: Any, right: Any, count: int, row: Any) -> float:
    """Return the sum of squares of the gradient that `_update` would compute."""
    total = 0.0
    for j in range(len(p)):
        outer_product_sum(row, left, j, right, count)
        for k in range(p.shape[1]):
            total += row[0, k] * row[0, k]
    return total


@part
def _clip_scale(cell: int, workspace: Any, params: Any, at: int, batch: int, clip: float) -> float:
    """Return the factor that shortens the gradient of all parameters to norm `clip`, if it is longer."""
    wx, wh, bx, bh, wo, bo = params
    x, h, _, _, _, dx, dh, last, errors, ones, _, _, row = workspace
    if cell != GRU:
        dh = dx
    norm = math.sqrt(
        _squares(wx, x, dx, at, row) + _squares(wh, h, dh, at, row) + _squares(bx, ones, dx, at, row)
        + _squares(bh, ones, dh, at, row) + _squares(wo, errors, last, batch, row)
        + _squares(bo, ones, errors, batch, row)
    )  # fmt: skip
    return min(1.0, clip / (norm + 1e-6))


@kernel
def train(
    cell: int, params: Any, means: Any, squares: Any, workspace: Any, data: Any, order: Any, batch: int, lr: float,
    clip: float, done: int,
) -> tuple[float, int]:  # fmt: skip
    """Train on the sequences of `order`, `batch` at a time, each batch one step of Adam on their mean squared error.

    More than 6 parameters: see the module. More than 50 lines: a function for each batch, which unpacks the arrays
    anew, makes training up to 9 % slower.

    Args:
        params: wx (F, G*D), wh (D, G*D), bx and bh (1, G*D), wo (1, D), bo (1, 1); updated.
        means, squares: Adam's, of the same shapes; updated.
        workspace: arrays of the shapes of `list_workspace_shapes`; `ones` holds ones.
        data: inputs (S, F), starts (N,), lengths (N,), targets (N,).
        clip: the largest norm of the gradient; 0 for none.
        done: steps taken before.

    Returns:
        The sum of squared errors, each before its step, and how many steps were taken: fewer than there are batches
        if an error was not finite; that batch is not in the sum, and changed nothing.
    """
    wx, wh, bx, bh, wo, bo = params
    inputs, starts, lengths, targets = data
    x, h, c, gates, recurrent, dx, dh, last, errors, ones, ds, dc, row = workspace
    if cell != GRU:
        dh = dx
    d = len(wh)
    cast = wh.dtype.type
    total = 0.0
    steps = 0
    decay1, decay2 = 0.9**done, 0.999**done
    for first in range(0, len(order), batch):
        numbers = order[first : first + batch]
        share = cast(2.0 / len(numbers))
        at = 0
        loss = 0.0
        for n in range(len(numbers)):
            i = numbers[n]
            end = at + lengths[i]
            for t in range(lengths[i]):
                for f in range(x.shape[1]):
                    x[at + t, f] = inputs[starts[i] + t, f]
            # the next sequence's first state overwrites this one's last, which is therefore copied
            _forward(cell, wx, wh, bx, bh, x, h, c, gates, recurrent, at, lengths[i])
            error = bo[0, 0] - targets[i]
            for k in range(d):
                last[n, k] = h[end, k]
                error += wo[0, k] * h[end, k]
            loss += error * error
            errors[n, 0] = share * error
            for k in range(d):
                ds[k] = errors[n, 0] * wo[0, k]
            _backward(cell, wh, h, c, gates, recurrent, dx, dh, ds, dc, at, lengths[i])
            at = end
        if not math.isfinite(loss):
            return total, steps
        total += loss
        steps += 1
        decay1 *= 0.9
        decay2 *= 0.999
        scale = 1.0
        if clip > 0:
            scale = _clip_scale(cell, workspace, params, at, len(numbers), clip)
        rates = (
            cast(scale), cast(lr / (1 - decay1)), cast(1 / math.sqrt(1 - decay2)),
            cast(0.9), cast(0.999), cast(1 - 0.9), cast(1 - 0.999), cast(1e-8),
        )  # fmt: skip
        _update(wx, means[0], squares[0], x, dx, at, row, rates)
        _update(wh, means[1], squares[1], h, dh, at, row, rates)
        _update(bx, means[2], squares[2], ones, dx, at, row, rates)
        _update(bh, means[3], squares[3], ones, dh, at, row, rates)
        _update(wo, means[4], squares[4], errors, last, len(numbers), row, rates)
        _update(bo, means[5], squares[5], ones, errors, len(numbers), row, rates)
    return total, steps


@kernel
def predict(cell: int, params: Any, workspace: Any, data: Any, out: Any) -> None:
    """Write the network's prediction for each sequence to out (N,)."""
    wx, wh, bx, bh, wo, bo = params
    inputs, starts, lengths, _ = data
    x, h, c, gates, recurrent = workspace[0], workspace[1], workspace[2], workspace[3], workspace[4]
    for i in range(len(out)):
        steps = lengths[i]
        for t in range(steps):
            for f in range(x.shape[1]):
                x[t, f] = inputs[starts[i] + t, f]
        _forward(cell, wx, wh, bx, bh, x, h, c, gates, recurrent, 0, steps)
        prediction = bo[0, 0]
        for k in range(len(wh)):
            prediction += wo[0, k] * h[steps, k]
        out[i] = prediction


def list_workspace_shapes(width: int, hidden: int, gates: int, steps: int, batch: int) -> list[tuple[int, ...]]:
    """Return the shapes of the arrays that the kernels work in, for batches of at most `steps` steps."""
    d, n = hidden, gates * hidden
    of_steps = [(steps, width), (steps + 1, d), (steps + 1, d), *[(steps, n)] * 4]
    return [*of_steps, (batch, d), (batch, 1), (max(steps, batch), 1), (d,), (d,), (1, max(n, 1))]


def allocate(shapes: Sequence[tuple[int, ...]], dtype: Any) -> tuple[NDArray[Any], ...]:
    """Return zeros of these shapes in one buffer, at distances that depend on the shapes alone.

    Compiled loops compare the addresses of their arrays; where two might overlap, they add in another order, which
    changes the last bits. Each array begins at a cache line, because vectors that straddle two cost twice.
    """
    line, sizes = 64, [math.prod(shape) * np.dtype(dtype).itemsize for shape in shapes]
    begins = np.cumsum([0, *(-(-size // line) * line + line for size in sizes)])
    raw = np.zeros(begins[-1] + line, np.uint8)
    buffer = raw[-raw.ctypes.data % line :]
    return tuple(
        buffer[begin : begin + size].view(dtype).reshape(shape)
        for begin, size, shape in zip(begins, sizes, shapes, strict=False)
    )
