"""A comparison as CSV, and what its data are in words."""

from __future__ import annotations

import csv
import io
from typing import Any

from dlcv_cli.results.comparison import Comparison
from dlcv_cli.results.evaluation import Interval

SPREAD = ("std", "min", "max", "iqm")  # of a metric over a row's runs


def describe_data(comparison: Comparison) -> str:
    """Return the part and its size: `test, n = 1,736`, or of each fold."""
    folds = sorted({fold for row in comparison.rows for fold in row.folds})
    each = f" in each of {len(folds)} folds" if len(folds) > 1 else f", fold {folds[0]}" if folds else ""
    return f"{comparison.data.part}, n = {comparison.data.n:,}{each}"


def render_csv(comparison: Comparison) -> str:
    """Return a row per row: plain fractions, every interval, and all p-values."""
    pairs = {(pair.name, pair.metric): pair for pair in comparison.pairs}
    first, several = comparison.columns[0].key, any(row.spread for row in comparison.rows)
    lines = []
    for row in comparison.rows:
        cells: dict[str, Any] = {"name": row.name}
        for key in (column.key for column in comparison.columns):
            cells[key] = row.metrics.get(key, "")
            if any(key in other.intervals for other in comparison.rows):
                cells[f"{key}_low"], cells[f"{key}_high"] = _ends(row.intervals.get(key))
        if several:
            spread = row.spread.get(first)
            cells |= {"runs": len(row.runs) or "", "folds": len(row.folds) or "", "collapsed_runs": len(row.fallen)}
            cells |= {f"{first}_{name}": getattr(spread, name) if spread else "" for name in SPREAD}
        for key in (column.key for column in comparison.tested):
            pair = pairs.get((row.name, key))
            cells[f"{key}_difference"] = pair.difference if pair else ""
            cells[f"{key}_difference_low"], cells[f"{key}_difference_high"] = _ends(pair.interval if pair else None)
            cells |= {f"{key}_{name}": getattr(pair, name) if pair else "" for name in ("p", "p_holm", "over")}
            better = pair.improvement if pair else None
            if several:
                cells[f"{key}_improvement"] = better.probability if better else ""
        cells["over"] = row.intervals_over
        lines.append(cells | {"collapsed": row.collapsed, "contaminated": row.contaminated})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


def _ends(interval: Interval | None) -> tuple[Any, Any]:
    return (interval.low, interval.high) if interval else ("", "")
