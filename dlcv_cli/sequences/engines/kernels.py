"""The cells compiled: forward, backward through time and Adam for one batch after the other, without torch.

One training step touches a few thousand numbers, so what counts is what does not happen: no allocation, no call into a
framework, no gradient that goes to memory. A weight matrix lies with the gates innermost, (inputs, G*D), so that every
inner loop runs over contiguous numbers: products with a state add rows, four at a time; the gradient of one row is
summed over the steps of the batch and given to Adam at once.

Letters: N sequences, S steps of all of them end to end, T steps of one, F inputs a step, D hidden size, G gates.
Equations: torch.nn.RNN, torch.nn.LSTM and torch.nn.GRU, whose order of gates is kept.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

OPTIONS: Any = {
    "fastmath": {"reassoc", "nsz", "arcp", "contract", "afn"},  # all but the assumption that every number is finite
    "boundscheck": False,
    "error_model": "numpy",
    "cache": True,  # where NUMBA_CACHE_DIR says, which the stage sets
}
kernel: Any = njit(nogil=True, **OPTIONS)
part: Any = njit(inline="always", **OPTIONS)

ELMAN, GRU, LSTM = 1, 3, 4  # G, which tells the cells apart


def _tanh(x: Any) -> Any:
    """tanh that vectorises, in float32; the C library's in float64."""
    raise NotImplementedError


@overload(_tanh, inline="always")
def _compiled_tanh(x: Any) -> Any:
    def exact(x: Any) -> Any:
        return math.tanh(x)

    # Source: the rational approximation of degrees 13 and 6 in Eigen (coefficients), right to a few units in the last
    # place where |x| < 7.9, beyond which tanh is 1 in float32.
    def tanh(x: Any) -> Any:
        f = np.float32
        x = min(max(x, f(-7.90531110763549805)), f(7.90531110763549805))
        s = x * x
        p = f(-2.76076847742355e-16)
        p = p * s + f(2.00018790482477e-13)
        p = p * s + f(-8.60467152213735e-11)
        p = p * s + f(5.12229709037114e-08)
        p = p * s + f(1.48572235717979e-05)
        p = p * s + f(6.37261928875436e-04)
        p = p * s + f(4.89352455891786e-03)
        q = f(1.19825839466702e-06)
        q = q * s + f(1.18534705686654e-04)
        q = q * s + f(2.26843463243900e-03)
        q = q * s + f(4.89352518554385e-03)
        return x * p / q

    return tanh if x == types.float32 else exact


@part
def _add_product(out: Any, t: int, x: Any, row: int, w: Any) -> None:
    """out[t] (n,) += x[row] (m,) @ w (m, n)."""
    m, n = w.shape
    j = 0
    while j + 8 <= m:
        a, b, c, d = x[row, j], x[row, j + 1], x[row, j + 2], x[row, j + 3]
        e, f, g, h = x[row, j + 4], x[row, j + 5], x[row, j + 6], x[row, j + 7]
        for k in range(n):
            out[t, k] += (a * w[j, k] + b * w[j + 1, k] + c * w[j + 2, k] + d * w[j + 3, k]) + (
                e * w[j + 4, k] + f * w[j + 5, k] + g * w[j + 6, k] + h * w[j + 7, k]
            )
        j += 8
    while j + 2 <= m:
        a, b = x[row, j], x[row, j + 1]
        for k in range(n):
            out[t, k] += a * w[j, k] + b * w[j + 1, k]
        j += 2
    if j < m:
        a = x[row, j]
        for k in range(n):
            out[t, k] += a * w[j, k]


@part
def _add_product_back(out: Any, w: Any, y: Any, t: int) -> None:
    """out (m,) += w (m, n) @ y[t] (n,)."""
    m, n = w.shape
    zero = y.dtype.type(0)
    j = 0
    while j + 8 <= m:
        a, b, c, d, e, f, g, h = zero, zero, zero, zero, zero, zero, zero, zero
        for k in range(n):
            v = y[t, k]
            a += w[j, k] * v
            b += w[j + 1, k] * v
            c += w[j + 2, k] * v
            d += w[j + 3, k] * v
            e += w[j + 4, k] * v
            f += w[j + 5, k] * v
            g += w[j + 6, k] * v
            h += w[j + 7, k] * v
        out[j] += a
        out[j + 1] += b
        out[j + 2] += c
        out[j + 3] += d
        out[j + 4] += e
        out[j + 5] += f
        out[j + 6] += g
        out[j + 7] += h
        j += 8
    while j < m:
        a = zero
        for k in range(n):
            a += w[j, k] * y[t, k]
        out[j] += a
        j += 1


