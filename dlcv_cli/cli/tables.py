"""Evaluations and comparisons as a person reads them: percent instead of fractions."""

from __future__ import annotations

import textwrap

from tabulate import tabulate

from dlcv_cli.results.comparison import Column, Comparison, Pair, Row
from dlcv_cli.results.evaluation import AnyEvaluation
from dlcv_cli.results.tables import describe_data, render_csv

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
        return render_csv(comparison)
    columns, rows, first = comparison.columns, comparison.rows, comparison.columns[0]
    pairs = {pair.name: pair for pair in comparison.pairs if pair.metric == first.key}
    several = any(row.spread for row in rows)
    cells = []
    for row in rows:
        values = [_format_value(column, row) for column in columns]
        interval = row.intervals.get(first.key)
        values.insert(1, first.format_interval(interval) if interval else "")
        if several:
            values.insert(0, row.describe_runs())
        cells.append([_mark_name(row), *values, *_format_pair(first, pairs.get(row.name))])
    headers = ["runs"] if several else []
    headers += [first.heading, INTERVAL, *(column.heading for column in columns[1:])]
    headers += [f"{first.heading.removesuffix(' %')} - {comparison.reference}", INTERVAL, "p"]
    title = describe_data(comparison)
    if table == "plain":
        headers = ["\n".join(textwrap.wrap(header, 10)) for header in headers]
    align = ["left", *["right"] * len(headers)]
    style = {"plain": "simple"}.get(table, table)
    text = tabulate(cells, headers=[title, *headers], tablefmt=style, colalign=align, disable_numparse=True)
    return "\n".join([text, *_make_notes(comparison)]) if table == "plain" else text


def _format_value(column: Column, row: Row) -> str:
    if column.key not in row.metrics:
        return ""
    return column.format(row.metrics[column.key]) + (" *" if column.key in row.best else "")


def _format_pair(column: Column, pair: Pair | None) -> list[str]:
    if not pair:
        return ["", "", ""]
    p = "<0.001" if pair.p_holm < 0.001 else f"{pair.p_holm:.3f}"
    interval = column.format_interval(pair.interval)
    return [column.format(pair.difference, signed=True), interval, p]


def _mark_name(row: Row) -> str:
    marks = []
    if row.fallen:
        marks.append("collapsed" if len(row.runs) == 1 else f"{len(row.fallen)} of {len(row.runs)} collapsed")
    if row.contaminated:
        marks.append("contaminated")
    return f"{row.name} ({'; '.join(marks)})" if marks else row.name


def _make_notes(comparison: Comparison) -> list[str]:
    """Return what stands under the plain table: notes, then a sentence for each test and what else is known of it."""
    rows = comparison.rows
    baselines = {row.name for row in rows if row.baseline}
    shown = [p for p in comparison.pairs if p.metric == comparison.metric or p.name not in baselines]
    notes = ["* best of the column"]
    if any(row.collapsed for row in rows):
        notes[0] += ", among networks that have not collapsed"
    notes.append(comparison.describe_intervals())
    notes += dict.fromkeys(pair.question for pair in shown)
    if comparison.tests > 1:
        notes.append(f"p is corrected for all {comparison.tests} tests of this comparison (Holm); intervals are not.")
    if comparison.common:
        counts = ", ".join(f"{name} {count:,}" for name, count in comparison.common.items())
        notes.append(f"Compared on the {comparison.data.n:,} examples that all share; each had: {counts}.")
    notes += [*comparison.untested, *comparison.searches, *comparison.collapses, *comparison.doubts]
    notes += [
        f"{row.name} was trained on some of these examples: its figures do not hold for new ones."
        for row in rows
        if row.contaminated
    ]
    lines = [line for note in notes for line in textwrap.wrap(note, WIDTH, break_long_words=False)]
    for pair in shown:
        lines.append(pair.sentence)
        if pair.metric == comparison.metric and pair.name not in baselines:
            lines += [f"  {detail}" for detail in pair.details]
    return lines
