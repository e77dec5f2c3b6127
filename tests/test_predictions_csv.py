"""Predictions of other programs, read from CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlcv_cli.errors import FileError
from dlcv_cli.files import sequences, splits
from dlcv_cli.stages.predictions_csv import Imported, read_predictions_csv
from dlcv_cli.vision.splits import Example
from tests.conftest import Run

CLASSES = ["cat", "dog, big", 'the "fox"']
LABELS = [0, 1, 2, 1]
PATHS = ["cat/1.png", "dogs/2.png", "foxes/2.png", "dogs/ä 4.png"]
PREDICTED = [0, 2, 2, 1]
PROBABILITIES = np.array([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0, 0.25, 0.75], [0.2, 0.5, 0.3]])


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Return a split file with four test images, which need not exist."""
    examples = [Example(path, label, f"{i:064x}") for i, (path, label) in enumerate(zip(PATHS, LABELS, strict=True))]
    others = [Example(f"other/{i}.png", i, f"{9 + i:064x}") for i in range(3)]
    path = tmp_path / "photos.split.json"
    splits.write(path, tmp_path, CLASSES, {"train": others, "val": [], "test": examples}, {})
    return path


def write_csv(folder: Path, rows: Sequence[Mapping[str, Any]], **how: Any) -> Path:
    """Write rows with the csv module, as other programs do."""
    encoding = how.pop("encoding", "utf-8")
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], **how)
    writer.writeheader()
    writer.writerows(rows)
    path = folder / "theirs.csv"
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def make_rows(**columns: Sequence[Any]) -> list[dict[str, Any]]:
    """Return rows of these columns."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def name(labels: Sequence[int]) -> list[str]:
    """Return the names of these classes."""
    return [CLASSES[label] for label in labels]


def of_classes(values: Any) -> list[dict[str, Any]]:
    """Return a row of files and the columns of the classes for each row of values."""
    return [{"file": p, **dict(zip(CLASSES, row, strict=True))} for p, row in zip(PATHS, values, strict=True)]


def require_predicted(imported: Imported) -> None:
    """Require the labels of the split and the predictions above, in the order of the split."""
    assert imported.study == "images"
    for key, expected in (("labels", LABELS), ("predicted", PREDICTED)):
        assert imported.arrays[key].dtype == np.int64
        assert imported.arrays[key].tolist() == expected


@pytest.mark.parametrize("column", ["predicted", "prediction", "answer", "class"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"lineterminator": "\n"},
        {"quoting": csv.QUOTE_ALL},
        {"quoting": csv.QUOTE_NONNUMERIC, "encoding": "utf-8-sig"},
    ],
)
def test_answers_in_any_order_and_dialect(split: Path, column: str, how: dict[str, Any]) -> None:
    """Rows in another order, with BOM, CRLF and quotes, give the predictions in the split's order."""
    rows = make_rows(id=range(4), file=PATHS, **{column: name(PREDICTED)})
    imported = read_predictions_csv(write_csv(split.parent, rows[::-1], **how), split, "test")
    require_predicted(imported)
    assert "logits" not in imported.arrays


@pytest.mark.parametrize("prefix", ["", "./", "photos/", "/data/photos/", "C:\\photos\\"])
def test_files_may_have_folders_before_the_root(split: Path, prefix: str) -> None:
    """A file is the image whose path it ends in, also with backslashes."""
    files = [prefix + (path.replace("/", "\\") if "\\" in prefix else path) for path in PATHS]
    rows = make_rows(file=files, predicted=name(PREDICTED))
    imported = read_predictions_csv(write_csv(split.parent, rows), split, "test")
    require_predicted(imported)
    assert len(imported.arrays["predicted"]) == len(PATHS)


def test_file_without_folders_is_the_only_one_of_that_name(split: Path) -> None:
    """A bare name is enough where it is unique, and refused where two images have it, or with another folder."""
    rows = make_rows(file=["1.png", *PATHS[1:3], "ä 4.png"], predicted=name(PREDICTED))
    require_predicted(read_predictions_csv(write_csv(split.parent, rows), split, "test"))
    for wrong in ("2.png", "elsewhere/1.png"):
        rows[1]["file"] = wrong
        with pytest.raises(FileError, match=rf"1 rows are of no example.*'{wrong}' \(row 3\)"):
            read_predictions_csv(write_csv(split.parent, rows), split, "test")


