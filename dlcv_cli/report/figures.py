"""The figures of every study: metrics with intervals, differences, learning curves. Numbers only; draws nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from dlcv_cli.report.kinds import Curves, Forest, Line, Panel, Range, spanning_axis
from dlcv_cli.results.comparison import Comparison, Row
from dlcv_cli.results.metrics import Record, TrainingMetrics


def draw_comparison(comparison: Comparison) -> Forest:
    """Return every metric of a comparison with its intervals.

    An axis spans the networks that have not collapsed: outliers would leave no room to tell the others apart.
    """
    learned = [row for row in comparison.rows if not row.baseline and not row.collapsed] or comparison.rows
    panels = []
    for column in comparison.columns:
        values = tuple(_estimate(row, column.key) for row in comparison.rows)
        spanned = [value for row in learned if (value := _estimate(row, column.key))]
        ends = [end for value, interval in spanned for end in (value, *(interval or ()))]
        axis = spanning_axis(column.heading, ends, log=not column.higher_is_better, percent=column.percent)
        panels.append(Panel(replace(axis, small=column.small), values))
    headings = {column.key: column.heading for column in comparison.columns}
    best = "; ".join(
        f"{row.name} in {', '.join(headings[key] for key in row.best)}" for row in comparison.rows if row.best
    )
    text = f"Metrics of {len(comparison.rows)} rows with 95 % intervals. Best: {'; '.join(best)}."
    return Forest(
        "comparison", "Metrics with 95 % intervals", text, tuple(r.name for r in comparison.rows), tuple(panels)
    )


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
            f"Differences in {column.heading} from {comparison.reference} with 95 % intervals; the {better} is better. "
        )
        text += " ".join(f"{pair.sentence}." for pair in pairs)
        title = f"{column.heading}: difference from {comparison.reference}"
        names = tuple(pair.name for pair in pairs)
        forests.append(Forest(f"differences-{column.key}", title, text, names, (Panel(axis, values, zero=True),)))
    return forests


QUANTITIES = {"loss": "loss", "accuracy": "accuracy %"}  # of learning curves, with the titles of their axes


def draw_learning(trainings: Sequence[tuple[str, TrainingMetrics]], step: str, log_loss: bool = False) -> list[Curves]:
    """Return learning curves of (name, metrics) pairs, all of one quantity on the same scale.

    Several runs are shown by their median, with their range as a band; the best record of each run is marked.

    Args:
        step: what the x axis counts, a field of Record.
        log_loss: draw the loss on a logarithmic scale.
    """
    curves = []
    for quantity, unit in QUANTITIES.items():
        fields = train, val = f"train_{quantity}", f"val_{quantity}"
        records = [record for _, metrics in trainings for record in metrics.records]
        ends = [value for r in records for key in fields if (value := getattr(r, key)) is not None]
        if not ends:
            continue
        accuracy, heading = quantity == "accuracy", quantity.capitalize()
        y = spanning_axis(unit, ends, log=log_loss and not accuracy, percent=accuracy)
        for name, metrics in trainings:
            best = _best_records(metrics, val)
            lines: tuple[Line, ...] = (
                _line("validation", metrics.records, val, style=0, marks=best),
                _line("training", metrics.records, train, style=1),
            )
            lines = tuple(line for line in lines if line.x)
            x = spanning_axis(step, [x for line in lines for x in line.x], whole=True)
            runs = len({record.seed for record in metrics.records})
            several = f", median and range of {runs} runs" if runs > 1 else ""
            text = f"{heading} of {name} by {step}{several}. Weights kept: "
            text += ", ".join(f"{step} {x:,} with {y.label(v)}" for x, v in best[:3]) + (", ..." if best[3:] else ".")
            mark = "best validation, kept" + (" (each run)" if runs > 1 else "")
            title = f"{heading}: {name}"
            curves.append(Curves(f"learning-{quantity}-{name}", title, text, x, y, lines, mark))
    return curves


def _line(name: str, records: Iterable[Record], key: str, **style: Any) -> Line:
    values: dict[float, list[float]] = defaultdict(list)
    for record in records:
        if (value := getattr(record, key)) is not None:
            values[record.step].append(value)
    xs = sorted(values)
    several = any(len(group) > 1 for group in values.values())
    band = tuple((min(values[x]), max(values[x])) for x in xs) if several else ()
    return Line(name, tuple(xs), tuple(median(values[x]) for x in xs), band, **style)


def _best_records(metrics: TrainingMetrics, key: str) -> tuple[tuple[float, float], ...]:
    """Return the step and value of the record whose weights were kept, of each seed."""
    runs: dict[int | None, list[Record]] = defaultdict(list)
    for record in metrics.records:
        runs[record.seed].append(record)
    best = [metrics.best] if len(runs) < 2 else [min(rs, key=lambda record: record.val_loss) for rs in runs.values()]
    return tuple((record.step, value) for record in best if (value := getattr(record, key)) is not None)
