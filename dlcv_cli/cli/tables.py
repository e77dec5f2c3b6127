"""The comparison as a person reads it. Percent appears here and nowhere else."""

from __future__ import annotations

import csv
import io
import textwrap
from typing import Any

from tabulate import tabulate

from dlcv_cli.report.axes import number
from dlcv_cli.results.columns import COLUMNS, Column

JSON = dict[str, Any]
SPREAD = ("std", "min", "max")  # of a row's runs
INTERVAL = "95 % interval"


def line(document: JSON) -> str:
    """One evaluation in one line."""
    where, values, collapse = document["data"], document["metrics"], document["collapse"]
    shown = (f"{column.heading} {_number(column, values[column.key])}" for column in COLUMNS[where["study"]])
    fallen = f"  collapsed: {collapse['why']}; {_most(collapse)}" if collapse["collapsed"] else ""
    return f"{where['split']} n={where['n']:,}  {'  '.join(shown)}{fallen}"


def _number(column: Column, value: float, signed: bool = False) -> str:
    return number(value, column.percent, signed, column.small)


def _span(column: Column, interval: list[float]) -> str:
    low, high = (f"{100 * x:.1f}" if column.percent else f"{x:.{2 if abs(x) < 1e-2 else 3}g}" for x in interval)
    return f"{low} to {high}"


def _most(collapse: JSON) -> str:
    """The most frequent answer, and its share."""
    near = "" if collapse["answers"] else "near "
    return f"{100 * collapse['share']:.1f} % of its answers are {near}{collapse['most_frequent']}"


def _p(pair: JSON | None, mixed: bool) -> str:
    if not pair:
        return ""
    text = "<0.001" if pair["p_holm"] < 0.001 else f"{pair['p_holm']:.3f}"
    return f"{text} {pair['over']}" if mixed else text


def _has_collapsed(row: JSON) -> bool:
    return "collapse" in row and bool(row["collapse"]["collapsed"])


def _name(row: JSON) -> str:
    marks = []
    if _has_collapsed(row):
        marks.append(f"collapsed, {100 * row['collapse']['share']:.1f} % {row['collapse']['most_frequent']}")
    if row["contaminated"]:
        marks.append("contaminated")
    return f"{row['name']} ({'; '.join(marks)})" if marks else str(row["name"])


def _count(row: JSON) -> str:
    return str(len(row["seeds"])) if "seeds" in row else ""


def render(comparison: JSON, table: str) -> str:
    """The comparison as text: plain with its notes and a sentence a pair, github and latex the table alone, or csv.

    The best value of each column carries a star; csv has plain fractions instead, every interval, and all p-values.
    """
    if table == "csv":
        return _csv(comparison)
    columns, rows = COLUMNS[comparison["study"]], comparison["rows"]
    first, reference = columns[0], comparison["reference"]
    pairs = {pair["name"]: pair for pair in comparison["pairs"] if pair["metric"] == first.key}
    questions = {pair["over"]: pair["question"] for pair in pairs.values()}
    several = any("runs" in row for row in rows)
    cells = []
    for row in rows:
        values = []
        for column in columns:
            value = row["metrics"].get(column.key)
            star = " *" if column.key in row["best"] else ""
            values.append("" if value is None else _number(column, value) + star)
        values.insert(1, _span(first, row["intervals"][first.key]))
        if several:
            values.append(_count(row))
        pair = pairs.get(row["name"])
        difference = (
            [_number(first, pair["difference"], signed=True), _span(first, pair["interval"])] if pair else ["", ""]
        )
        cells.append([_name(row), *values, *difference, _p(pair, len(questions) > 1)])
    headers = [first.heading, INTERVAL, *(column.heading for column in columns[1:])]
    headers += ["runs"] if several else []
    headers += [f"{first.heading.removesuffix(' %')} - {reference}", INTERVAL, "p"]
    title = f"{comparison['split']}, n = {comparison['n']:,}"
    style = {"plain": "simple"}.get(table, table)
    if table == "plain":
        headers = ["\n".join(textwrap.wrap(header, 10)) for header in headers]
    align = ["left", *["right"] * len(headers)]
    text = tabulate(cells, headers=[title, *headers], tablefmt=style, colalign=align, disable_numparse=True)
    return "\n".join([text, *_notes(comparison, questions)]) if table == "plain" else text


def _notes(comparison: JSON, questions: dict[str, str]) -> list[str]:
    """What stands under the plain table."""
    notes = ["* best"]
    rows = len(comparison["rows"]) - 1
    for over, question in questions.items():
        notes.append(f"p over {over}: {question} Corrected for {rows} rows (Holm).")
    if comparison["common"]:
        had = ", ".join(f"{name} {count:,}" for name, count in comparison["common"].items())
        notes.append(f"on the {comparison['n']:,} examples that all were measured on, of {had}")
    for row in comparison["rows"]:
        if _has_collapsed(row):
            notes.append(f"{row['name']} has collapsed: {row['collapse']['why']}; {_most(row['collapse'])}")
        if row["contaminated"]:
            notes.append(
                f"{row['name']} was trained on examples that it is measured on: its figures say nothing of others"
            )
    baselines = {row["name"] for row in comparison["rows"] if row["baseline"]}
    told = (p for p in comparison["pairs"] if p["metric"] == comparison["metric"] or p["name"] not in baselines)
    return [*notes, *(pair["sentence"] for pair in told)]


def _csv(comparison: JSON) -> str:
    columns, rows = COLUMNS[comparison["study"]], comparison["rows"]
    pairs = {(pair["name"], pair["metric"]): pair for pair in comparison["pairs"]}
    several = any("runs" in row for row in rows)
    found = []
    for row in rows:
        cells: JSON = {"name": row["name"]}
        for column in columns:
            key = column.key
            cells[key] = row["metrics"].get(key, "")
            if column.interval:
                cells[f"{key}_low"], cells[f"{key}_high"] = row["intervals"].get(key, ("", ""))
        if several:
            over = row.get("runs", {}).get(columns[0].key, {})
            cells |= {"runs": _count(row)} | {f"{columns[0].key}_{key}": over.get(key, "") for key in SPREAD}
        for key in (column.key for column in columns if column.noun):
            pair = pairs.get((row["name"], key), {})
            low, high = pair.get("interval", ("", ""))
            cells |= {f"{key}_difference": pair.get("difference", "")}
            cells |= {f"{key}_difference_low": low, f"{key}_difference_high": high}
            cells |= {f"{key}_{k}": pair.get(k, "") for k in ("p", "p_holm", "over")}
        found.append(cells | {"collapsed": _has_collapsed(row), "contaminated": row["contaminated"]})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue().rstrip("\n")
