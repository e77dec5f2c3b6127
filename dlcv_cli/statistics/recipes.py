"""Placeholder until merge."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Tested:
    difference: float
    interval: tuple[float, float]
    p: float
    freedom: float
    error: float
    method: str
    doubt: str = ""


def _t(d, e, f, m):
    if e <= 1e-14 * abs(d) or e == 0:
        return Tested(float(d), (float(d), float(d)), 1.0 if d == 0 else 0.0, f, 0.0, m)
    h = stats.t.ppf(0.975, f) * e
    return Tested(float(d), (float(d - h), float(d + h)), float(2 * stats.t.sf(abs(d) / e, f)), float(f), float(e), m)


def test_crossed(a, b, paired, weights=None):
    n = a.shape[1]
    w = np.full(n, 1 / n) if weights is None else weights
    parts = []
    if paired and len(a) == len(b):
        parts.append(((a - b) @ w, len(a)))
    else:
        parts += [(x @ w, len(x)) for x in (a, b) if len(x) > 1]
    vs = [(v.var(ddof=1) / k, k - 1) for v, k in parts]
    d = a.mean(0) - b.mean(0)
    vs.append((float((w**2 * (d - d @ w) ** 2).sum() * n / (n - 1)), n - 1))
    v = sum(x for x, _ in vs)
    f = v**2 / sum(x**2 / k for x, k in vs) if v > 0 else 1
    return _t(d @ w, math.sqrt(v), f, "crossed t")


def compute_crossed_interval(a, weights=None):
    return test_crossed(a, np.zeros((1, a.shape[1])), False, weights).interval


def test_resampled(d, share):
    j = len(d)
    return _t(d.mean(), math.sqrt((1 / j + share) * d.var(ddof=1)), j - 1, "corrected resampled t")


def compute_resampled_interval(v, share):
    return test_resampled(v, share).interval
