"""The arithmetic of the compiled cells: activations and products with weight matrices, and how numba compiles them.

Letters: m rows and n columns of a matrix, T steps.
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
# LLVM inlines these. Otherwise each kernel's object code would hold a copy of its own, optimised differently, and which
# copy runs would depend on what the process had compiled or loaded before: the last bits of the weights would too.
inlined: Any = njit(forceinline=True, **OPTIONS)


def tanh(x: Any) -> Any:
    """Compute tanh: in float32 by a formula that vectorises, in float64 by the C library."""
    raise NotImplementedError


@overload(tanh, inline="always")
def _compile_tanh(x: Any) -> Any:
    def exact(x: Any) -> Any:
        return math.tanh(x)

    # Source: the rational approximation of degrees 13 and 6 in Eigen (coefficients), right to a few units in the last
    # place where |x| < 7.9, beyond which tanh is 1 in float32.
    def rational(x: Any) -> Any:
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

    return rational if x == types.float32 else exact


@part
def add_product(out: Any, t: int, x: Any, row: int, w: Any) -> None:
    """Compute out[t] (n,) += x[row] (m,) @ w (m, n)."""
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
def add_product_back(out: Any, w: Any, y: Any, t: int) -> None:
    """Compute out (m,) += w (m, n) @ y[t] (n,)."""
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
def sigmoid_of_sum(x: Any, y: Any, t: int, begin: int, end: int) -> None:
    """Compute x[t] = sigmoid(x[t] + y[t]), from `begin` to `end`."""
    half = x.dtype.type(0.5)
    for k in range(begin, end):
        x[t, k] = half * tanh(half * (x[t, k] + y[t, k])) + half


@part
def outer_product_sum(row: Any, left: Any, j: int, right: Any, count: int) -> None:
    """Compute row (1, n) = the sum of left[step, j] * right[step] over the first `count` steps."""
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
