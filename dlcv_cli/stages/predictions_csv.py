"""Predictions of other programs for a part of our data, as CSV.

Letters: N examples of the part, K classes.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.errors import FileError, list_names
from dlcv_cli.files import sequences, splits
from dlcv_cli.files.disk import require_file
from dlcv_cli.vision.labels import Row, read_records

PREDICTED = ("predicted", "prediction", "answer", "class")  # columns of answers; the first that is there counts
LABELS = ("label", "class")  # columns of labels, if they are not that of answers
TOLERANCE = 1e-3  # of the sum of an example's probabilities


@dataclass(frozen=True)
class Imported:
    """Predictions in the order of the part's examples, under the names that predictions files have.

    Of images: `labels` and `predicted` (N,) int64, and `logits` (N, K) float32, the logarithms of the probabilities, if
    the file has any. Of sequences: `predictions` and `targets` (N,) float32, `lengths` (N,) int64.
    """

    study: str
    arrays: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class _Table:
    """A CSV file: its header, and its rows."""

    path: Path
    header: list[str]
    rows: list[Row]

    def find(self, *names: str) -> str | None:
        """Return the first of these columns that is there. FileError: it is there twice."""
        name = next((name for name in names if name in self.header), None)
        if name and self.header.count(name) > 1:
            raise FileError(self.path, f"has {self.header.count(name)} columns {name!r}; one is expected")
        return name

    def require(self, name: str) -> str:
        """Return the column's name. FileError: it is missing."""
        if column := self.find(name):
            return column
        header = list_names(map(repr, self.header), 8)
        raise FileError(self.path, f"has no column {name!r}; its header is {header}, separated by commas")


def read_predictions_csv(path: Path, data: Path, part: str, root: Path | None = None) -> Imported:
    """Return the predictions in a CSV with a heading and a row for each example of a part.

    Of images it has `file`, the path below the root or a name that no other image of the part has. Then `predicted`
    (or `prediction`, `answer`, `class`) with the name of a class, or a column of probabilities for each class, or both.
    A column `label` (or `class` beside `predicted`) has to have the classes of the split. Of sequences it has
    `sequence`, the number in the part from 1 on, and `prediction`. Other columns are not read.

    Args:
        data: a split file or a sequence file.
        root: folder of the images, in place of the split's.

    Raises:
        FileError: the file or the data cannot be read, or a row is not as it should be, missing, or there twice.
    """
    require_file(path)
    header, records = read_records(path)
    for number, cells in records:
        if len(cells) != len(header):
            raise FileError(path, f"row {number} has {len(cells)} cells; {len(header)} are expected, as in the heading")
    table = _Table(path, header, [(n, dict(zip(header, map(str.strip, cells), strict=True))) for n, cells in records])
    if data.suffix == ".json":
        return _read_images(table, splits.read(data, root), part)
    return _read_sequences(table, sequences.read(data), part)


def _read_images(table: _Table, split: splits.Split, part: str) -> Imported:
    examples, classes = split.parts[part], split.classes
    if not examples:
        raise FileError(split.path, f"has no {part} images")
    column = table.require("file")
    names = [example.path for example in examples]
    rows = _order(table, column, _match_files([cells[column] for _, cells in table.rows], names), names, part)
    labels = np.array([example.label for example in examples], np.int64)
    answers = table.find(*PREDICTED)
    if label := table.find(*(name for name in LABELS if name != answers)):
        wrong = [i for i, (_, cells) in enumerate(rows) if cells[label] != classes[labels[i]]]
        if wrong:
            (number, cells), own = rows[wrong[0]], classes[labels[wrong[0]]]
            raise FileError(
                table.path,
                f"has other labels than {split.path} in {len(wrong):,} rows: row {number}, {names[wrong[0]]}, has "
                f"{cells[label]!r} in place of {own!r}",
            )
    missing = [name for name in classes if name not in table.header]
    if missing and not answers:
        raise FileError(
            table.path,
            f"has no predictions: a column predicted is expected, or one of probabilities for each class; it lacks "
            f"{list_names(map(repr, missing))}",
        )
    arrays: dict[str, NDArray[Any]] = {"labels": labels}
    if answers and answers not in classes:
        arrays["predicted"] = _read_answers(table, rows, answers, classes)
    if not missing:
        probabilities = _read_probabilities(table, rows, classes)
        arrays["logits"] = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)).astype(np.float32)
        predicted = arrays.setdefault("predicted", probabilities.argmax(1))
        lower = np.flatnonzero(probabilities[np.arange(len(rows)), predicted] < probabilities.max(1))
        if len(lower):
            raise FileError(
                table.path,
                f"row {rows[lower[0]][0]}: {classes[predicted[lower[0]]]!r} is predicted, but another class is more "
                "probable; leave out the column of answers, or those of probabilities",
            )
    return Imported("images", arrays)


