"""Placeholder until merge."""

from __future__ import annotations

import numpy as np
from scipy import stats


def compute_effect_size(a, b):
    s = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    return float((a.mean() - b.mean()) / s) if s else 0.0


def compute_improvement(a, b):
    u = float((a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean())
    return u, (max(0, u - 0.2), min(1, u + 0.2))


def compute_iqm(v):
    return float(stats.trim_mean(v, 0.25))


def compute_power_limit(t, power=0.8):
    return float((stats.t.ppf(0.975, t.freedom) + stats.t.ppf(power, t.freedom)) * t.error)


def run_rank_test(a, b, paired):
    return float(stats.wilcoxon(a, b).pvalue if paired else stats.mannwhitneyu(a, b).pvalue)


def test_equivalence(t, margin):
    return (
        float(stats.t.sf((margin - abs(t.difference)) / t.error, t.freedom))
        if t.error
        else float(abs(t.difference) >= margin)
    )
