"""What each figure shows: its numbers, made once, for the page and for papers. Knows no files and draws nothing.

Letters: N examples, K classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.report.axes import Axis, number, over
from dlcv_cli.report.kinds import Bars, Curves, Density, Forest, Line, Matrix, Panel, Range, Reliability
from dlcv_cli.results.comparison import COLUMNS

JSON = Mapping[str, Any]
Named = tuple[str, JSON]


def comparison(document: JSON) -> Forest:
    """Every metric of a `dlcv.comparison/1` document with its intervals.

    An axis spans the networks that have not collapsed: what lies far off would leave no room to see them apart.
    """
    rows, panels = document["rows"], []
    apart = [row for row in rows if _stands(row)]
    for column in COLUMNS[document["study"]]:
        values = tuple(_value(row, column.key) for row in rows)
        seen = [_value(row, column.key) for row in apart] if apart else values
        ends = [end for value in seen if value for end in (value[0], *(value[1] or ()))]
        axis = over(column.heading, ends, log=not column.higher_is_better, percent=column.percent)
        panels.append(Panel(replace(axis, small=column.small), values))
    best = [f"{row['name']} {', '.join(row['best'])}" for row in rows if row.get("best")]
    text = f"Metrics of {len(rows)} rows with 95 % intervals. Best: {'; '.join(best)}."
    return Forest("comparison", "Metrics with 95 % intervals", text, tuple(row["name"] for row in rows), tuple(panels))


def _stands(row: JSON) -> bool:
    """Whether a row is a network that has learned something."""
    return not row.get("baseline") and not row.get("collapse", {}).get("collapsed")


def _value(row: JSON, key: str) -> tuple[float, Range | None] | None:
    if key not in row["metrics"]:
        return None
    interval = row.get("intervals", {}).get(key)
    return row["metrics"][key], (interval[0], interval[1]) if interval else None


def differences(document: JSON) -> list[Forest]:
    """For each metric that was tested, the difference of each row to the reference, with its interval."""
    found = []
    standing = {row["name"] for row in document["rows"] if _stands(row)}
    for column in COLUMNS[document["study"]]:
        pairs = [pair for pair in document.get("pairs", ()) if pair["metric"] == column.key]
        if not pairs:
            continue
        values = tuple((pair["difference"], (pair["interval"][0], pair["interval"][1])) for pair in pairs)
        near = [v for v, pair in zip(values, pairs, strict=True) if pair["name"] in standing] or values
        ends = [0.0, *(end for value, interval in near for end in (value, *interval))]
        axis = over(f"difference in {column.heading}", ends, percent=column.percent)
        better = "right" if column.higher_is_better else "left"
        text = f"Differences in {column.heading} to {pairs[0]['reference']} with 95 % intervals; better is {better}. "
        text += " ".join(str(pair["sentence"]) for pair in pairs)
        title = f"{column.heading}: difference to {pairs[0]['reference']}"
        names = tuple(pair["name"] for pair in pairs)
        found.append(Forest(f"differences-{column.key}", title, text, names, (Panel(axis, values, zero=True),)))
    return found


TRAINED = {
    "loss": ("Loss", "train_loss", "val_loss", "loss"),
    "accuracy": ("Accuracy", "train_accuracy", "val_accuracy", "accuracy %"),
}


def learning(metrics: Sequence[Named], study: str) -> list[Curves]:
    """The learning curves of (name, `dlcv.metrics/1` document) pairs, all of a quantity on one scale.

    Several runs are shown by their median, and by their range as a band; the best record of each is marked.
    """
    found, step = [], "epoch" if study == "images" else "iteration"
    for key, (heading, train, val, unit) in TRAINED.items():
        records = {name: document["records"] for name, document in metrics}
        ends = [r[k] for rs in records.values() for r in rs for k in (train, val) if r.get(k) is not None]
        if not ends:
            continue
        y = over(unit, ends, log=key == "loss" and study == "sequences", percent=key == "accuracy")
        for name, document in metrics:
            best = _best(document, step, val)
            lines: tuple[Line, ...] = (
                _line("validation", records[name], step, val, style=0, marks=best),
                _line("training", records[name], step, train, style=1),
            )
            lines = tuple(line for line in lines if line.x)
            x = over(step, [x for line in lines for x in line.x], whole=True)
            runs = len({record.get("seed") for record in records[name]})
            several = f", median and range of {runs} runs" if runs > 1 else ""
            text = f"{heading} of {name} by {step}{several}. Kept: "
            text += ", ".join(f"{step} {x:,} with {y.label(v)}" for x, v in best[:3]) + (", ..." if best[3:] else ".")
            mark = "the best on validation, kept" + (", of each run" if runs > 1 else "")
            found.append(Curves(f"learning-{key}-{name}", f"{heading}: {name}", text, x, y, lines, mark))
    return found


def _line(name: str, records: Iterable[JSON], step: str, key: str, **style: Any) -> Line:
    values: dict[float, list[float]] = defaultdict(list)
    for record in records:
        if record.get(key) is not None:
            values[record[step]].append(record[key])
    xs = sorted(values)
    several = any(len(found) > 1 for found in values.values())
    band = tuple((min(values[x]), max(values[x])) for x in xs) if several else ()
    return Line(name, tuple(xs), tuple(median(values[x]) for x in xs), band, **style)


def _best(document: JSON, step: str, val: str) -> tuple[tuple[float, float], ...]:
    """The record that was kept, of each seed."""
    runs: dict[Any, list[JSON]] = defaultdict(list)
    for record in document["records"]:
        runs[record.get("seed")].append(record)
    if len(runs) < 2:
        best = document["best"]
        return ((best[step], best[val]),) if best.get(val) is not None else ()
    kept = [min(records, key=lambda record: float(record["val_loss"])) for records in runs.values()]
    return tuple((record[step], record[val]) for record in kept)


def recall(name: str, document: JSON) -> Bars:
    """Recall of each class that occurs, the lowest first."""
    rows = sorted((c for c in document["per_class"] if c["n"]), key=lambda c: (c["recall"], c["class"]))
    names, values = tuple(c["class"] for c in rows), tuple(float(c["recall"]) for c in rows)
    precisions = ["" if c["precision"] is None else f"{100 * c['precision']:.1f}" for c in rows]
    extra = (("precision %", *precisions), ("answered", *(str(c["answered"]) for c in rows)))
    lowest = ", ".join(f"{c['class']} {100 * c['recall']:.0f} %" for c in rows[:3])
    text = f"Recall of {len(rows)} classes by {name}. Lowest: {lowest}. Median: {100 * median(values):.1f} %."
    counts = tuple(c["n"] for c in rows)
    axis = Axis("recall %", 0, 1, percent=True)
    return Bars(f"recall-{name}", f"Recall by class: {name}", text, axis, names, values, counts, extra)


def calibration(name: str, document: JSON) -> Reliability:
    """Confidence against accuracy in the evaluation's bins."""
    bins = tuple((b["low"], b["high"], b["n"], b["confidence"], b["accuracy"]) for b in document["calibration"])
    error = document["metrics"]["expected_calibration_error"]
    confidence = sum(b[2] * b[3] for b in bins) / sum(b[2] for b in bins)
    accuracy = sum(b[2] * b[4] for b in bins) / sum(b[2] for b in bins)
    text = f"Accuracy by confidence of {name} in {len(bins)} bins. Mean confidence {100 * confidence:.1f} %, "
    text += f"accuracy {100 * accuracy:.1f} %; expected calibration error {100 * error:.2f} %."
    return Reliability(f"calibration-{name}", f"Calibration: {name}, ECE {100 * error:.2f} %", text, bins)


