"""`eval` and `eval --compare`: numbers against scikit-learn, files, tables, refusals."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, make_photos, read_files, run_dlcv
from PIL import Image
from sklearn import metrics as sklearn_metrics
from torchvision.transforms import v2
from typer.testing import Result

from dlcv_cli.files import sequences, tensors
from dlcv_cli.files.recipes import identify_run
from dlcv_cli.statistics.metrics import Floats, Labels, find_largest_class, score_logits
from dlcv_cli.studies.images import study as image_study
from dlcv_cli.studies.images.predictor import open_checkpoint
from dlcv_cli.studies.sequences import study as sequence_study

IMAGES = ("scratch", "head")
CELLS = ("baseline", "elman", "gru")
THREADS = ("--threads", 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with data and checkpoints of both studies, not evaluated. Tests must not change it."""
    folder = tmp_path_factory.mktemp("made")
    make_photos(folder / "photos", {"cat": 10, "straße": 10, "tree house": 15})
    split = folder / "photos.split.json"
    run_dlcv("data", "split", folder / "photos", "-o", split)
    common = (split, "--arch", "vgg16_mini", "--precision", "float32", *THREADS, "-o")
    run_dlcv("vgg", "scratch", *common, folder / "scratch.safetensors", "--epochs", 2, "--lr", 0.001, "--batch-size", 8)
    weights = ("--weights", folder / "scratch.safetensors")
    run_dlcv("vgg", "head", *common, folder / "head.safetensors", "--epochs", 1, *weights)
    run_dlcv("seq", "gen", "--count", 100, "-o", folder / "data.safetensors")
    for cell in CELLS:
        output = folder / f"{cell}.safetensors"
        run_dlcv("seq", "train", folder / "data.safetensors", "--cell", cell, "--hidden-size", 4, "-o", output)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """Return a copy of it that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "folder"))


@pytest.fixture(scope="module")
def evaluated(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of it with every checkpoint evaluated on test. Tests must not change it."""
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("evaluated") / "folder"))
    run_dlcv("eval", *list_checkpoints(folder, IMAGES), *THREADS)
    run_dlcv("eval", *list_checkpoints(folder, CELLS))
    return folder


