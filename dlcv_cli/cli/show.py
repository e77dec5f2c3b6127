"""`dlcv show` and `dlcv runs`: what files are, and the checkpoints below a folder as a table."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from dlcv_cli.cli.console import Terminal, describe_record, print_json, say
from dlcv_cli.cli.options import UNCHECKED, ConfigFile, Json
from dlcv_cli.errors import format_bytes, list_names
from dlcv_cli.files.recipes import VARIED
from dlcv_cli.settings import name_stage

if TYPE_CHECKING:
    from dlcv_cli.results.comparison import Column
    from dlcv_cli.stages.lineage import Source
    from dlcv_cli.stages.show import Described, Run, Setting

COLUMNS = ("checkpoint", "runs", "stage", "data", "settings", "validation", "test")
SETTINGS_WIDTH = 60  # characters of a line of that column
FACTS = ("task", "arch", "precision", "at", "counts", "parameters")  # of a document, shown in this order


def show(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Any file of dlcv, or safetensors.", **UNCHECKED)],
    as_json: Json = False,
    config_file: ConfigFile = None,
) -> None:
    """Show what a file is: how it was made, what it achieves, and whether its inputs are still the same."""
    from dlcv_cli.stages.show import describe

    described = describe(path)
    if as_json:
        print_json(_to_json(described))
        return
    for line in _list_lines(described):
        say(line)


def _list_lines(of: Described) -> Iterator[str]:
    kind = of.schema.removeprefix("dlcv.").partition("/")[0] if of.schema else "safetensors of another program"
    made = f", made by dlcv {name_stage(of.document['stage'])}" if "stage" in of.document else ""
    yield f"{of.path}: {kind}{made}"
    size = format_bytes(of.path.stat().st_size)
    yield f"  {size}" + (f", {len(of.tensors)} tensors, {of.parameters:,} numbers" if of.tensors else "")
    for name in FACTS:
        if value := of.document.get(name):
            yield f"  {name} {_format(value)}"
    if isinstance(classes := of.document.get("classes"), list):
        yield f"  {len(classes)} classes: {list_names(map(str, classes))}"
    if of.schema is None:
        yield from (f"  {name} {dtype} {shape}" for name, (dtype, shape) in of.tensors.items())
    if of.settings:
        tries = of.document.get("tries")
        count = len(tries) if isinstance(tries, list) else tries
        yield "settings (* not the default" + (f"; + chosen among {count} tries)" if count else ")")
        yield from (f"  {_mark(setting)} {setting.name} {_format(setting.value)}" for setting in of.settings)
    if calibration := of.document.get("calibration"):
        yield f"temperature {calibration['temperature']:.4g}, fitted to {calibration['n']:,} validation images"
    if of.best:
        yield "best record"
        yield f"  {describe_record(msgspec.to_builtins(of.best))}"
    yield from _list_figures(of)
    if len(of.siblings) > 1:
        yield f"one of {len(of.siblings)} runs of its recipe in this folder"
        for heading, get in (("validation", _get_validation), ("test", _get_test)):
            if figure := _describe_figure(of.siblings, get):
                yield f"  {heading} {figure}"
    if of.sources:
        yield "made from"
        yield from _list_sources(of.sources, "  ")


def _mark(setting: Setting) -> str:
    return "+" if setting.chosen else " " if setting.is_default else "*"


def _format(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {own:,}" if isinstance(own, int) else f"{key} {own}" for key, own in value.items())
    return "not set" if value is None else str(value)


def _list_figures(of: Described) -> Iterator[str]:
    from dlcv_cli.stages.show import get_figures

    for part, evaluation in of.evaluations.items():
        yield f"on {part}, n = {evaluation.data.n:,}"
        for column, value in get_figures(evaluation):
            interval = evaluation.intervals.get(column.key)
            ends = f" ({column.format_interval(interval)})" if interval else ""
            yield f"  {column.heading} {column.format(value)}{ends}"
        if evaluation.collapse.collapsed:
            yield f"  collapsed: {evaluation.collapse.why}"


def _list_sources(sources: Iterable[Source], indent: str) -> Iterator[str]:
    """Yield a line for each file, and below it those that it was made from. Folders of the maker are not shown."""
    for source in sources:
        state = "" if source.path is None else f": {source.problem or 'unchanged'}"
        yield f"{indent}{source.role} {source.name} {source.sha256[:8]}{state}"
        yield from _list_sources(source.sources, f"{indent}  ")


def _to_json(of: Described) -> dict[str, Any]:
    from dlcv_cli.files.recipes import without_paths
    from dlcv_cli.stages.show import get_figures

    return {
        "file": str(of.path),
        "schema": of.schema,
        "bytes": of.path.stat().st_size,
        "document": {key: value for key, value in without_paths(of.document).items() if key != "schema"},
        "changed_settings": {setting.name: setting.value for setting in of.settings if not setting.is_default},
        "figures": {
            part: {column.key: value for column, value in get_figures(evaluation)}
            for part, evaluation in of.evaluations.items()
        },
        "runs": [str(run.path) for run in of.siblings],
        "sources": [_source_to_json(source) for source in of.sources],
        "tensors": {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in of.tensors.items()},
    }


def _source_to_json(source: Source) -> dict[str, Any]:
    return {
        "role": source.role,
        "name": source.name,
        "sha256": source.sha256,
        "problem": source.problem,
        "sources": [_source_to_json(own) for own in source.sources],
    }


# ------------------------------------------------------------------------------------------------------------- runs


def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to search.", **UNCHECKED)] = Path(),
    sort: Annotated[
        Literal["checkpoint", "stage", "data", "validation", "test"],
        typer.Option(metavar="NAME", help="Column to sort by; figures with the best first."),
    ] = "checkpoint",
    group: Annotated[
        bool, typer.Option(help="Take the runs of one recipe in a folder, with several seeds or folds, as one row.")
    ] = True,
    table: Annotated[
        Literal["plain", "csv"], typer.Option("--format", metavar="NAME", help="One of plain, csv.")
    ] = "plain",
    config_file: ConfigFile = None,
) -> None:
    """List the checkpoints below a folder: stage, data, settings that differ, validation and test figures."""
    from tabulate import tabulate

    from dlcv_cli.stages.show import find_runs, group_by_recipe

    checkpoints = list(find_runs(folder, Terminal()))
    groups = group_by_recipe(checkpoints) if group else [[run] for run in checkpoints]
    rows = [_list_cells(own) for own in sorted(groups, key=lambda own: _rank(own, sort))]
    if table == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
        say(text.getvalue().rstrip("\n"))
    else:
        wide = [SETTINGS_WIDTH if name == "settings" else None for name in COLUMNS]
        style: dict[str, Any] = {"tablefmt": "simple", "disable_numparse": True, "maxcolwidths": wide}
        say(tabulate(rows, headers=COLUMNS, **style) if rows else f"{folder}: no checkpoints")


def _list_cells(runs: list[Run]) -> tuple[str, ...]:
    from dlcv_cli.stages.groups import name_group

    first, several = runs[0], len(runs) > 1
    shown = [own for own in first.settings if own.name not in ("arch", *(VARIED if several else ()))]
    settings = ", ".join(f"{own.name} {_format(own.value)}" for own in shown)
    arch = next((f"{own.value}, " for own in first.settings if own.name == "arch"), "")
    name = name_group([str(run.path).removesuffix(".safetensors") for run in runs]) if several else str(first.path)
    figures = (_describe_figure(runs, get) for get in (_get_validation, _get_test))
    count = str(len(runs)) if several else ""
    return name, count, name_stage(first.stage), first.data, f"{arch}{settings}".rstrip(", "), *figures


def _describe_figure(runs: Iterable[Run], get: Callable[[Run], tuple[Column, float] | None]) -> str:
    """Return a figure of a run, or its mean and sample standard deviation over several; empty if one lacks it."""
    figures = [get(run) for run in runs]
    values = [figure[1] for figure in figures if figure]
    if len(values) < len(figures) or not figures[0]:
        return ""
    column = figures[0][0]
    spread = f" ± {column.format(statistics.stdev(values))}" if len(values) > 1 else ""
    text = f"{column.format(statistics.fmean(values))}{spread}"
    return f"{text} %" if column.percent else f"{column.heading} {text}"


def _get_validation(run: Run) -> tuple[Column, float] | None:
    """Return the best record's figure."""
    from dlcv_cli.results.comparison import Column

    accuracy, loss = run.best.get("val_accuracy"), run.best.get("val_loss")
    if isinstance(accuracy, float):
        return Column("val_accuracy", "accuracy %", "accuracy", higher_is_better=True, percent=True), accuracy
    return (Column("val_loss", "loss", "loss", higher_is_better=False), loss) if isinstance(loss, float) else None


def _get_test(run: Run) -> tuple[Column, float] | None:
    from dlcv_cli.stages.show import get_figures

    return get_figures(run.evaluations["test"])[0] if "test" in run.evaluations else None


def _rank(runs: list[Run], sort: str) -> tuple[Any, ...]:
    """Return what sorts a row into its place; rows without the figure come last."""
    first = runs[0]
    if sort in ("validation", "test"):
        figures = [_get_validation(run) if sort == "validation" else _get_test(run) for run in runs]
        present = [figure for figure in figures if figure]
        if len(present) < len(figures):
            return True, first.stage.partition(".")[0], 0, str(first.path)
        sign = -1 if present[0][0].higher_is_better else 1
        mean = sign * statistics.fmean(value for _, value in present)
        return False, first.stage.partition(".")[0], mean, str(first.path)
    return {"checkpoint": "", "stage": first.stage, "data": first.data}[sort], str(first.path)
