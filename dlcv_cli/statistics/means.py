"""Placeholder until merge."""

from __future__ import annotations

import numpy as np

from dlcv_cli.statistics.recipes import _t


def test_mean(d):
    return _t(d.mean(), d.std(ddof=1) / np.sqrt(len(d)), len(d) - 1, "paired t")


def compute_mean_interval(v):
    return test_mean(v).interval


def test_recall_difference(d, labels):
    _, i, c = np.unique(labels, return_inverse=True, return_counts=True)
    m = np.bincount(i, d) / c
    v = sum(d[i == k].var(ddof=1) / c[k] for k in range(len(c)) if c[k] > 1) / len(c) ** 2
    return _t(m.mean(), np.sqrt(v), len(d) - 1, "stratified t")
