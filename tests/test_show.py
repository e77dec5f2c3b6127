"""`dlcv show` and `dlcv runs`: what files are, and the checkpoints below a folder."""

from __future__ import annotations

import csv
import io
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, assert_refused, make_photos, run_dlcv
from safetensors.numpy import save_file

from dlcv_cli.config import STAGES


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a split, two trainings on it, and their evaluations; and a cell."""
    folder = tmp_path_factory.mktemp("made")
    make_photos(folder / "photos", {"cat": 10, "dog": 10, "tree house": 15})
    split, small = folder / "photos.split.json", ("--arch", "vgg16_mini", "--threads", 1, "--epochs", 2)
    run_dlcv("data", "split", folder / "photos", "-o", split, "--seed", 3)
    run_dlcv("vgg", "head", split, *small, "--lr", 0.002, "-o", folder / "runs" / "head.safetensors")
    run_dlcv("vgg", "scratch", split, *small, "--lr", 1e-12, "-o", folder / "runs" / "scratch.safetensors")
    run_dlcv("eval", folder / "runs" / "head.safetensors", folder / "runs" / "scratch.safetensors")
    run_dlcv("seq", "gen", "--count", 60, "-o", folder / "adding.safetensors")
    run_dlcv("seq", "train", folder / "adding.safetensors", "--hidden-size", 8, "-o", folder / "gru.safetensors")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def show(run: Run, path: Path, *more: object) -> str:
    """Return what show prints of a file."""
    result = run("show", path, *more)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def show_json(run: Run, path: Path) -> dict[str, Any]:
    """Return the JSON document of show."""
    return dict(json.loads(show(run, path, "--json")))


def test_checkpoint_is_described(run: Run, made: Path) -> None:
    """What it is, settings that differ, its best record, its evaluation and its inputs."""
    text = show(run, made / "runs" / "head.safetensors")
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0].endswith("head.safetensors: checkpoint, made by dlcv image head")
    assert "3 classes: cat, dog, tree house" in lines
    assert {"* lr 0.002", "* epochs 2", "* arch vgg16_mini", "batch_size 64"} <= {*lines}
    assert any(line.startswith("epoch ") for line in lines)
    test = json.loads((made / "runs" / "head.test.eval.json").read_text("utf-8"))
    assert f"on test, n = {test['data']['n']}" in lines
    assert any(line.startswith(f"top-1 % {100 * test['metrics']['top1_accuracy']:.2f} (") for line in lines)
    assert any(line.startswith("split photos.split.json") and line.endswith(": unchanged") for line in lines)
    assert ".." not in text.replace(str(made), "")


def test_json_has_the_same(run: Run, made: Path) -> None:
    """--json lists the settings that differ, the figures, the sources and every tensor."""
    document = show_json(run, made / "runs" / "head.safetensors")
    assert document["changed_settings"] == {"lr": 0.002, "epochs": 2, "arch": "vgg16_mini"}
    test = json.loads((made / "runs" / "head.test.eval.json").read_text("utf-8"))
    assert document["figures"] == {"test": test["metrics"]}
    assert [source["role"] for source in document["sources"]] == ["split", "weights"]
    assert document["tensors"]["classifier.6.bias"] == {"dtype": "F32", "shape": [3]}


KINDS = {  # file -> words of what is said of it
    "photos.split.json": ("split, made by dlcv data split", "train 22", "* seed 3"),
    "runs/head.metrics.json": ("metrics, made by dlcv image head", "* lr 0.002", "best record"),
    "runs/head.test.eval.json": ("eval, made by dlcv eval", "on test, n = 7", "checkpoint head.safetensors"),
    "runs/head.test.predictions.safetensors": ("predictions, made by dlcv eval", "tensors"),
    "adding.safetensors": ("sequences, made by dlcv seq gen", "* count 60"),
    "gru.safetensors": ("checkpoint, made by dlcv seq train", "task adding", "* hidden_size 8"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_is_described(run: Run, made: Path, name: str) -> None:
    """Splits, metrics, evaluations, predictions, sequences and checkpoints of cells are told apart."""
    text = show(run, made / name)
    assert all(words in text for words in KINDS[name]), text
    assert show_json(run, made / name)["schema"].startswith("dlcv.")


def test_report_is_described(run: Run, folder: Path) -> None:
    """A report is known by the recipe in its head."""
    run_dlcv("report", folder / "runs" / "head.safetensors", "-o", folder / "report.html")
    assert "report, made by dlcv report" in show(run, folder / "report.html")


def test_weights_of_other_programs_are_listed(run: Run, tmp_path: Path) -> None:
    """Safetensors without dlcv's metadata are shown by their tensors."""
    save_file({"a.weight": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int64)}, tmp_path / "w.safetensors")
    text = show(run, tmp_path / "w.safetensors")
    assert "safetensors of another program" in text
    assert "2 tensors, 10 numbers" in text
    assert "a.weight F32 [2, 3]" in text