def test_probabilities_become_logits(split: Path) -> None:
    """The softmax of the logits is the probabilities, zero included, whatever the order of the columns."""
    rows = [dict(reversed(row.items())) for row in of_classes(PROBABILITIES)]
    imported = read_predictions_csv(write_csv(split.parent, rows), split, "test")
    require_predicted(imported)
    logits = imported.arrays["logits"]
    assert logits.dtype == np.float32
    exp = np.exp(logits.astype(float))
    np.testing.assert_allclose(exp / exp.sum(1, keepdims=True), PROBABILITIES, atol=1e-7)


def test_rounded_probabilities_are_scaled_to_one(split: Path) -> None:
    """A sum of 1.0009 is accepted, and the logits are those of a sum of 1; 1.0011 is refused."""
    for factor in (1.0009, 1.0011):
        path = write_csv(split.parent, of_classes(PROBABILITIES * factor))
        if factor < 1.001:
            exp = np.exp(read_predictions_csv(path, split, "test").arrays["logits"])
            np.testing.assert_allclose(exp.sum(1), 1, atol=1e-6)
            continue
        with pytest.raises(FileError, match=r"row 2: .* sum 1\.0011 "):
            read_predictions_csv(path, split, "test")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([2.5, -1.0, 3.1], r"row 2: .* sum 4\.6 .*softmax"),
        ([1.5, -0.5, 0.0], r"row 2: .* lowest value -0\.5;"),
        (["much", 0, 1], r"row 2: cat is 'much'; a number is expected"),
        (["nan", 0, 1], r"row 2: cat is 'nan'; a number is expected"),
    ],
)
def test_other_numbers_than_probabilities(split: Path, row: list[Any], message: str) -> None:
    """Logits and what is no number are refused with the row."""
    rows = of_classes([row, *PROBABILITIES[1:]])
    with pytest.raises(FileError, match=message):
        read_predictions_csv(write_csv(split.parent, rows), split, "test")


def test_answers_and_probabilities_have_to_agree(split: Path) -> None:
    """Beside probabilities, an answer has to be the most probable class; either of two equal ones will do."""
    values = PROBABILITIES.copy()
    values[1] = [0.1, 0.45, 0.45]
    rows = [row | {"predicted": own} for row, own in zip(of_classes(values), name(PREDICTED), strict=True)]
    require_predicted(read_predictions_csv(write_csv(split.parent, rows), split, "test"))
    rows[2]["predicted"] = "cat"
    with pytest.raises(FileError, match="row 4: 'cat' is predicted, but another class is more probable"):
        read_predictions_csv(write_csv(split.parent, rows), split, "test")


@pytest.mark.parametrize("columns", [("label", "predicted"), ("class", "predicted"), ("label", "class")])
def test_labels_have_to_be_the_splits(split: Path, columns: tuple[str, str]) -> None:
    """A column of labels is compared with the split; `class` is that column only beside answers."""
    label, answer = columns
    rows = make_rows(file=PATHS, **{label: name(LABELS), answer: name(PREDICTED)})
    require_predicted(read_predictions_csv(write_csv(split.parent, rows), split, "test"))
    rows[3][label] = "cat"
    with pytest.raises(FileError, match=r"in 1 rows: row 5, dogs/ä 4\.png, has 'cat' in place of 'dog, big'"):
        read_predictions_csv(write_csv(split.parent, rows), split, "test")


def test_every_example_once(split: Path) -> None:
    """Missing, double and foreign rows are one line with names."""
    rows = make_rows(file=PATHS, predicted=name(PREDICTED))
    cases = [
        (rows[:2], r"2 of 4 examples of the test part have no row: foxes/2\.png, dogs/ä 4\.png$"),
        ([*rows, rows[0]], r"1 examples have several rows: cat/1\.png; one row is expected$"),
        ([*rows, {"file": "other/1.png", "predicted": "cat"}], r"1 rows are of no example of the test part"),
    ]
    for wrong, message in cases:
        with pytest.raises(FileError, match=message) as caught:
            read_predictions_csv(write_csv(split.parent, wrong), split, "test")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,predicted\ncat/1.png,cat\n", "has no column 'file'"),
        ("file,predicted\ncat/1.png\n", "row 2 has 1 cells; 2 are expected"),
        ("file,predicted\n", "has 1 rows"),
        ('file,predicted\n"cat/1.png,cat\n', "not the CSV that is expected"),
    ],
)
def test_other_files(split: Path, text: str, message: str) -> None:
    """What is no such CSV is refused by name."""
    path = split.parent / "theirs.csv"
    path.write_text(text)
    with pytest.raises(FileError, match=message):
        read_predictions_csv(path, split, "test")


