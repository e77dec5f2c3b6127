"""Evaluations and comparisons as a person reads them: percent instead of fractions."""

from __future__ import annotations

import csv
import io
import textwrap
from typing import Any

from tabulate import tabulate

from dlcv_cli.results.comparison import Column, Comparison, Pair, Row
from dlcv_cli.results.evaluation import AnyEvaluation, Interval

SPREAD = ("std", "min", "max")  # of a metric over a row's runs
INTERVAL = "95 % interval"
WIDTH = 100  # of the notes under a table


def describe(evaluation: AnyEvaluation) -> str:
    """Return an evaluation in one line."""
    from dlcv_cli.studies import study_named

    data, collapse = evaluation.data, evaluation.collapse
    shown = (
        f"{metric.column.heading} {metric.column.format(evaluation.metrics[metric.column.key])}"
        for metric in study_named(data.study).metrics
        if metric.column.key in evaluation.metrics
    )
    fallen = f"  collapsed: {collapse.why}; {collapse.describe()}" if collapse.collapsed else ""
    return f"{data.part} n={data.n:,}  {'  '.join(shown)}{fallen}"


def render(comparison: Comparison, table: str) -> str:
    """Return a comparison as text: plain with notes and sentences, github and latex the table alone, or csv.

    The best value of each column carries a star; csv has plain fractions instead, every interval, and all p-values.
    """
    if table == "csv":
        return _render_csv(comparison)
    columns, rows, first = comparison.columns, comparison.rows, comparison.columns[0]
    pairs = {pair.name: pair for pair in comparison.pairs if pair.metric == first.key}
    questions = list(dict.fromkeys(pair.question for pair in pairs.values()))
    several = any(row.seed_spread for row in rows)
    cells = []
    for row in rows:
        values = [_format_value(column, row) for column in columns]
        values.insert(1, first.format_interval(row.intervals[first.key]))
        if several:
            values.append(str(len(row.seeds) or ""))
        cells.append([_mark_name(row), *values, *_format_pair(first, pairs.get(row.name), len(questions) > 1)])
    headers = [first.heading, INTERVAL, *(column.heading for column in columns[1:])]
    headers += ["seeds"] if several else []
    headers += [f"{first.heading.removesuffix(' %')} - {comparison.reference}", INTERVAL, "p"]
    title = f"{comparison.data.part}, n = {comparison.data.n:,}"
    if table == "plain":
        headers = ["\n".join(textwrap.wrap(header, 10)) for header in headers]
    align = ["left", *["right"] * len(headers)]
    style = {"plain": "simple"}.get(table, table)
    text = tabulate(cells, headers=[title, *headers], tablefmt=style, colalign=align, disable_numparse=True)
    return "\n".join([text, *_make_notes(comparison, questions)]) if table == "plain" else text


def _format_value(column: Column, row: Row) -> str:
    if column.key not in row.metrics:
        return ""
    return column.format(row.metrics[column.key]) + (" *" if column.key in row.best else "")


def _format_pair(column: Column, pair: Pair | None, mixed: bool) -> list[str]:
    if not pair:
        return ["", "", ""]
    p = "<0.001" if pair.p_holm < 0.001 else f"{pair.p_holm:.3f}"
    interval = column.format_interval(pair.interval)
    return [column.format(pair.difference, signed=True), interval, f"{p} {pair.over}" if mixed else p]


def _mark_name(row: Row) -> str:
    marks = []
    if row.collapse and row.collapsed:
        marks.append(f"collapsed, {100 * row.collapse.share:.1f} % {row.collapse.most_frequent}")
    if row.contaminated:
        marks.append("contaminated")
    return f"{row.name} ({'; '.join(marks)})" if marks else row.name


def _make_notes(comparison: Comparison, questions: list[str]) -> list[str]:
    """Return what stands under the plain table: notes, then a sentence for each test."""
    rows = comparison.rows
    notes = ["* best of the column"]
    if any(row.collapsed for row in rows):
        notes[0] += ", among networks that have not collapsed"
    tests = len(rows) - 1
    corrected = f" Corrected for {tests} comparisons (Holm)." if tests > 1 else ""
    notes += [f"{question}{corrected}" for question in questions]
    if comparison.common:
        counts = ", ".join(f"{name} {count:,}" for name, count in comparison.common.items())
        notes.append(f"Compared on the {comparison.data.n:,} examples that all share; each had: {counts}.")
    notes += comparison.searches
    for row in rows:
        if row.collapse and row.collapsed:
            notes.append(f"{row.name} has collapsed: {row.collapse.why}; {row.collapse.describe()}.")
        if row.contaminated:
            notes.append(f"{row.name} was trained on some of these examples: its figures do not hold for new ones.")
    baselines = {row.name for row in rows if row.baseline}
    shown = [p for p in comparison.pairs if p.metric == comparison.metric or p.name not in baselines]
    wrapped = [line for note in notes for line in textwrap.wrap(note, WIDTH, break_long_words=False)]
    return [*wrapped, *(pair.sentence for pair in shown)]


def _render_csv(comparison: Comparison) -> str:
    pairs = {(pair.name, pair.metric): pair for pair in comparison.pairs}
    first, several = comparison.columns[0].key, any(row.seed_spread for row in comparison.rows)
    lines = []
    for row in comparison.rows:
        cells: dict[str, Any] = {"name": row.name}
        for key in (column.key for column in comparison.columns):
            cells[key] = row.metrics.get(key, "")
            if any(key in other.intervals for other in comparison.rows):
                cells[f"{key}_low"], cells[f"{key}_high"] = _ends(row.intervals.get(key))
        if several:
            spread = row.seed_spread.get(first)
            cells["seeds"] = len(row.seeds) or ""
            cells |= {f"{first}_{name}": getattr(spread, name) if spread else "" for name in SPREAD}
        for key in (column.key for column in comparison.tested):
            pair = pairs.get((row.name, key))
            cells[f"{key}_difference"] = pair.difference if pair else ""
            cells[f"{key}_difference_low"], cells[f"{key}_difference_high"] = _ends(pair.interval if pair else None)
            cells |= {f"{key}_{name}": getattr(pair, name) if pair else "" for name in ("p", "p_holm", "over")}
        lines.append(cells | {"collapsed": row.collapsed, "contaminated": row.contaminated})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


def _ends(interval: Interval | None) -> tuple[Any, Any]:
    return (interval.low, interval.high) if interval else ("", "")
