"""The figures of every study: metrics with intervals, differences, learning curves. Numbers only; draws nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median, median_low

from dlcv_cli.report.axes import spanning_axis
from dlcv_cli.report.kinds import STEPS, Curves, Forest, Line, Panel, Range
from dlcv_cli.report.reported import ReportedRow
from dlcv_cli.results.comparison import Comparison, Row
from dlcv_cli.results.metrics import Record, TrainingMetrics


def draw_comparison(comparison: Comparison) -> Forest:
    """Return every metric of a comparison with its intervals, and the value of each run.

    An axis spans the rows and runs that have not collapsed: outliers would leave no room to tell the others apart.
    """
    learned = [row for row in comparison.rows if not row.baseline and not row.collapsed] or comparison.rows
    panels = []
    for column in comparison.columns:
        key = column.key
        values = tuple(_estimate(row, key) for row in comparison.rows)
        spanned = [value for row in learned if (value := _estimate(row, key))]
        ends = [end for value, interval in spanned for end in (value, *(interval or ()))]
        ends += [run.metrics[key] for row in learned for run in row.runs if not run.collapsed and key in run.metrics]
        axis = spanning_axis(column.heading, ends, log=not column.higher_is_better, percent=column.percent)
        runs = tuple(
            tuple(run.metrics[key] for run in row.runs if key in run.metrics) if len(row.runs) > 1 else ()
            for row in comparison.rows
        )
        panels.append(Panel(replace(axis, small=column.small), values, runs=runs))
    headings = {column.key: column.heading for column in comparison.columns}
    best = "; ".join(
        f"{row.name} in {', '.join(headings[key] for key in row.best)}" for row in comparison.rows if row.best
    )
    text = f"Metrics of {len(comparison.rows)} rows with 95 % intervals" + (f". Best: {best}." if best else ".")
    names = tuple(row.name for row in comparison.rows)
    return Forest("comparison", "Metrics with 95 % intervals", text, names, tuple(panels))


def _estimate(row: Row, key: str) -> tuple[float, Range | None] | None:
    if key not in row.metrics:
        return None
    interval = row.intervals.get(key)
    return row.metrics[key], (interval.low, interval.high) if interval else None


def draw_differences(comparison: Comparison) -> list[Forest]:
    """Return, for each tested metric, the difference of each row to the reference with its interval."""
    learned = {row.name for row in comparison.rows if not row.baseline and not row.collapsed}
    forests = []
    for column in comparison.tested:
        pairs = [pair for pair in comparison.pairs if pair.metric == column.key]
        values = tuple((pair.difference, (pair.interval.low, pair.interval.high)) for pair in pairs)
        spanned = [v for v, pair in zip(values, pairs, strict=True) if pair.name in learned] or values
        ends = [0.0, *(end for value, interval in spanned for end in (value, *interval))]
        axis = spanning_axis(f"difference in {column.heading}", ends, percent=column.percent)
        better = "right" if column.higher_is_better else "left"
        text = (
            f"Differences in {column.heading} from {comparison.reference} with 95 % intervals; the {better} is better: "
        )
        text += ", ".join(f"{pair.name} {column.format(pair.difference, signed=True)}" for pair in pairs) + "."
        title = f"{column.heading}: difference from {comparison.reference}"
        names = tuple(pair.name for pair in pairs)
        forests.append(Forest(f"differences-{column.key}", title, text, names, (Panel(axis, values, zero=True),)))
    return forests


QUANTITIES = {  # of learning curves: title, title of the axis, part
    "val_loss": ("Validation loss", "loss", "loss"),
    "train_loss": ("Training loss", "loss", "loss"),
    "val_accuracy": ("Validation accuracy", "accuracy %", "accuracy"),
    "train_accuracy": ("Training accuracy", "accuracy %", "accuracy"),
}


def draw_learning(rows: Sequence[ReportedRow], step: str, log_loss: bool = False) -> list[Curves]:
    """Return a figure for each recorded quantity, with a line for each row: the median of its runs, and their range.

    Training and validation have the same scale. A line's ring is where the weights were kept, the median of the runs.

    Args:
        step: what the x axis counts, `epoch` or `iteration`.
        log_loss: draw the loss on a logarithmic scale.
    """
    trainings = [[network.metrics for network in row.networks] for row in rows]
    records = [record for own in trainings for metrics in own for record in metrics.records]
    x = spanning_axis(step, [record.step for record in records], whole=True)
    curves = []
    for key, (title, unit, kind) in QUANTITIES.items():
        if all(getattr(record, key) is None for record in records):
            continue
        both = [getattr(record, f"{part}_{kind}") for record in records for part in ("train", "val")]
        is_share = kind == "accuracy"
        y = spanning_axis(unit, [v for v in both if v is not None], log=log_loss and not is_share, percent=is_share)
        lines, texts = [], []
        for style, (row, own) in enumerate(zip(rows, trainings, strict=True)):
            line = line_over_runs(row.name, _list_points(own, key), style)
            if not line.x:
                continue
            best_steps = [metrics.best.step for metrics in own]
            ring = _find_point(line, median_low(best_steps))
            lines.append(thin_out(replace(line, marks=(ring,)), ring[0]))
            several = f" ({min(best_steps):,} to {max(best_steps):,})" if min(best_steps) < max(best_steps) else ""
            texts.append(f"{row.name} {step} {median_low(best_steps):,}{several} with {y.label(ring[1])}")
        text = f"{title} by {step}. Weights were kept at: {'; '.join(texts)}."
        several = ", median of the runs" if any(len(own) > 1 for own in trainings) else ""
        name = key.replace("_", "-")
        curves.append(Curves(f"learning-{name}", title, text, x, y, tuple(lines), f"weights kept{several}"))
    return curves


def _list_points(trainings: Iterable[TrainingMetrics], key: str) -> list[tuple[float, float]]:
    records: list[Record] = [record for metrics in trainings for record in metrics.records]
    return [(record.step, value) for record in records if (value := getattr(record, key)) is not None]


def _find_point(line: Line, x: float) -> tuple[float, float]:
    """Return the line's point at x, or the one that is next to it."""
    place = min(range(len(line.x)), key=lambda k: abs(line.x[k] - x))
    return line.x[place], line.y[place]


def line_over_runs(name: str, points: Iterable[tuple[float, float]], style: int) -> Line:
    """Return the median of all y at each x; if there are several, their range is the band."""
    values: dict[float, list[float]] = defaultdict(list)
    for x, y in points:
        values[x].append(y)
    xs = sorted(values)
    several = any(len(own) > 1 for own in values.values())
    band = tuple((min(values[x]), max(values[x])) for x in xs) if several else ()
    return Line(name, tuple(xs), tuple(median(values[x]) for x in xs), band, style=style)


def thin_out(line: Line, keep: float) -> Line:
    """Return the line with at most about STEPS points, evenly spread; the one at x = `keep` is among them."""
    every = -(-len(line.x) // STEPS)
    places = [k for k, x in enumerate(line.x) if k % every == 0 or x == keep or k == len(line.x) - 1]
    band = tuple(line.band[k] for k in places) if line.band else ()
    return replace(line, x=tuple(line.x[k] for k in places), y=tuple(line.y[k] for k in places), band=band)
