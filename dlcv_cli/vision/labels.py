"""Images that a CSV file of the user lists, with their classes, and parts and groups if it has them."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Sequence
from pathlib import Path

from dlcv_cli.config import SplitConfig
from dlcv_cli.errors import FileError, list_names
from dlcv_cli.settings import option_name
from dlcv_cli.vision.datasets import PART_NAMES, Listing
from dlcv_cli.vision.groups import match_groups
from dlcv_cli.vision.splits import leads_out

Row = tuple[int, dict[str, str]]  # the number of a row, where the header is row 1; cells by what they are


def read_labels(file: Path, root: Path, config: SplitConfig) -> Listing:
    """Return the images that a CSV lists, sorted by path. Its paths start from `root`, or are absolute and below it.

    Raises:
        FileError: it is no CSV with the columns that the settings name, or a row is not as it should be.
        DlcvError: as `match_groups`.
    """
    header, records = read_records(file)
    columns = _find_columns(file, header, config)
    rows: dict[str, Row] = {}
    for number, record in records:
        if len(record) != len(header):
            raise FileError(file, f"row {number} has {len(record)} cells; {len(header)} are expected: {_quote(header)}")
        cells = {role: record[place].strip() for role, place in columns.items()}
        path = _check_path(file, number, record[columns["path"]], root)
        if path in rows:
            raise FileError(file, f"row {number} lists {path!r} again, after row {rows[path][0]}; expected once")
        rows[path] = number, cells
    rows = dict(sorted(rows.items()))
    _require_images(file, root, rows)
    labels = {path: cells["label"] for path, (_, cells) in rows.items()}
    if empty := next((number for path, (number, _) in rows.items() if not labels[path]), None):
        raise FileError(file, f"row {empty} has an empty {config.label_column!r}; the name of a class is expected")
    classes = sorted(set(labels.values()))
    numbers = {name: label for label, name in enumerate(classes)}
    images = [(path, numbers[name]) for path, name in labels.items()]
    groups = {path: cells["group"] for path, (_, cells) in rows.items() if cells.get("group")}
    if config.group and "group" not in columns:
        groups = match_groups(rows, config.group, f" (no column of {file.name}, which has {_quote(header)})")
    return Listing(classes, images, [], [], _read_parts(file, rows), groups)


def read_records(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header, and the other rows that are not empty, with their numbers.

    Raises:
        FileError: the file is no CSV in UTF-8, or has no row beside a header.
    """
    try:
        rows = list(csv.reader(io.StringIO(file.read_text("utf-8-sig")), strict=True, skipinitialspace=True))
    except UnicodeDecodeError:
        raise FileError(file, "is not text in UTF-8; a CSV in UTF-8 is expected") from None
    except csv.Error as error:
        raise FileError(file, f"is not the CSV that is expected: {error}") from None
    records = [(number, row) for number, row in enumerate(rows, 1) if row]
    if len(records) < 2:
        raise FileError(file, f"has {len(records)} rows; a header and a row for each example are expected")
    return [name.strip() for name in records[0][1]], records[1:]


def _find_columns(file: Path, header: list[str], config: SplitConfig) -> dict[str, int]:
    """Return the places of the columns path and label, and of part and group if they are there or named."""
    grouped = config.group if config.group in header else None
    names = {
        "path": config.path_column,
        "label": config.label_column,
        "part": config.part_column or ("part" if "part" in header else None),
        "group": config.group_column or grouped or ("group" if "group" in header and not config.group else None),
    }
    columns = {}
    for role, name in names.items():
        if name is None:
            continue
        if (count := header.count(name)) != 1:
            seen = f"{count} columns" if count else "no column"
            remedy = f"name another with {option_name(f'{role}_column')}"
            if len(header) == 1 and (other := next((mark for mark in ";\t|" if mark in header[0]), None)):
                remedy = f"it seems to be separated by {other!r}: write it with commas"
            raise FileError(file, f"has {seen} {name!r}; its header is {_quote(header)}, separated by commas; {remedy}")
        columns[role] = header.index(name)
    return columns


def _quote(header: Sequence[str]) -> str:
    return list_names(map(repr, header), 8)


def _check_path(file: Path, number: int, cell: str, root: Path) -> str:
    """Return a path relative to the root. Raise FileError if it is empty or leads out of the root."""
    if not cell.strip():
        raise FileError(file, f"row {number} has no path; the path of an image below {root} is expected")
    bases = (base for base in (root.absolute(), root.resolve()) if Path(cell).is_relative_to(base))
    base = next(bases, None)
    path = posixpath.normpath(Path(cell).relative_to(base).as_posix() if base else cell)
    if leads_out(path):
        raise FileError(file, f"row {number}: {cell!r} leads out of {root}; a path below it is expected")
    return path


def _require_images(file: Path, root: Path, rows: dict[str, Row]) -> None:
    missing = [f"row {number} {path!r}" for path, (number, _) in rows.items() if not (root / path).is_file()]
    if missing:
        raise FileError(
            file,
            f"{len(missing)} of its {len(rows)} images are not there: {list_names(missing, 3)}; paths are expected to "
            f"start from {root}",
        )


def _read_parts(file: Path, rows: dict[str, Row]) -> dict[str, str]:
    """Return the part of each path; empty if there is no column of parts, or it is empty."""
    cells = {path: (number, own["part"]) for path, (number, own) in rows.items() if own.get("part")}
    for number, cell in cells.values():
        if cell.lower() not in PART_NAMES:
            raise FileError(file, f"row {number} has the part {cell!r}; expected is one of {', '.join(PART_NAMES)}")
    without = [number for path, (number, _) in rows.items() if path not in cells]
    if cells and without:
        raise FileError(
            file,
            f"row {min(without)} has no part, and {len(cells)} rows have one; expected in every row, or in none",
        )
    return {path: PART_NAMES[cell.lower()] for path, (_, cell) in cells.items()}