@part
def _sigmoid_of_sum(x: Any, y: Any, t: int, begin: int, end: int) -> None:
    """x[t] = sigmoid(x[t] + y[t]), from `begin` to `end`."""
    half = x.dtype.type(0.5)
    for k in range(begin, end):
        x[t, k] = half * _tanh(half * (x[t, k] + y[t, k])) + half


@kernel
def _forward(
    cell: int, wx: Any, wh: Any, bx: Any, bh: Any, x: Any, first: int, h: Any, c: Any, gates: Any, recurrent: Any,
    at: int, steps: int,
) -> None:  # fmt: skip
    """One sequence from zero state: its inputs begin at row `first` of x, what it leaves at row `at` of the others.

    Args:
        wx, wh, bx, bh: (F, G*D), (D, G*D), (1, G*D), (1, G*D).
        x: (S, F).
        h, c: (S + 1, D), get the states before each step, and behind them the last; c for LSTM only.
        gates: (S, G*D), gets what each gate let through.
        recurrent: (S, G*D), gets the recurrent part of each gate's input.
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
        _add_product(gates, t, x, first + t - at, wx)
        _add_product(recurrent, t, h, t, wh)
        if cell == ELMAN:
            for k in range(d):
                h[t + 1, k] = _tanh(gates[t, k] + recurrent[t, k])
        elif cell == GRU:
            _sigmoid_of_sum(gates, recurrent, t, 0, 2 * d)
            for k in range(d):
                new = _tanh(gates[t, 2 * d + k] + gates[t, k] * recurrent[t, 2 * d + k])
                gates[t, 2 * d + k] = new
                h[t + 1, k] = new + gates[t, d + k] * (h[t, k] - new)
        else:
            _sigmoid_of_sum(gates, recurrent, t, 0, 2 * d)
            for k in range(2 * d, 3 * d):
                gates[t, k] = _tanh(gates[t, k] + recurrent[t, k])
            _sigmoid_of_sum(gates, recurrent, t, 3 * d, 4 * d)
            for k in range(d):
                c[t + 1, k] = gates[t, d + k] * c[t, k] + gates[t, k] * gates[t, 2 * d + k]
                h[t + 1, k] = gates[t, 3 * d + k] * _tanh(c[t + 1, k])


@kernel
def _backward(
    cell: int, wh: Any, h: Any, c: Any, gates: Any, recurrent: Any, dx: Any, dh: Any, ds: Any, dc: Any, at: int,
    steps: int,
) -> None:  # fmt: skip
    """Gradients by what enters each gate, of one sequence.

    Args:
        h, c, gates, recurrent, at, steps: as `_forward` left them.
        dx, dh: (S, G*D), get the gradients by the input part and by the recurrent part (the same array but for GRU).
        ds: (D,), the gradient by the last state; overwritten.
        dc: (D,), room to work.
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
                tanh_c = _tanh(c[t + 1, k])
                by_c = dc[k] + ds[k] * o * (one - tanh_c * tanh_c)
                dx[t, k] = by_c * new * i * (one - i)
                dx[t, d + k] = by_c * c[t, k] * f * (one - f)
                dx[t, 2 * d + k] = by_c * i * (one - new * new)
                dx[t, 3 * d + k] = ds[k] * tanh_c * o * (one - o)
                dc[k] = by_c * f
                ds[k] = zero
        if t > at:
            _add_product_back(ds, wh, dh, t)


@part
def _gradient(row: Any, left: Any, j: int, right: Any, count: int) -> None:
    """row (1, n) = the sum over the first `count` steps of left[step, j] * right[step]."""
    n = right.shape[1]
    a = left[0, j]
    for k in range(n):
        row[0, k] = a * right[0, k]
    t = 1
    while t + 2 <= count:
        a, b = left[t, j], left[t + 1, j]
        for k in range(n):
            row[0, k] += a * right[t, k] + b * right[t + 1, k]
        t += 2
    if t < count:
        a = left[t, j]
        for k in range(n):
            row[0, k] += a * right[t, k]


@kernel
def _update(p: Any, m: Any, v: Any, left: Any, right: Any, count: int, row: Any, rates: Any) -> None:
    """Adam on p (a, b), whose gradient is left (count, a) transposed times right (count, b).

    Source: Kingma & Ba 2015 (arXiv:1412.6980), as torch.optim.Adam has it.
    """
    scale, step, root, b1, b2, a1, a2, eps = rates
    for j in range(len(p)):
        _gradient(row, left, j, right, count)
        for k in range(p.shape[1]):
            by = scale * row[0, k]
            mean = b1 * m[j, k] + a1 * by
            square = b2 * v[j, k] + a2 * by * by
            m[j, k] = mean
            v[j, k] = square
            p[j, k] -= step * mean / (math.sqrt(square) * root + eps)