def test_columns_are_needed_once(split: Path) -> None:
    """A column of answers that is there twice is refused; without answers, classes that have no column are named."""
    path = split.parent / "theirs.csv"
    path.write_text("file,answer,answer\n" + "".join(f"{p},cat,cat\n" for p in PATHS))
    with pytest.raises(FileError, match="has 2 columns 'answer'; one is expected"):
        read_predictions_csv(path, split, "test")
    path.write_text("file,cat\n" + "".join(f"{p},1\n" for p in PATHS))
    with pytest.raises(FileError, match=r"has no predictions: .* lacks 'dog, big'"):
        read_predictions_csv(path, split, "test")
    path.write_text("file,answer\n" + "".join(f"{p},cow\n" for p in PATHS))
    with pytest.raises(FileError, match="row 2: answer is 'cow'; the name of a class is expected: cat, "):
        read_predictions_csv(path, split, "test")


def test_own_files(run: Run, split_file: Path, tmp_path: Path) -> None:
    """What `eval --per-image` and `predict --format csv` write is read, and is the predictions that `eval` stored."""
    head = tmp_path / "head.safetensors"
    assert run("vgg", "head", split_file, "-o", head, "--arch", "vgg16_mini", "--epochs", 1).exit_code == 0
    listed = tmp_path / "images.csv"
    assert run("eval", head, "--per-image", listed).exit_code == 0
    ours = read_predictions_csv(listed, split_file, "test")
    rows = list(csv.DictReader(io.StringIO(listed.read_text("utf-8"))))
    data = splits.read(split_file)
    assert [data.classes[i] for i in ours.arrays["predicted"]] == [row["predicted"] for row in rows]
    files = [str(data.root / example.path) for example in data.parts["test"]]
    result = run("predict", head, *files, "--format", "csv")
    predicted = tmp_path / "predicted.csv"
    predicted.write_text(result.stdout, "utf-8")
    again = read_predictions_csv(predicted, split_file, "test")
    for key in ("labels", "predicted"):
        np.testing.assert_array_equal(again.arrays[key], ours.arrays[key])
    assert json.loads(split_file.read_text("utf-8"))["counts"]["test"] == len(rows)


def test_sequences_by_their_number(run: Run, tmp_path: Path) -> None:
    """Of sequences, row 1 is the part's first; targets and lengths are the file's."""
    data = tmp_path / "adding.safetensors"
    assert run("seq", "gen", "-o", data, "--count", 20).exit_code == 0
    part = sequences.read(data).parts["test"]
    n = len(part.targets)
    rows = make_rows(prediction=[i / 7 for i in range(n)], sequence=range(1, n + 1))
    imported = read_predictions_csv(write_csv(tmp_path, rows[::-1]), data, "test")
    assert imported.study == "sequences"
    np.testing.assert_array_equal(imported.arrays["predictions"], np.float32([i / 7 for i in range(n)]))
    np.testing.assert_array_equal(imported.arrays["targets"], part.targets)
    np.testing.assert_array_equal(imported.arrays["lengths"], part.lengths)
    with pytest.raises(FileError, match=r"1 of 4 examples of the test part have no row: 4$"):
        read_predictions_csv(write_csv(tmp_path, rows[:-1]), data, "test")
    rows[0]["sequence"] = 0
    with pytest.raises(FileError, match=r"'0' \(row 2\).*such as '1'"):
        read_predictions_csv(write_csv(tmp_path, rows), data, "test")
    rows[0] |= {"sequence": 1, "prediction": "?"}
    with pytest.raises(FileError, match="row 2: prediction is '\\?'; a number is expected"):
        read_predictions_csv(write_csv(tmp_path, rows), data, "test")