def test_changed_and_missing_inputs_are_named(run: Run, folder: Path) -> None:
    """An input that has changed since, or is gone, is said to be so."""
    split = folder / "photos.split.json"
    split.write_bytes(split.read_bytes() + b"\n")
    assert "has changed since head.safetensors was made from it" in show(run, folder / "runs" / "head.safetensors")
    split.unlink()
    assert "split photos.split.json" in show(run, folder / "runs" / "head.safetensors")
    assert "no such file" in show(run, folder / "runs" / "head.safetensors")


WRONG = {
    "nothing.json": None,
    "text.json": b"hello",
    "list.json": b"[1]",
    "other.json": b'{"schema": "x"}',
    "e.st": b"",
}


@pytest.mark.parametrize("name", WRONG)
def test_other_files_are_refused(run: Run, tmp_path: Path, name: str) -> None:
    """What is neither dlcv's nor safetensors is refused by name, in one line."""
    if (content := WRONG[name]) is not None:
        (tmp_path / name).write_bytes(content)
    assert_refused(run("show", tmp_path / name), name)


@pytest.mark.parametrize(
    "forged", [{"stage": ["x"]}, {"best": [1]}, {"best": {"epoch": "x"}}, {"config": 3, "inputs": 4}]
)
def test_forged_metadata_is_no_traceback(run: Run, folder: Path, forged: dict[str, Any]) -> None:
    """Values of other types in a file's metadata are shown as they are, or refused in one line."""
    path = folder / "runs" / "head.metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | forged))
    result = run("show", path)  # a traceback fails the test
    assert result.exit_code in (0, 1)
    if "best" in forged:
        assert_refused(result, "head.metrics.json", "best record")


def test_stages_have_their_settings() -> None:
    """Every stage that records settings of a config class is in the table that knows the defaults."""
    assert {"vgg.head", "vgg.finetune", "vgg.scratch", "seq.train", "seq.gen", "data.split", "eval"} <= {*STAGES}


# ------------------------------------------------------------------------------------------------------------- runs


def list_runs(run: Run, *arguments: object) -> list[dict[str, str]]:
    """Return the rows of `runs --format csv`."""
    result = run("runs", *arguments, "--format", "csv")
    assert result.exit_code == 0, result.stderr
    return list(csv.DictReader(io.StringIO(result.stdout)))


def test_runs_are_listed(run: Run, folder: Path) -> None:
    """Checkpoints below a folder are rows; data, evaluations, and damaged files are not."""
    (folder / "runs" / "broken.safetensors").write_bytes(b"broken")
    rows = list_runs(run, folder)
    assert [row["checkpoint"] for row in rows] == [
        "gru.safetensors",
        "runs/head.safetensors",
        "runs/scratch.safetensors",
    ]
    assert [row["stage"] for row in rows] == ["seq train", "image head", "image scratch"]
    assert rows[1]["settings"] == "vgg16_mini, epochs 2, lr 0.002"
    assert rows[1]["data"] == "photos.split.json"
    test = json.loads((folder / "runs" / "head.test.eval.json").read_text("utf-8"))["metrics"]["top1_accuracy"]
    assert rows[1]["test"] == f"{100 * test:.2f} %"
    assert rows[0]["validation"].startswith("loss ")
    plain = run("runs", folder)
    assert all(row["checkpoint"] in plain.stdout for row in rows)