@kernel
def _squares(p: Any, left: Any, right: Any, count: int, row: Any) -> float:
    """Sum of squares of the gradient that `_update` would take."""
    total = 0.0
    for j in range(len(p)):
        _gradient(row, left, j, right, count)
        for k in range(p.shape[1]):
            total += row[0, k] * row[0, k]
    return total


@kernel
def train(
    cell: int, params: Any, means: Any, squares: Any, room: Any, data: Any, order: Any, batch: int, lr: float,
    clip: float, done: int,
) -> tuple[float, int]:  # fmt: skip
    """Trains on the sequences of `order`, `batch` at a time, each batch one step of Adam on their mean squared error.

    Args:
        params: wx (F, G*D), wh (D, G*D), bx and bh (1, G*D), wo (1, D), bo (1, 1); changed.
        means, squares: Adam's, of the same shapes; changed.
        room: as `room` makes it.
        data: inputs (S, F), starts (N,), lengths (N,), targets (N,).
        clip: the largest norm of the gradient; 0 for none.
        done: steps taken before.

    Returns:
        The sum of squared errors, each before its step, and how many steps were taken: fewer than there are batches
        when an error was not finite, in which case that batch is not in the sum, and changed nothing.
    """
    wx, wh, bx, bh, wo, bo = params
    inputs, starts, lengths, targets = data
    x, h, c, gates, recurrent, dx, dh, last, errors, ones, ds, dc, row = room
    if cell != GRU:
        dh = dx
    d = len(wh)
    kind = wh.dtype.type
    total = 0.0
    steps = 0
    decay1, decay2 = 0.9**done, 0.999**done
    for first in range(0, len(order), batch):
        some = order[first : first + batch]
        share = kind(2.0 / len(some))
        at = 0
        loss = 0.0
        for n in range(len(some)):
            i = some[n]
            end = at + lengths[i]
            for t in range(lengths[i]):
                for f in range(x.shape[1]):
                    x[at + t, f] = inputs[starts[i] + t, f]
            # the state after a sequence lies where the next one's first state will: it is copied to `last`
            _forward(cell, wx, wh, bx, bh, x, at, h, c, gates, recurrent, at, lengths[i])
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
            norm = math.sqrt(
                _squares(wx, x, dx, at, row) + _squares(wh, h, dh, at, row) + _squares(bx, ones, dx, at, row)
                + _squares(bh, ones, dh, at, row) + _squares(wo, errors, last, len(some), row)
                + _squares(bo, ones, errors, len(some), row)
            )  # fmt: skip
            scale = min(1.0, clip / (norm + 1e-6))
        rates = (
            kind(scale), kind(lr / (1 - decay1)), kind(1 / math.sqrt(1 - decay2)),
            kind(0.9), kind(0.999), kind(1 - 0.9), kind(1 - 0.999), kind(1e-8),
        )  # fmt: skip
        _update(wx, means[0], squares[0], x, dx, at, row, rates)
        _update(wh, means[1], squares[1], h, dh, at, row, rates)
        _update(bx, means[2], squares[2], ones, dx, at, row, rates)
        _update(bh, means[3], squares[3], ones, dh, at, row, rates)
        _update(wo, means[4], squares[4], errors, last, len(some), row, rates)
        _update(bo, means[5], squares[5], ones, errors, len(some), row, rates)
    return total, steps


@kernel
def answer(cell: int, params: Any, room: Any, data: Any, out: Any) -> None:
    """Writes the network's answer to each sequence to out (N,)."""
    wx, wh, bx, bh, wo, bo = params
    inputs, starts, lengths, _ = data
    h, c, gates, recurrent = room[1], room[2], room[3], room[4]
    for i in range(len(out)):
        steps = lengths[i]
        _forward(cell, wx, wh, bx, bh, inputs, starts[i], h, c, gates, recurrent, 0, steps)
        found = bo[0, 0]
        for k in range(len(wh)):
            found += wo[0, k] * h[steps, k]
        out[i] = found


def room(width: int, hidden: int, gates: int, steps: int, batch: int, dtype: Any) -> tuple[Any, ...]:
    """What the kernels work in, for batches of at most `steps` steps: made once, so that the loop makes nothing."""
    d, n = hidden, gates * hidden
    shapes: list[tuple[int, ...]] = [
        (steps, width),
        (steps + 1, d),
        (steps + 1, d),
        (steps, n),
        (steps, n),
        (steps, n),
        (steps, n),
    ]
    shapes += [(batch, d), (batch, 1), (max(steps, batch), 1), (d,), (d,), (1, max(n, 1))]
    arrays = [aligned(np.zeros(shape, dtype)) for shape in shapes]
    arrays[9][:] = 1
    return tuple(arrays)


def aligned(values: Any) -> Any:
    """A copy that begins where a cache line does: vectors that straddle two cost twice."""
    values = np.ascontiguousarray(values)
    raw = np.empty(values.nbytes + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    copy = raw[begin : begin + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy
