"""`dlcv predict`: put new images, or new sequences, into a checkpoint."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dlcv_cli.cli.console import say
from dlcv_cli.cli.options import FORCE, IN_FILES, UNCHECKED, CacheFolder, configured
from dlcv_cli.config import Machine, PredictConfig
from dlcv_cli.context import Context, Relay
from dlcv_cli.errors import DlcvError

Rows = Iterable[dict[str, Any]]  # `file`, then what is predicted, or `error`
FORMATS = "One of text, csv, json, jsonl (one JSON document a line)."
PATHS = "Images, folders of images, or files of sequences (CSV, JSON); without any, a list of them on stdin."


class Still(Relay):
    """Reports without a progress bar, which would get in the way of the predictions on the same terminal."""

    def progress(self, what: str, done: int, total: int) -> None:
        pass


@configured(PredictConfig, Machine, places={"cache": CacheFolder, **FORCE})
def predict(
    config: PredictConfig,
    context: Context,
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint.", **UNCHECKED)],
    paths: Annotated[list[Path] | None, typer.Argument(metavar="PATH", help=PATHS, **UNCHECKED)] = None,
    form: Annotated[
        Literal["text", "csv", "json", "jsonl"],
        typer.Option("--format", metavar="NAME", help=FORMATS),
    ] = "text",
    explain: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also draw a heat map of each image: what speaks for its class.", **IN_FILES),
    ] = None,
) -> None:
    """Predict the class of new images, or the number that new sequences stand for."""
    from dlcv_cli.stages.predict import predict as predict_files

    if sys.stdout.isatty():
        context = replace(context, reporter=Still(context.reporter))
    count = failed = 0

    def list_rows() -> Iterator[dict[str, Any]]:
        nonlocal count, failed
        files = paths or _read_list()
        for prediction in predict_files(checkpoint, files, config, explain=explain, context=context):
            count, failed = count + 1, failed + bool(prediction.problem)
            values = {"error": prediction.problem} if prediction.problem else prediction.values
            yield {"file": str(prediction.file), **values}

    WRITERS[form](list_rows())
    if not count:
        raise DlcvError("nothing to predict: the folders have no images, or the list is empty")
    if failed:
        raise DlcvError(f"{failed:,} of {count:,} predictions failed; their rows say why")


def _read_list() -> Iterator[Path]:
    """Yield the paths on stdin, one a line."""
    if sys.stdin is None or sys.stdin.isatty():
        raise DlcvError("give images or folders, or a list of them on stdin")
    for line in sys.stdin.buffer:
        if path := line.rstrip(b"\r\n"):
            yield Path(os.fsdecode(path))


def _write_text(rows: Rows) -> None:
    for row in rows:
        say(f"{row.pop('file')}: {_describe(row)}")


def _describe(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"error: {row['error']}"
    if "top" in row:
        drawn = [row["heat_map"]] if "heat_map" in row else []
        ranked = ", ".join([*(f"{one['class']} {100 * one['probability']:.1f} %" for one in row["top"]), *drawn])
        return ranked if row["class"] else f"none of these ({ranked})"
    return ", ".join(
        f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
    )


def _write_csv(rows: Rows) -> None:
    """Write a heading of the first row that is no error, and all rows."""
    waiting: list[dict[str, Any]] = []
    writer = csv.writer(sys.stdout, lineterminator="\n")
    columns: list[str] = []
    for row in rows:
        waiting.append(_flatten(row))
        if not columns and "error" not in row:
            columns = [*waiting[-1], "error"]
            writer.writerow(columns)
        if columns:
            writer.writerows([own.get(column, "") for column in columns] for own in waiting)
            waiting.clear()
    if waiting:
        writer.writerow(["file", "error"])
        writer.writerows([own["file"], own["error"]] for own in waiting)


def _flatten(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with `class_2`, `probability_2` and so on in place of the list `top`."""
    flat = {key: value for key, value in row.items() if key != "top"}
    for rank, own in enumerate(row.get("top", [])[1:], 2):
        flat |= {f"{key}_{rank}": value for key, value in own.items()}
    return flat


def _write_json(rows: Rows) -> None:
    begin = "["
    for row in rows:
        sys.stdout.write(f"{begin}\n {json.dumps(row)}")
        begin = ","
    sys.stdout.write("\n]\n" if begin == "," else "[]\n")


def _write_json_lines(rows: Rows) -> None:
    for row in rows:
        sys.stdout.write(f"{json.dumps(row)}\n")


WRITERS: dict[str, Callable[[Rows], None]] = {
    "text": _write_text,
    "csv": _write_csv,
    "json": _write_json,
    "jsonl": _write_json_lines,
}