def test_runs_of_a_recipe_are_one_row(run: Run, tmp_path: Path) -> None:
    """Checkpoints that differ by seed alone are one row, with mean and deviation; --no-group lists each."""
    run_dlcv("seq", "gen", "--count", 100, "-o", tmp_path / "data.safetensors")
    for seed in (0, 1, 2):
        output = tmp_path / f"lazy.seed{seed}.safetensors"
        train = ("seq", "train", tmp_path / "data.safetensors", "--cell", "baseline", "--seed", seed, "-o", output)
        run_dlcv(*train, "--epochs", 1)
        run_dlcv("eval", output)
    [row] = list_runs(run, tmp_path)
    values = [
        json.loads((tmp_path / f"lazy.seed{seed}.test.eval.json").read_text("utf-8"))["metrics"]["mse"]
        for seed in (0, 1, 2)
    ]
    assert (row["checkpoint"], row["runs"], row["settings"]) == ("lazy", "3", "cell baseline, epochs 1")
    assert row["test"] == f"MSE {statistics.fmean(values):.4f} ± {statistics.stdev(values):.3g}"
    assert [row["checkpoint"] for row in list_runs(run, tmp_path, "--no-group")] == [
        f"lazy.seed{seed}.safetensors" for seed in (0, 1, 2)
    ]
    shown = show(run, tmp_path / "lazy.seed1.safetensors")
    assert "one of 3 runs of its recipe in this folder" in shown


@pytest.mark.parametrize("column", ["validation", "test"])
def test_runs_are_sorted_with_the_best_first(run: Run, folder: Path, column: str) -> None:
    """By a figure, the best checkpoint of images is the first of them, and those without the figure are last."""
    rows = list_runs(run, folder, "--sort", column)
    figures = [float(row[column].removesuffix(" %")) for row in rows if row[column].endswith("%")]
    assert figures == sorted(figures, reverse=True)
    assert len(figures) == 2
    if column == "test":
        assert rows[-1]["checkpoint"] == "gru.safetensors"


def test_evaluation_of_another_checkpoint_is_not_shown(run: Run, folder: Path) -> None:
    """After a checkpoint was trained again, its old evaluation does not count."""
    output = folder / "runs" / "head.safetensors"
    run_dlcv(
        "vgg", "head", folder / "photos.split.json", "--arch", "vgg16_mini", "--threads", 1, "--epochs", 1, "--force",
        "-o", output,
    )  # fmt: skip
    assert list_runs(run, folder / "runs")[0]["test"] == ""
    assert "on test" not in show(run, output)


def test_no_runs(run: Run, tmp_path: Path) -> None:
    """An empty folder has no checkpoints, which is said; a missing one is refused."""
    assert "no checkpoints" in run("runs", tmp_path).stdout
    assert_refused(run("runs", tmp_path / "missing"), "missing", "no such folder")


def test_damaged_checkpoints_are_warned_of(run: Run, photos: Path, tmp_path: Path) -> None:
    """`runs` lists what it can read, and names a checkpoint that is cut off; other files are not its business."""
    folder = tmp_path / "runs"
    run("data", "split", photos, "-o", folder / "photos.split.json")
    run("seq", "gen", "--count", 100, "-o", folder / "adding.safetensors")
    run("seq", "train", folder / "adding.safetensors", "--cell", "baseline", "-o", folder / "good.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:100])
    result = run("runs", folder)
    assert result.exit_code == 0
    assert "good.safetensors" in result.stdout
    assert "warning: not listed: " in result.stderr
    assert "cut.safetensors" in result.stderr
    assert "adding" not in result.stderr