def confusion(name: str, document: JSON) -> Matrix:
    """The confusion matrix, each row as shares of its true class."""
    classes = document["per_class"]
    cells = tuple((t, a, n, n / classes[t]["n"]) for t, a, n in document["confusion"])
    worst = max((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: cell[2], default=None)
    names = tuple(c["class"] for c in classes)
    most = f"Most confused: {names[worst[0]]} taken for {names[worst[1]]}, {worst[2]} times." if worst else "No errors."
    text = f"Answers of {name} by true class, {len(names)} classes, rows in shares of the class. {most}"
    return Matrix(f"confusion-{name}", f"Confusion matrix: {name}", text, names, cells)


BINS = 48


def predicted(name: str, answers: NDArray[np.floating], targets: NDArray[np.floating]) -> Density:
    """Answers (N,) or (runs, N) against true values (N,); what lies beyond the axes counts at their ends."""
    true, answer = np.broadcast_to(targets, answers.shape).ravel().astype(float), answers.ravel().astype(float)
    low, high = float(targets.min()), float(targets.max())
    margin = 0.1 * (high - low) or 0.5
    x, y = Axis("true value", low, high if high > low else low + 1), Axis("answer", low - margin, high + margin)
    inside = answer.clip(y.low, y.high)
    counts = np.histogram2d(true, inside, bins=BINS, range=((x.low, x.high), (y.low, y.high)))[0].astype(np.int64)
    edges = np.linspace(x.low, x.high, 11)
    where = np.digitize(true, edges[1:-1])
    deciles = []
    for place in np.unique(where):
        here = where == place
        error = float(np.abs(answer - true)[here].mean())
        deciles.append((edges[place], edges[place + 1], int(here.sum()), float(answer[here].mean()), error))
    beyond = int((inside != answer).sum())
    text = f"{true.size:,} answers of {name} against the true values; on the diagonal they are right. "
    text += f"Mean absolute error {number(float(np.abs(answer - true).mean()))}."
    text += f" {beyond:,} lie beyond the axis." if beyond else ""
    return Density(f"predicted-{name}", f"Answer and true value: {name}", text, x, y, counts, tuple(deciles))


def by_length(documents: Sequence[Named]) -> Curves:
    """Mean squared error by sequence length, one line for each (name, `dlcv.eval/1` document)."""
    lines = []
    for place, (name, document) in enumerate(documents):
        rows = document["by_length"]
        xs, ys = tuple(r["length"] for r in rows), tuple(r["mse"] for r in rows)
        lines.append(Line(name, xs, ys, style=place))
    x = over("length", [x for line in lines for x in line.x], whole=True)
    y = over("MSE", [y for line in lines for y in line.y], log=True)
    ends = "; ".join(f"{line.name} {y.label(line.y[0])} to {y.label(line.y[-1])}" for line in lines)
    text = f"Mean squared error from length {x.label(lines[0].x[0])} to {x.label(lines[0].x[-1])}: {ends}."
    return Curves("by-length", "Error by length", text, x, y, tuple(lines))