def list_checkpoints(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the paths of checkpoints by name."""
    return [folder / f"{name}.safetensors" for name in names]


def read(path: Path) -> dict[str, Any]:
    """Return the document in a JSON file."""
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document


def assert_refused(result: Result, *words: object) -> None:
    """Assert exit code 1, nothing on stdout, and a last line on stderr that contains these words."""
    assert result.exit_code == 1
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("dlcv: ")
    for word in words:
        assert str(word) in last


# ----------------------------------------------------------------------------------------------------------- metrics


def score_images(logits: Floats, labels: Labels) -> dict[str, float]:
    """Return the metrics of logits."""
    scores = score_logits(logits, labels)
    applying = [m for m in image_study.METRICS if not m.applies or m.applies(scores)]
    return {metric.column.key: metric.value(scores) for metric in applying}


def score_numbers(predictions: Floats, targets: Floats) -> dict[str, float]:
    """Return the metrics of numbers."""
    pair = sequence_study.Predicted(predictions, targets)
    return {metric.column.key: metric.value(pair) for metric in sequence_study.METRICS}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "k"), [(60, 8), (40, 40), (7, 6)])
def test_classification_metrics_match_scikit_learn(seed: int, n: int, k: int) -> None:
    """Loss, top-1, top-5 and per-class recall are scikit-learn's, on random cases where classes may be absent."""
    rng = np.random.default_rng((seed, n))
    logits = rng.normal(0, 2, (n, k)).astype(np.float32)
    labels = rng.integers(0, k - 1, n)  # the last class never occurs
    softmax = torch.from_numpy(logits).double().softmax(1).numpy()
    metrics = score_images(logits, labels)
    every, answers, present = np.arange(k), logits.argmax(1), np.unique(labels)
    assert len(metrics) == 5
    assert metrics["loss"] == pytest.approx(sklearn_metrics.log_loss(labels, softmax, labels=every))
    assert metrics["top1_accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, answers))
    top5 = sklearn_metrics.top_k_accuracy_score(labels, logits, k=5, labels=every)
    assert metrics["top5_accuracy"] == pytest.approx(top5)
    recall = sklearn_metrics.recall_score(labels, answers, labels=present, average="macro")
    assert metrics["mean_per_class_recall"] == pytest.approx(recall)


@pytest.mark.parametrize(("classes", "applies"), [(2, False), (5, False), (6, True)])
def test_top5_needs_six_classes(classes: int, applies: bool) -> None:
    """With five classes or fewer there is no top-5 metric, which would always be 1."""
    logits = np.random.default_rng(0).normal(size=(12, classes)).astype(np.float32)
    assert ("top5_accuracy" in score_images(logits, np.arange(12) % classes)) is applies


def test_ties_predict_the_lower_class() -> None:
    """Of equal logits the lowest class is predicted, as by argmax."""
    metrics = score_images(np.zeros((10, 10), np.float32), np.arange(10))
    assert (metrics["top1_accuracy"], metrics["top5_accuracy"]) == (0.1, 0.5)
    assert metrics["loss"] == pytest.approx(np.log(10))


def test_extreme_logits() -> None:
    """Logits beyond the range of exp give their true, finite loss."""
    logits = np.array([[1e4, 0], [0, 1e4], [-1e4, -1e4]], np.float32)
    assert score_images(logits, np.array([1, 1, 0]))["loss"] == pytest.approx((1e4 + 0 + np.log(2)) / 3)


@pytest.mark.parametrize("seed", range(3))
def test_regression_metrics_match_scikit_learn(seed: int) -> None:
    """MSE, MAE and R2 are scikit-learn's; close is the share of errors below 0.04."""
    rng = np.random.default_rng(seed)
    predictions, targets = rng.normal(0, 0.1, (2, 50)).astype(np.float32)
    metrics = score_numbers(predictions, targets)
    assert list(metrics) == ["mse", "mae", "close", "r2"]
    exact = targets.astype(np.float64), predictions.astype(np.float64)
    assert metrics["mse"] == pytest.approx(sklearn_metrics.mean_squared_error(*exact))
    assert metrics["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(*exact))
    assert metrics["r2"] == pytest.approx(sklearn_metrics.r2_score(*exact))
    assert metrics["close"] == sum(abs(a - b) < 0.04 for a, b in zip(*exact, strict=True)) / 50
    assert 0.1 < metrics["close"] < 0.4, "the case has both"


def test_bound_of_close_predictions() -> None:
    """An error of 0.04 or more is not close, on either side."""
    predictions = np.array([0.0390625, -0.0390625, 0.0400391, -0.0400391, 0], np.float32)
    assert score_numbers(predictions, np.zeros(5, np.float32))["close"] == 0.6


def test_largest_class() -> None:
    """The baseline predicts the most frequent training class; of equal ones the lowest."""
    assert find_largest_class(np.array([2, 0, 2, 1])) == 2
    assert find_largest_class(np.array([2, 1, 2, 1])) == 1


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", [*IMAGES, *CELLS])
def test_eval_keys(evaluated: Path, name: str) -> None:
    """The evaluation file has these keys in this order, at every level, and records its inputs."""
    checkpoint = evaluated / f"{name}.safetensors"
    evaluation = read(evaluated / f"{name}.test.eval.json")
    images = name in IMAGES
    data = evaluated / ("photos.split.json" if images else "data.safetensors")
    assert set(evaluation) == {
        "schema", "stage", "config", "inputs", "data", "trained", "metrics", "intervals", "baselines",
        "collapse", "details", "contamination", "tries", "predictions", "run",
    }  # fmt: skip
    details = evaluation["details"]
    assert set(details) == (
        {"per_class", "confusion", "confused", "calibration", "highest_loss", "root"} if images else {"by_length"}
    )
    stage = f"vgg.{name}" if images else "seq.train"
    examples = len(read(data)["parts"]["train"]) if images else 64
    assert evaluation["trained"] == {"stage": stage, "recipe": identify_run(tensors.read_metadata(checkpoint,
        tensors.CHECKPOINT)).recipe, "seed": 0, "fold": None, "examples": examples}  # fmt: skip
    assert (evaluation["schema"], evaluation["stage"], evaluation["config"]) == (
        "dlcv.eval/3",
        "eval",
        {"part": "test"},
    )
    for role, path in (("checkpoint", checkpoint), ("data", data)):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        assert evaluation["inputs"][role] == {"path": path.name, "sha256": sha256}
    where = [evaluation["data"][key] for key in ("study", "part", "n", "path")]
    assert where == (["images", "test", 7, data.name] if images else ["sequences", "test", 20, data.name])
    keys = {"top1_accuracy", "mean_per_class_recall", "expected_calibration_error", "loss"}
    keys = keys if images else {"mse", "mae", "close", "r2"}
    assert set(evaluation["metrics"]) == keys, "no top-5 of three classes"
    assert set(evaluation["intervals"]) == keys - {"expected_calibration_error"}
    assert set(evaluation["collapse"]) == {
        "collapsed", "why", "classes_predicted", "most_frequent", "share", "runs_collapsed",
    }  # fmt: skip
    assert set(evaluation["contamination"]) == {
        "checked", "unchecked", "unrecorded", "examples", "chosen", "of", "by_chance", "allowed",
    }  # fmt: skip
    assert len(evaluation["baselines"]) == (1 if images else 2)
    of_baselines = {"top1_accuracy", "mean_per_class_recall"} if images else keys
    for baseline in evaluation["baselines"]:
        assert set(baseline) == {"name", "metrics", "intervals"}
        assert set(baseline["metrics"]) == set(baseline["intervals"]) == of_baselines
    for row in details.get("by_length", []):
        assert set(row) == {"length", "n", "mse", "mae", "close"}
    for row in details.get("per_class", []):
        assert set(row) == {"class", "n", "recall", "precision", "predicted"}
    for row in details.get("confused", []):
        assert set(row) == {"true", "predicted", "n", "share"}
    for row in details.get("calibration", []):
        assert set(row) == {"low", "high", "n", "confidence", "accuracy"}
    for row in details.get("highest_loss", []):
        assert set(row) == {"path", "sha256", "label", "predicted", "loss", "probability"}
    predictions = evaluated / f"{name}.test.predictions.safetensors"
    sha256 = hashlib.sha256(predictions.read_bytes()).hexdigest()
    assert evaluation["predictions"] == {"path": predictions.name, "sha256": sha256}
    machine = ["device", "threads", "precision", "features"] if images else []
    assert list(evaluation["run"]) == ["started", "seconds", "machine", "python", "versions", *machine]
    assert ("torch" in evaluation["run"]["versions"], "numba" in evaluation["run"]["versions"]) == (images, not images)
    if images:
        frozen = {"scratch": {"used": False, "why": "nothing frozen"}}
        frozen["head"] = {"used": True, "before": "classifier.2", "bytes_per_image": 2048, "images": 7, "computed": 7}
        assert [evaluation["run"][key] for key in machine[1:]] == [1, "float32", frozen[name]]
        assert evaluation["run"]["device"] in ("cpu", "cuda", "mps")
    record = tensors.read_metadata(predictions, tensors.PREDICTIONS)
    assert list(record) == ["schema", "sha256", "stage", "config", "inputs", "data"]
    assert all(record[key] == evaluation[key] for key in ("stage", "config", "inputs", "data"))


@pytest.mark.parametrize("name", IMAGES)
def test_image_predictions(evaluated: Path, name: str) -> None:
    """Predictions give the metrics again, and are those of torchvision's transforms with the weights."""
    evaluation = read(evaluated / f"{name}.test.eval.json")
    arrays = tensors.read(evaluated / f"{name}.test.predictions.safetensors", tensors.PREDICTIONS).arrays
    assert {key: (a.shape, a.dtype) for key, a in arrays.items()} == {
        "logits": ((7, 3), np.float32),
        "labels": ((7,), np.int64),
        "baselines": ((1, 7), np.int64),
        "examples": ((7, 32), np.uint8),
    }
    test = read(evaluated / "photos.split.json")["parts"]["test"]
    assert arrays["labels"].tolist() == [example["label"] for example in test]
    assert [row.tobytes().hex() for row in arrays["examples"]] == [example["sha256"] for example in test]
    assert arrays["baselines"].tolist() == [[2] * 7], "tree house, the most frequent in train"
    assert evaluation["metrics"]["top1_accuracy"] == np.mean(arrays["logits"].argmax(1) == arrays["labels"])
    assert evaluation["metrics"] == score_images(arrays["logits"], arrays["labels"])
    transform = v2.Compose(
        [
            v2.Resize(64, antialias=True),
            v2.CenterCrop(64),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    x = torch.stack([transform(Image.open(evaluated / "photos" / example["path"])) for example in test])
    with torch.inference_mode():
        logits = open_checkpoint(evaluated / f"{name}.safetensors").network.eval()(x).numpy()
    spread = np.ptp(arrays["logits"])
    np.testing.assert_allclose(arrays["logits"], logits, atol=0.02 * spread)  # a pixel may round otherwise


@pytest.mark.parametrize("name", CELLS)
def test_sequence_predictions(evaluated: Path, name: str) -> None:
    """Predictions and targets, in the order of the data, give the metrics again."""
    evaluation = read(evaluated / f"{name}.test.eval.json")
    arrays = tensors.read(evaluated / f"{name}.test.predictions.safetensors", tensors.PREDICTIONS).arrays
    test = sequences.read(evaluated / "data.safetensors").parts["test"]
    assert sorted(arrays) == ["baselines", "examples", "lengths", "predictions", "targets"]
    steps = np.split(test.inputs, np.cumsum(test.lengths)[:-1])
    for digest, length, x, target in zip(arrays["examples"], test.lengths, steps, test.targets, strict=True):
        content = length.tobytes() + x.tobytes() + target.tobytes()
        assert digest.tobytes() == hashlib.sha256(content).digest()
    assert np.array_equal(arrays["baselines"][0], np.ones(20))
    assert np.array_equal(arrays["targets"], test.targets)
    assert np.array_equal(arrays["lengths"], test.lengths)
    errors = arrays["predictions"].astype(np.float64) - test.targets
    expected = {"mse": pytest.approx(np.mean(errors**2)), "mae": pytest.approx(np.mean(abs(errors)))}
    r2 = pytest.approx(1 - np.mean(errors**2) / np.var(test.targets.astype(np.float64)))
    assert evaluation["metrics"] == {**expected, "close": np.mean(abs(errors) < 0.04), "r2": r2}
    assert [row["length"] for row in evaluation["details"]["by_length"]] == sorted(set(test.lengths.tolist()))
    for row in evaluation["details"]["by_length"]:
        own = errors[test.lengths == row["length"]]
        expected = {
            "mse": pytest.approx(np.mean(own**2)),
            "mae": pytest.approx(np.mean(abs(own))),
        }
        shares = {"length": row["length"], "n": len(own), "close": np.mean(abs(own) < 0.04)}
        assert row == {**shares, **expected}
    assert sum(row["n"] for row in evaluation["details"]["by_length"]) == evaluation["data"]["n"]
    if name == "baseline":
        assert arrays["predictions"].tolist() == [1.0] * 20


def test_baselines(evaluated: Path) -> None:
    """Each study has its baselines: the largest class; the constant, and the guess."""
    test = [example["label"] for example in read(evaluated / "photos.split.json")["parts"]["test"]]
    [images] = read(evaluated / "head.test.eval.json")["baselines"]
    assert images["name"] == "always tree house"
    assert images["metrics"] == {"top1_accuracy": test.count(2) / len(test), "mean_per_class_recall": 1 / 3}
    network, other = (read(evaluated / f"{name}.test.eval.json") for name in ("baseline", "gru"))
    constant, half = other["baselines"]
    assert constant == {"name": "constant 1", **{key: network[key] for key in ("metrics", "intervals")}}
    part = sequences.read(evaluated / "data.safetensors").parts["test"]
    errors = []
    for x, target in zip(np.split(part.inputs, np.cumsum(part.lengths)[:-1]), part.targets, strict=True):
        errors.append(next(float(value) for value, mark in x if mark == 1) + 0.5 - float(target))
    assert half["name"] == "knows one of the two"
    assert half["metrics"]["mse"] == pytest.approx(np.mean(np.square(errors)), rel=1e-5)
    assert half["metrics"]["mae"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-5)


def test_evaluation_is_reproducible(evaluated: Path, folder: Path) -> None:
    """Evaluating in another folder gives equal predictions, and files that differ in `run` only."""
    run_dlcv("eval", *list_checkpoints(folder, IMAGES), *THREADS)
    for name in IMAGES:
        file = f"{name}.test.predictions.safetensors"
        assert (folder / file).read_bytes() == (evaluated / file).read_bytes()
        again, before = (read(place / f"{name}.test.eval.json") for place in (folder, evaluated))
        assert list(again.pop("run")) == list(before.pop("run"))
        assert again == before


def test_up_to_date(run: Run, evaluated: Path) -> None:
    """The same command again prints the same and changes no file."""
    before = read_files(evaluated)
    result = run("eval", evaluated / "head.safetensors")
    assert result.exit_code == 0
    assert result.stderr == f"{evaluated / 'head.test.eval.json'}: up to date\n"
    assert result.stdout.startswith(f"{evaluated / 'head.safetensors'}: test n=7  top-1 % ")
    assert read_files(evaluated) == before
    assert result.stdout == run("eval", evaluated / "head.safetensors").stdout


@pytest.mark.parametrize("state", ["missing", "changed"])
def test_missing_predictions_are_computed_again(run: Run, folder: Path, state: str) -> None:
    """Missing or changed predictions are computed again, with the reason."""
    run_dlcv("eval", folder / "gru.safetensors")
    predictions = folder / "gru.test.predictions.safetensors"
    good = predictions.read_bytes()
    if state == "missing":
        predictions.unlink()
    else:
        predictions.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    result = run("eval", folder / "gru.safetensors")
    assert result.exit_code == 0
    assert "missing or changed; evaluating again" in result.stderr
    assert predictions.read_bytes() == good


def test_train_and_val_parts(run: Run, folder: Path) -> None:
    """Each part has its own files, and the validation metrics are those of the training."""
    for part in ("val", "train"):
        assert run("eval", folder / "scratch.safetensors", "--part", part, *THREADS).exit_code == 0
    val, train = (read(folder / f"scratch.{part}.eval.json") for part in ("val", "train"))
    assert (val["data"]["n"], train["data"]["n"]) == (6, 22)
    best = read(folder / "scratch.metrics.json")["best"]
    assert val["metrics"]["top1_accuracy"] == pytest.approx(best["val_accuracy"])
    assert val["metrics"]["loss"] == pytest.approx(best["val_loss"], rel=1e-4)
    assert val["data"]["fingerprint"] != train["data"]["fingerprint"]
    assert not (folder / "scratch.test.eval.json").exists()


@pytest.mark.parametrize("options", [(), ("--compare",)])
def test_retrained_checkpoint(run: Run, folder: Path, options: tuple[str, ...]) -> None:
    """An evaluation of a checkpoint that was trained again is out of date and made again."""
    gru = folder / "gru.safetensors"
    run_dlcv("eval", gru)
    before = read(folder / "gru.test.eval.json")
    run_dlcv("seq", "train", folder / "data.safetensors", "--cell", "gru", "--hidden-size", 5, "-o", gru, "--force")
    result = run("eval", gru, *options)
    assert result.exit_code == 0, result.stderr
    assert f"{folder / 'gru.test.eval.json'}: out of date" in result.stderr
    after = read(folder / "gru.test.eval.json")
    assert after["inputs"]["checkpoint"]["sha256"] == hashlib.sha256(gru.read_bytes()).hexdigest()
    assert after["metrics"] != before["metrics"]


@pytest.mark.parametrize("version", [1, 2])
def test_earlier_schema(run: Run, folder: Path, version: int) -> None:
    """An evaluation of an earlier version is made again, with a note."""
    path = folder / "gru.test.eval.json"
    path.write_text(f'{{"schema": "dlcv.eval/{version}"}}')
    result = run("eval", folder / "gru.safetensors")
    assert result.exit_code == 0
    assert f"{path}: written by an earlier version" in result.stderr
    assert read(path)["schema"] == "dlcv.eval/3"


def test_data_option_is_an_input(run: Run, folder: Path) -> None:
    """Other content of --data is evaluated anew, and so is the old data afterwards."""
    gru, other = folder / "gru.safetensors", folder / "other.safetensors"
    run_dlcv("eval", gru)
    first = read(folder / "gru.test.eval.json")
    run_dlcv("seq", "gen", "--count", 100, "--seed", 7, "-o", other)
    result = run("eval", gru, "--data", other)
    assert result.exit_code == 0, result.stderr
    assert "out of date" in result.stderr
    second = read(folder / "gru.test.eval.json")
    assert second["data"]["path"] == other.name
    assert second["data"]["fingerprint"] != first["data"]["fingerprint"]
    assert "out of date" in run("eval", gru).stderr
    assert read(folder / "gru.test.eval.json")["data"] == first["data"]


def test_root_option_is_an_input(run: Run, folder: Path) -> None:
    """With --root, missing or different images are refused, and equal ones are up to date."""
    head = folder / "head.safetensors"
    run_dlcv("eval", head, *THREADS)
    before = read_files(folder)
    shutil.copytree(folder / "photos", folder / "pictures")
    assert "up to date" in run("eval", head, "--root", folder / "pictures").stderr
    image = read(folder / "photos.split.json")["parts"]["test"][0]["path"]
    (folder / "pictures" / image).write_bytes(b"changed")
    assert_refused(run("eval", head, "--root", folder / "pictures"), f"{image} (changed)")
    assert_refused(run("eval", head, "--root", folder / "nowhere"), folder / "nowhere", "--root")
    shutil.rmtree(folder / "pictures")
    assert read_files(folder) == before


# ------------------------------------------------------------------------------------------------------ moved and gone


def test_moved_files(run: Run, evaluated: Path, folder: Path, tmp_path: Path) -> None:
    """After a split and its images moved, --data and --root give the same numbers."""
    moved = tmp_path / "moved"
    moved.mkdir()
    split = folder / "photos.split.json"
    split.rename(moved / "p.split.json")
    head = folder / "head.safetensors"
    assert_refused(run("eval", head), split, "no such file", str(head), "--data")
    assert_refused(run("eval", head, "--data", moved / "p.split.json"), "--root")
    (folder / "photos").rename(moved / "pictures")
    result = run("eval", head, "--data", moved / "p.split.json", "--root", moved / "pictures", *THREADS)
    assert result.exit_code == 0, result.stderr
    moved, before = read(folder / "head.test.eval.json"), read(evaluated / "head.test.eval.json")
    assert moved["data"]["path"] == "../moved/p.split.json"
    assert moved["metrics"] == before["metrics"]
    assert moved["data"]["fingerprint"] == before["data"]["fingerprint"]


def test_root_of_the_training_is_remembered(run: Run, folder: Path) -> None:
    """A checkpoint trained with --root is evaluated on those images without the option."""
    (folder / "photos").rename(folder / "pictures")
    output, split = folder / "new.safetensors", folder / "photos.split.json"
    weights = ("--weights", folder / "scratch.safetensors", "--arch", "vgg16_mini", "--epochs", 1, *THREADS)
    run_dlcv("vgg", "head", split, *weights, "--root", folder / "pictures", "-o", output)
    result = run("eval", output, *THREADS)
    assert result.exit_code == 0, result.stderr
    assert_refused(run("eval", folder / "head.safetensors"), "--root")


@pytest.mark.parametrize("name", ["head", "gru"])
def test_changed_data(run: Run, folder: Path, name: str) -> None:
    """Data that changed since the training is refused; with --data it is used, with a note."""
    checkpoint = folder / f"{name}.safetensors"
    if name == "head":
        data = folder / "photos.split.json"
        run_dlcv("data", "split", folder / "photos", "-o", data, "--seed", 1, "--force")
    else:
        data = folder / "data.safetensors"
        run_dlcv("seq", "gen", "--count", 90, "-o", data, "--force")
    before = read_files(folder)
    assert_refused(run("eval", checkpoint), data, f"has changed since {checkpoint} was trained with it", "--data")
    assert read_files(folder) == before
    result = run("eval", checkpoint, "--data", data)
    assert result.exit_code == 0
    assert f"{data} is not the file that {checkpoint} was trained with" in result.stderr


def test_changed_image(run: Run, folder: Path) -> None:
    """A test image that changed since the split is refused by name."""
    image = read(folder / "photos.split.json")["parts"]["test"][0]["path"]
    (folder / "photos" / image).write_bytes(b"changed")
    assert_refused(run("eval", folder / "head.safetensors"), f"{image} (changed)", folder / "photos.split.json")
    assert not (folder / "head.test.eval.json").exists()


def test_other_classes(run: Run, folder: Path) -> None:
    """A split with other classes is refused with the difference."""
    make_photos(folder / "animals", {"cat": 10, "dog": 10, "straße": 10}, size=(25, 20))
    run_dlcv("data", "split", folder / "animals", "-o", folder / "animals.split.json")
    result = run("eval", folder / "head.safetensors", "--data", folder / "animals.split.json")
    assert_refused(result, "trained on other classes", "'tree house'", "'dog'")


def test_other_task(run: Run, folder: Path) -> None:
    """A checkpoint is not evaluated on another task's sequences."""
    other = folder / "product.safetensors"
    run_dlcv("seq", "gen", "--task", "multiplication", "--count", 20, "-o", other)
    assert_refused(run("eval", folder / "gru.safetensors", "--data", other), "'adding'", "'multiplication'", other)


@pytest.mark.parametrize(("name", "data"), [("head", "data.safetensors"), ("gru", "photos.split.json")])
def test_data_of_the_other_study(run: Run, folder: Path, name: str, data: str) -> None:
    """Sequences for an image network, and a split for a cell, are refused by name."""
    assert_refused(run("eval", folder / f"{name}.safetensors", "--data", folder / data), folder / data)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("data.safetensors", "'dlcv.sequences/1'; a 'dlcv.checkpoint/1'"),
        ("photos.split.json", "no safetensors file"),
        ("gru.test.predictions.safetensors", "'dlcv.predictions/1'; a 'dlcv.checkpoint/1'"),
        ("missing", "no such file"),
        ("photos", "is not a file"),
        ("empty", "is empty"),
        ("truncated", "damaged"),
    ],
)
def test_not_a_checkpoint(run: Run, folder: Path, kind: str, words: str) -> None:
    """A file that is no checkpoint is refused in one line that says what it is."""
    run_dlcv("eval", folder / "gru.safetensors")
    (folder / "empty").touch()
    (folder / "truncated").write_bytes((folder / "gru.safetensors").read_bytes()[:-4])
    before = read_files(folder)
    result = run("eval", folder / kind)
    assert_refused(result, folder / kind, words)
    assert len(result.stderr.splitlines()) == 1
    assert read_files(folder) == before


Change = Callable[[dict[str, Any], tensors.Arrays], Any]
DAMAGE: dict[str, Change] = {
    "no stage": lambda record, arrays: record.pop("stage"),
    "no inputs": lambda record, arrays: record.pop("inputs"),
    "inputs is a list": lambda record, arrays: record.update(inputs=[1]),
    "path is a number": lambda record, arrays: record["inputs"]["data"].update(path=3),
    "no config": lambda record, arrays: record.pop("config"),
    "unknown cell": lambda record, arrays: record["config"].update(cell="gnu"),
    "cell is a list": lambda record, arrays: record["config"].update(cell=["gru"]),
    "another cell": lambda record, arrays: record["config"].update(cell="lstm"),
    "no task": lambda record, arrays: record.pop("task"),
    "nan": lambda record, arrays: arrays["head.bias"].fill(np.nan),
    "no head": lambda record, arrays: arrays.pop("head.weight"),
    "wider": lambda record, arrays: arrays.update({"rnn.weight_ih_l0": np.zeros((12, 3), np.float32)}),
    "half": lambda record, arrays: arrays.update({n: a.astype(np.float16) for n, a in arrays.items()}),
    "no weights": lambda record, arrays: arrays.clear(),
    "scalars": lambda record, arrays: arrays.update({n: np.float32(0).reshape(()) for n in arrays}),
    "scalars of two": lambda record, arrays: (record.update(seeds=[0, 1]), DAMAGE["scalars"](record, arrays)),
    "two seeds of one": lambda record, arrays: record.update(seeds=[0, 1]),
    "one of two runs": lambda record, arrays: arrays.update({n: a[None] for n, a in arrays.items()}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint(run: Run, folder: Path, damage: str) -> None:
    """A damaged checkpoint of a cell is refused in one line that names it."""
    stored = tensors.read(folder / "gru.safetensors", tensors.CHECKPOINT)
    record = {key: value for key, value in stored.metadata.items() if key != "schema"}
    DAMAGE[damage](record, stored.arrays)
    bad = folder / "bad.safetensors"
    tensors.write(bad, tensors.CHECKPOINT, stored.arrays, record)
    before = read_files(folder)
    assert_refused(run("eval", bad), bad)
    assert read_files(folder) == before


@pytest.mark.parametrize("key", ["data", "metrics", "baselines", "predictions", "runs", "seeds", "by_length"])
@pytest.mark.parametrize(
    "value", [None, 3, {}, [3], {"mse": {}}, {"study": "audio", "split": "test", "n": 1, "path": "", "fingerprint": ""}]
)
def test_damaged_evaluation(run: Run, folder: Path, key: str, value: object) -> None:
    """A damaged evaluation is refused by name or made again, without a traceback."""
    run_dlcv("eval", *list_checkpoints(folder, ("gru", "elman")))
    path = folder / "gru.test.eval.json"
    document = read(path)
    good = document["metrics"]
    if value is None:
        document.pop(key, None)
    else:
        document[key] = value
    path.write_text(json.dumps(document))
    result = run("eval", "--compare", *list_checkpoints(folder, ("elman", "gru")))
    if result.exit_code:
        assert_refused(result, "gru")
    else:
        assert read(path)["metrics"] == good


@pytest.mark.parametrize("content", ["", "{", '{"schema": "dlcv.metrics/1"}', "[]"])
def test_foreign_evaluation(run: Run, folder: Path, content: str) -> None:
    """A foreign file with the evaluation's name is kept without --force."""
    path = folder / "gru.test.eval.json"
    path.write_text(content)
    assert_refused(run("eval", folder / "gru.safetensors"), f"{path} already exists", "--force")
    assert path.read_text() == content
    assert run("eval", folder / "gru.safetensors", "--force").exit_code == 0
    assert read(path)["schema"] == "dlcv.eval/3"


# ------------------------------------------------------------------------------------------------------------ tables


def test_json_of_checkpoints(run: Run, evaluated: Path) -> None:
    """--json prints the evaluation, or a list of them for several checkpoints, and nothing else."""
    result = run("eval", evaluated / "gru.safetensors", "--json")
    assert json.loads(result.stdout) == read(evaluated / "gru.test.eval.json")
    two = run("eval", *list_checkpoints(evaluated, ("gru", "elman")), "--json")
    assert json.loads(two.stdout) == [read(evaluated / f"{name}.test.eval.json") for name in ("gru", "elman")]


@pytest.mark.parametrize("more", [("--json",), ("--format", "json")])
@pytest.mark.parametrize("names", [IMAGES, CELLS])
def test_comparison_keys(run: Run, evaluated: Path, names: tuple[str, ...], more: tuple[str, ...]) -> None:
    """The comparison has these keys in this order; rows as given, the baseline last."""
    result = run("eval", "--compare", *list_checkpoints(evaluated, names), *more)
    comparison = json.loads(result.stdout)
    documents = [read(evaluated / f"{name}.test.eval.json") for name in names]
    assert set(comparison) == {
        "schema", "data", "common", "reference", "metric", "columns", "rows", "pairs",
    }  # fmt: skip
    assert comparison["schema"] == "dlcv.comparison/3"
    assert {column["key"] for column in comparison["columns"]} == set(documents[0]["metrics"])
    assert (comparison["data"], comparison["common"]) == (documents[0]["data"], None)
    baselines = documents[0]["baselines"]
    common = {"name", "baseline", "metrics", "intervals", "intervals_over", "contaminated", "difference", "best"}
    assert [set(row) - common for row in comparison["rows"]] == [{"runs"}] * len(names) + [set()] * len(baselines)
    assert [row["name"] for row in comparison["rows"]] == [*names, *(f"baseline: {b['name']}" for b in baselines)]
    assert [row["baseline"] for row in comparison["rows"]] == [False] * len(names) + [True] * len(baselines)
    for key in ("metrics", "intervals"):
        assert [row[key] for row in comparison["rows"]] == [d[key] for d in [*documents, *baselines]]
    for row, document in zip(comparison["rows"], documents, strict=False):
        [run_of_row] = row["runs"]
        assert (run_of_row["seed"], run_of_row["metrics"]) == (0, document["metrics"])
        assert ("collapsed" in run_of_row) is document["collapse"]["collapsed"]
    key = "top1_accuracy" if names == IMAGES else "mse"
    assert (comparison["reference"], comparison["metric"]) == (names[0], key)
    first = documents[0]["metrics"][key]
    assert [row["difference"] for row in comparison["rows"]] == [
        row["metrics"][key] - first for row in comparison["rows"]
    ]
    for row in comparison["rows"]:
        assert not (row["best"] and (row["baseline"] or "collapsed" in row["runs"][0]))
    tested = ["top1_accuracy", "mean_per_class_recall"] if names == IMAGES else ["mse"]
    others = [row["name"] for row in comparison["rows"][1:]]
    assert [(pair["metric"], pair["name"]) for pair in comparison["pairs"]] == [
        (m, name) for m in tested for name in others
    ]
    for pair in comparison["pairs"]:
        more_keys = {"p_exact", "only_row", "only_reference"} if pair["metric"] == "top1_accuracy" else set()
        assert set(pair) - {"times", "doubt", "details", "detectable"} == more_keys | {
            "name", "reference", "metric", "difference", "interval", "p", "test", "over", "n", "runs", "p_holm",
            "question", "sentence",
        }  # fmt: skip
        spread = pair["difference"] or pair.get("only_row", 1)  # two that answer alike have none
        assert ("detectable" in pair) is (not pair["name"].startswith("baseline: ") and spread != 0)


@pytest.mark.parametrize("names", [IMAGES, CELLS])
def test_csv(run: Run, evaluated: Path, names: tuple[str, ...]) -> None:
    """The csv table has full numbers, fractions and no percent, and the JSON's values, intervals and p."""
    paths = list_checkpoints(evaluated, names)
    document = json.loads(run("eval", "--compare", *paths, "--json").stdout)
    rows, pairs = document["rows"], document["pairs"]
    lines = list(csv.DictReader(run("eval", "--compare", *paths, "--format", "csv").stdout.splitlines()))
    keys = [*rows[0]["metrics"]]
    tested = ["top1_accuracy", "mean_per_class_recall"] if names == IMAGES else ["mse"]
    heads = ["difference", "difference_low", "difference_high", "p", "p_holm", "over"]
    assert sorted(lines[0]) == sorted(
        ["name", *keys, *(f"{key}_{end}" for key in rows[0]["intervals"] for end in ("low", "high"))]
        + [f"{key}_{head}" for key in tested for head in heads]
        + ["over", "collapsed", "contaminated"]
    )
    for line, row in zip(lines, rows, strict=True):
        assert line["name"] == row["name"]
        assert {key: float(line[key]) for key in keys if line[key]} == row["metrics"]
        for key, interval in row["intervals"].items():
            assert [float(line[f"{key}_{end}"]) for end in ("low", "high")] == interval
        assert line["collapsed"] == str(not row["baseline"] and "collapsed" in row["runs"][0])
        assert line["over"] == "examples"
    for pair in pairs:
        [line] = [line for line in lines if line["name"] == pair["name"]]
        shown = [float(line[f"{pair['metric']}_{head}"]) for head in heads[:-1]]
        assert shown == [pair["difference"], *pair["interval"], pair["p"], pair["p_holm"]]
    assert {lines[0][f"{key}_{head}"] for key in tested for head in heads} == {""}, "the reference has no pair"


@pytest.mark.parametrize(
    ("table", "begins"), [("plain", "test, n = 20"), ("github", "| test, n = 20"), ("latex", r"\begin{tabular}")]
)
def test_tables(run: Run, evaluated: Path, table: str, begins: str) -> None:
    """Each text table has a row per network and baseline, a star on each best, interval, difference and p."""
    paths = list_checkpoints(evaluated, CELLS)
    result = run("eval", "--compare", *paths, "--format", table)
    lines = result.stdout.rstrip().splitlines()
    assert lines[0].startswith(begins)
    document = json.loads(run("eval", "--compare", *paths, "--json").stdout)
    pairs = {pair["name"]: pair for pair in document["pairs"]}
    stars = 0
    for row in document["rows"]:
        [line] = [
            line for line in lines[: 5 + len(document["rows"])] if re.match(rf"\|?\s*{row['name']}\s.* to ", line)
        ]
        if row["name"] != "baseline":
            line = line.replace(row["name"], "")
        assert line.count("*") == len(row["best"])
        stars += line.count("*")
        line = re.sub(r"\(collapsed.*?\)", "", line)
        shown = [float(number) for number in re.findall(r"(?<![\w.])[+-]?\d+\.?\d*(?:e-\d+)?", line.replace("<", " "))]
        values = row["metrics"]
        expected = [values["mse"], *row["intervals"]["mse"], values["mae"], 100 * values["close"], values["r2"]]
        if row["name"] in pairs:
            pair = pairs[row["name"]]
            expected += [pair["difference"], *pair["interval"], max(pair["p_holm"], 0.001)]
        assert shown == pytest.approx(expected, abs=6e-4, rel=2e-2)
    assert stars >= 2
    assert "mse" not in result.stdout, "headings are words"
    if table == "plain":
        assert max(map(len, lines[: 2 + len(document["rows"])])) <= 140
        sentences = [pair["sentence"] for pair in document["pairs"]]
        assert [line for line in lines if line in sentences] == sentences
    else:
        assert lines[-1] == r"\end{tabular}" or lines[-1].endswith("|"), "the table alone"


def test_percent_on_screen(run: Run, evaluated: Path) -> None:
    """Accuracies are printed as percent with a heading that says so; a baseline's gaps are empty."""
    result = run("eval", "--compare", *list_checkpoints(evaluated, IMAGES), "--format", "github")
    header, _, scratch, *_ = result.stdout.splitlines()
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        "test, n = 7", "top-1 %", "95 % interval", "per-class recall %", "ECE %", "loss", "top-1 - scratch",
        "95 % interval", "p",
    ]  # fmt: skip
    accuracy = read(evaluated / "scratch.test.eval.json")["metrics"]["top1_accuracy"]
    assert f" {100 * accuracy:.2f}" in scratch


def test_comparing_different_data(run: Run, folder: Path) -> None:
    """Checkpoints on different data are not compared; the message names both, and --data."""
    other = folder / "other.safetensors"
    run_dlcv("seq", "gen", "--count", 100, "--seed", 1, "-o", other)
    run_dlcv("seq", "train", other, "--cell", "baseline", "-o", folder / "b.safetensors")
    paths = list_checkpoints(folder, ("gru", "b"))
    assert_refused(run("eval", "--compare", *paths), "b and gru", "other.safetensors", "data.safetensors", "--data")
    assert run("eval", "--compare", *paths, "--data", other, "--force").exit_code == 0
    assert_refused(
        run("eval", "--compare", *list_checkpoints(folder, ("baseline", "head"))), "head and baseline", "another study"
    )


def test_same_name_in_two_folders(run: Run, folder: Path, tmp_path: Path) -> None:
    """Checkpoints with the same name are distinguished by their paths."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    two = folder / "gru.safetensors", other / "gru.safetensors"
    assert_refused(run("eval", "--compare", *two), f"{folder / 'gru'} and {other / 'gru'} are the same run, seed 0")
    result = run("eval", "--compare", *two, "--no-group", "--json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    assert [row["name"] for row in rows[:2]] == [str(folder / "gru"), str(other / "gru")]
    assert rows[0]["metrics"] == rows[1]["metrics"]


def test_checkpoint_given_twice(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same checkpoint under two spellings is wrong usage."""
    monkeypatch.chdir(folder)
    before = read_files(folder)
    Path("link.safetensors").symlink_to("gru.safetensors")
    for second in (folder / "gru.safetensors", "./gru.safetensors", "photos/../gru.safetensors", "link.safetensors"):
        result = run("eval", "--compare", "gru.safetensors", second)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "listed twice" in result.stderr
    (folder / "link.safetensors").unlink()
    assert read_files(folder) == before


@pytest.mark.parametrize(
    "options", ["", "gru.safetensors --format html", "gru.safetensors --format csv", "gru.safetensors --part all"]
)
def test_wrong_usage(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, options: str) -> None:
    """No checkpoint, an unknown format and an unknown part are wrong usage."""
    monkeypatch.chdir(folder)
    result = run("eval", *options.split())
    assert (result.exit_code, result.stdout) == (2, "")


def test_predictions_of_other_programs_are_rows(run: Run, folder: Path, tmp_path: Path) -> None:
    """A CSV of predicted classes stands in the table with the metrics that classes have, tested on the same images."""
    head = folder / "head.safetensors"
    own = tmp_path / "own.csv"
    run_dlcv("eval", head, "--per-image", own, *THREADS)
    rows = list(csv.DictReader(own.read_text("utf-8").splitlines()))
    perfect = tmp_path / "perfect.csv"
    perfect.write_text("file,predicted\n" + "".join(f"{row['file']},{row['class']}\n" for row in rows), "utf-8")
    result = run("eval", "--compare", head, own, perfect, "--json", *THREADS)
    assert result.exit_code == 0, result.stderr
    comparison = json.loads(result.stdout)
    of_head, of_own, of_perfect, _ = comparison["rows"]
    keys = {"top1_accuracy", "mean_per_class_recall"}
    assert of_own["metrics"] == {key: of_head["metrics"][key] for key in keys}, "its own predictions"
    assert of_perfect["metrics"] == dict.fromkeys(keys, 1.0)
    pairs = {(pair["name"], pair["metric"]): pair for pair in comparison["pairs"]}
    assert pairs["own", "top1_accuracy"]["difference"] == 0
    wrong = sum(row["class"] != row["predicted"] for row in rows)
    assert pairs["perfect", "top1_accuracy"]["only_row"] == wrong
    assert_refused(run("eval", "--compare", head, folder / "missing.csv", *THREADS), "missing.csv")
    assert run("eval", "--compare", own).exit_code == 2, "nothing says what it is of"


def test_predictions_beside_checkpoints_are_passed_over(run: Run, folder: Path) -> None:
    """A pattern that matches checkpoints also matches their predictions files, which are no checkpoints."""
    run_dlcv("eval", *list_checkpoints(folder, CELLS))
    matched = sorted(path for path in folder.glob("*.safetensors") if path.name.startswith(CELLS))
    assert len(matched) == 2 * len(CELLS)
    rows = json.loads(run("eval", "--compare", *matched, "--json").stdout)["rows"]
    assert [row["name"] for row in rows if not row["baseline"]] == sorted(CELLS)
    assert_refused(run("eval", folder / "gru.test.predictions.safetensors"), "gru.test.predictions.safetensors")


def test_groups_of_a_split_reach_the_comparison(run: Run, photos: Path, tmp_path: Path) -> None:
    """Where a split keeps groups together, evaluation, predictions and tests know which image is of which group."""
    split, head, other = tmp_path / "g.split.json", tmp_path / "head.safetensors", tmp_path / "other.safetensors"
    run_dlcv("data", "split", photos, "--group", r"(\d)\.png", "-o", split)
    for output, epochs in ((head, 1), (other, 2)):
        run_dlcv("vgg", "head", split, "--arch", "vgg16_mini", "--epochs", epochs, "-o", output, *THREADS)
    pair = json.loads(run("eval", "--compare", head, other, "--json", *THREADS).stdout)["pairs"][0]
    names = [entry["group"] for entry in read(split)["parts"]["test"]]
    assert len({*names}) < len(names), "the case can tell"
    assert (pair["groups"], pair["n"]) == (len({*names}), len(names))
    evaluation = read(tmp_path / "head.test.eval.json")
    assert evaluation["details"]["groups"] == len({*names})
    groups = tensors.read(tmp_path / "head.test.predictions.safetensors", tensors.PREDICTIONS).arrays["groups"]
    assert len(groups) == len(names)
    for number in range(len({*names})):
        assert len({name for name, own in zip(names, groups, strict=True) if own == number}) == 1