def _match_files(files: Sequence[str], names: Sequence[str]) -> list[int | None]:
    """Return the example that each file is, or None.

    A file is the example whose path it ends in, so that folders may stand before the root's; or, if it is a name
    without folders, the only example of that name.
    """
    places = {name: i for i, name in enumerate(names)}
    by_name = defaultdict(list)
    for i, name in enumerate(names):
        by_name[name.rpartition("/")[2]].append(i)

    def match(file: str) -> int | None:
        folders = [own for own in re.split(r"[/\\]", file) if own not in ("", ".")]
        ends = ("/".join(folders[i:]) for i in range(len(folders)))
        if (end := next((end for end in ends if end in places), None)) is not None:
            return places[end]
        own = by_name.get(file, [])
        return own[0] if len(own) == 1 else None

    return [match(file) for file in files]


def _order(table: _Table, column: str, places: Sequence[int | None], names: Sequence[str], part: str) -> list[Row]:
    """Return the rows in the order of the examples.

    Args:
        places: the example of each row; None: it is none of the part, or may be several.
        names: of the examples.

    Raises:
        FileError: an example has no row or several, or a row has no example.
    """
    unknown = [f"{row[1][column]!r} (row {row[0]})" for row, i in zip(table.rows, places, strict=True) if i is None]
    if unknown:
        raise FileError(
            table.path,
            f"{len(unknown):,} rows are of no example of the {part} part, or their name is not unique in it: "
            f"{list_names(unknown, 3)}; {column} is expected to be one of its {len(names):,}, such as {names[0]!r}",
        )
    by_place: dict[int | None, Row] = dict(zip(places, table.rows, strict=True))
    if double := [names[i] for i, count in Counter(places).items() if i is not None and count > 1]:
        raise FileError(
            table.path, f"{len(double):,} examples have several rows: {list_names(double, 3)}; one row is expected"
        )
    if missing := [name for i, name in enumerate(names) if i not in by_place]:
        raise FileError(
            table.path,
            f"{len(missing):,} of {len(names):,} examples of the {part} part have no row: {list_names(missing, 3)}",
        )
    return [by_place[i] for i in range(len(names))]


def _read_answers(table: _Table, rows: Sequence[Row], column: str, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the predicted class of each row (N,)."""
    numbers = {name: label for label, name in enumerate(classes)}
    for number, cells in rows:
        if cells[column] not in numbers:
            raise FileError(
                table.path,
                f"row {number}: {column} is {cells[column]!r}; the name of a class is expected: {list_names(classes)}",
            )
    return np.array([numbers[cells[column]] for _, cells in rows], np.int64)


def _read_probabilities(table: _Table, rows: Sequence[Row], classes: Sequence[str]) -> NDArray[np.float64]:
    """Return the probabilities (N, K) of each row, with the sum 1."""
    for name in classes:
        table.find(name)
    values = np.array([[_parse_number(table, row, name) for name in classes] for row in rows])
    sums = values.sum(1)
    wrong = np.flatnonzero((abs(sums - 1) > TOLERANCE) | (values < 0).any(1))
    if len(wrong):
        raise FileError(
            table.path,
            f"row {rows[wrong[0]][0]}: the columns of the classes have the sum {sums[wrong[0]]:.6g} and the lowest "
            f"value {values[wrong[0]].min():.6g}; probabilities are expected, from 0 on and with the sum 1 (of "
            "logits, take the softmax)",
        )
    return np.asarray(values / sums[:, None])


def _parse_number(table: _Table, row: Row, column: str) -> float:
    number, cells = row
    try:
        value = float(cells[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FileError(table.path, f"row {number}: {column} is {cells[column]!r}; a number is expected")
    return value


def _read_sequences(table: _Table, file: sequences.SequenceFile, part: str) -> Imported:
    data = file.parts[part]
    column = table.require("sequence")
    names = [str(number) for number in range(1, len(data.targets) + 1)]
    places = {name: i for i, name in enumerate(names)}
    rows = _order(table, column, [places.get(cells[column]) for _, cells in table.rows], names, part)
    answers = table.require("prediction")
    predictions = np.array([_parse_number(table, row, answers) for row in rows], np.float32)
    return Imported("sequences", {"predictions": predictions, "targets": data.targets, "lengths": data.lengths})
