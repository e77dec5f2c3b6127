"""`dlcv eval`: the verdict."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from tabulate import tabulate

from dlcv_cli.cli.console import Terminal, print_json, say
from dlcv_cli.cli.options import UNCHECKED, CacheFolder, Force, Json, NoCache, configured
from dlcv_cli.config import EvalConfig, Machine
from dlcv_cli.errors import SettingError
from dlcv_cli.evaluation.comparison import COLUMNS, Column, compare

COMPARISON = "dlcv.comparison/1"


@configured(EvalConfig, Machine)
def evaluate(
    config: EvalConfig,
    machine: Machine,
    checkpoints: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINT...", help="One or many.", show_default=False, **UNCHECKED)
    ],
    cache: CacheFolder,
    comparing: Annotated[bool, typer.Option("--compare", help="One table of all, with the baseline.")] = False,
    table: Annotated[
        Literal["plain", "github", "latex", "csv", "json"], typer.Option("--format", help="Of the table.")
    ] = "plain",
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Split or sequence file, when not where it was.", **UNCHECKED)
    ] = None,
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="The images' folder, when not where it was.")] = None,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Evaluate checkpoints on the data they were trained with: NAME.PART.eval.json and predictions beside each."""
    from dlcv_cli.stages import evaluate as stage

    if len({path.resolve() for path in checkpoints}) < len(checkpoints):
        raise SettingError("a checkpoint is given twice")
    done, report = [], Terminal()
    for path in checkpoints:
        kept = None if no_cache else cache
        outcome = stage.evaluate(
            path, config, data=data, root=root, machine=machine, force=force, cache=kept, report=report
        )
        report.note(f"{outcome.output}: {'written' if outcome.made else 'up to date'}")
        done.append((path, outcome.summary))
    as_json = as_json or table == "json"
    if comparing:
        comparison = compare(list(zip(short_names(checkpoints), (document for _, document in done), strict=True)))
        if as_json:
            print_json({"schema": COMPARISON, **comparison})
        else:
            say(render(comparison, table))
    elif as_json:
        print_json([document for _, document in done] if len(done) > 1 else done[0][1])
    else:
        for path, document in done:
            say(f"{path}: {_line(document)}")


def short_names(paths: list[Path]) -> list[str]:
    """File names without ending where these tell the checkpoints apart, else their paths."""
    names = [path.name.removesuffix(".safetensors") for path in paths]
    return names if len(set(names)) == len(names) else [str(path).removesuffix(".safetensors") for path in paths]


def _line(document: dict[str, Any]) -> str:
    where, values = document["data"], document["metrics"]
    shown = (f"{column.heading} {_number(column, values[column.key])}" for column in COLUMNS[where["study"]])
    return f"{where['split']} n={where['n']:,}  {'  '.join(shown)}"


def _number(column: Column, value: float, signed: bool = False) -> str:
    if column.percent:
        return f"{100 * value:{'+' if signed else ''}.2f}"
    return f"{value:{'+' if signed else ''}.3g}" if abs(value) < 1e-2 else f"{value:{'+' if signed else ''}.4f}"


def _runs(row: dict[str, Any], column: Column) -> list[str]:
    """How many runs a row is the mean of, and how far they lie apart."""
    if "runs" not in row:
        return [str(len(row["seeds"])) if "seeds" in row else "", "", ""]
    found = row["runs"][column.key]
    low, high, spread = (_number(column, found[key]) for key in ("min", "max", "std"))
    return [str(len(row["seeds"])), spread, f"{low} .. {high}"]


def render(comparison: dict[str, Any], table: str) -> str:
    """The comparison as text; the best value of each column carries a star, csv has plain fractions instead."""
    columns, rows = COLUMNS[comparison["study"]], comparison["rows"]
    several = any("runs" in row for row in rows)
    if table == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        spread = [f"{columns[0].key}_{key}" for key in ("std", "min", "max")] if several else []
        writer.writerow(["name", *(c.key for c in columns), *spread, f"{columns[0].key}_difference"])
        for row in rows:
            over = row.get("runs", {}).get(columns[0].key, {})
            values = [row["metrics"].get(c.key, "") for c in columns]
            values += [over.get(key, "") for key in ("std", "min", "max")] if several else []
            writer.writerow([row["name"], *values, row["difference"]])
        return text.getvalue().rstrip("\n")
    cells = []
    for number, row in enumerate(rows):
        values = []
        for column in columns:
            value = row["metrics"].get(column.key)
            star = " *" if column.key in row["best"] else ""
            values.append("" if value is None else _number(column, value) + star)
        difference = "" if number == 0 else _number(columns[0], row["difference"], signed=True)
        cells.append([row["name"], *values, *(_runs(row, columns[0]) if several else ()), difference])
    headers = [f"{comparison['split']}, n = {comparison['n']:,}", *(c.heading for c in columns)]
    headers += ["runs", f"{columns[0].heading} sd", "min .. max"] if several else []
    headers.append(f"{columns[0].heading} - {rows[0]['name']}")
    align = ["left", *["right"] * (len(headers) - 1)]
    style = {"plain": "simple"}.get(table, table)
    text_table = tabulate(cells, headers=headers, tablefmt=style, colalign=align, disable_numparse=True)
    return f"{text_table}\n* best" if table == "plain" else text_table
