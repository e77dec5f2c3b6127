"""`dlcv predict`: new images and sequences in, a row for each out."""

from __future__ import annotations

import csv
import io
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, assert_refused, make_photos, run_dlcv
from PIL import Image
from small_networks import shrink_networks
from typer.testing import CliRunner, Result

from dlcv_cli.cli.app import app
from dlcv_cli.files import sequences, tensors
from dlcv_cli.studies.images import study as images
from dlcv_cli.studies.images.explain import compute_heat, find_last_map
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.models import build_random_network
from dlcv_cli.vision.preprocessing import Preprocessing
from dlcv_cli.vision.steps import list_steps
from dlcv_cli.vision.transforms import decode, resize

CLASSES = {"cat": 10, "straße": 10, "tree house": 15}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, a head on them, and its evaluation. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    make_photos(folder / "photos", CLASSES)
    run_dlcv("data", "split", folder / "photos", "-o", folder / "photos.split.json")
    run_dlcv(
        "vgg", "head", folder / "photos.split.json", "--arch", "vgg16_mini", "--threads", 1, "-o",
        folder / "head.safetensors",
    )  # fmt: skip
    run_dlcv("eval", folder / "head.safetensors")
    return folder


def assert_wrong_usage(result: Result, *words: str) -> None:
    """Assert exit code 2, and these words on stderr."""
    assert result.exit_code == 2, result.stderr
    assert all(word in result.stderr for word in words), result.stderr


def predict_json(run: Run, checkpoint: Path, *paths: object) -> list[dict[str, Any]]:
    """Return the rows of `predict --format json`."""
    result = run("predict", checkpoint, *paths, "--format", "json")
    return list(json.loads(result.stdout))


def test_predictions_are_those_of_eval(run: Run, trained: Path) -> None:
    """Each test image gets the class and probabilities that its stored logits say, in the order of the files."""
    split = json.loads((trained / "photos.split.json").read_text("utf-8"))
    paths = [trained / "photos" / example["path"] for example in split["parts"]["test"]]
    arrays = tensors.read(trained / "head.test.predictions.safetensors", tensors.PREDICTIONS).arrays
    shares = np.exp(arrays["logits"]) / np.exp(arrays["logits"]).sum(1, keepdims=True)
    rows = predict_json(run, trained / "head.safetensors", *paths)
    assert [row["file"] for row in rows] == [str(path) for path in paths]
    for row, own in zip(rows, shares, strict=True):
        order = np.argsort(-own)
        assert [one["class"] for one in row["top"]] == [split["classes"][k] for k in order]
        assert [one["probability"] for one in row["top"]] == pytest.approx(own[order], abs=1e-6)
        assert (row["class"], row["probability"]) == tuple(row["top"][0].values())


def test_folders_are_searched(run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images below a folder are predicted in sorted order, however many at a time; other files are not."""
    photos = Path(shutil.copytree(trained / "photos", tmp_path / "photos"))
    (photos / "notes.txt").write_text("no image")
    (photos / "cat" / ".hidden.png").write_bytes((photos / "cat" / "000.png").read_bytes())
    expected = sorted(str(path) for path in photos.rglob("*.png") if not path.name.startswith("."))
    rows = predict_json(run, trained / "head.safetensors", photos)
    assert [row["file"] for row in rows] == expected
    monkeypatch.setattr(images, "CHUNK", 4)
    assert predict_json(run, trained / "head.safetensors", photos) == rows


def test_bad_images_are_rows(run: Run, trained: Path, tmp_path: Path) -> None:
    """A file that cannot be read gets a row with the reason, the others are predicted, and the exit code is 1."""
    good, bad, missing = trained / "photos" / "cat" / "000.png", tmp_path / "bad.png", tmp_path / "missing.png"
    bad.write_bytes(good.read_bytes()[:60])
    result = run("predict", trained / "head.safetensors", bad, good, missing, "--format", "jsonl")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert ["error" in row for row in rows] == [True, False, True]
    assert rows[2]["error"] == "No such file or directory"
    assert rows[1] == predict_json(run, trained / "head.safetensors", good)[0]
    assert result.exit_code == 1
    assert "2 of 3 predictions failed" in result.stderr


def test_list_on_stdin(trained: Path) -> None:
    """Without paths, one a line is read from stdin."""
    paths = [trained / "photos" / "tree house" / f"00{number}.png" for number in (2, 1)]
    arguments = ["predict", str(trained / "head.safetensors"), "--format", "csv", "--top", "2"]
    result = CliRunner().invoke(app, arguments, input="".join(f"{path}\n" for path in paths))
    assert result.exit_code == 0, result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["file"] for row in rows] == [str(path) for path in paths]
    assert list(rows[0]) == ["file", "class", "probability", "class_2", "probability_2", "error"]
    assert {row["class"] for row in rows} <= {*CLASSES}
    assert all(float(row["probability"]) >= float(row["probability_2"]) for row in rows)


def test_text_shows_the_most_probable(run: Run, trained: Path) -> None:
    """The default output is one line for each image, with as many classes as --top says."""
    image = trained / "photos" / "cat" / "000.png"
    [line] = run("predict", trained / "head.safetensors", image, "--top", 2).stdout.splitlines()
    assert line.startswith(f"{image}: ")
    assert line.count(" %") == 2


def test_csv_of_failures_alone_has_a_heading(run: Run, trained: Path, tmp_path: Path) -> None:
    """If nothing can be read, the CSV has the columns file and error."""
    result = run("predict", trained / "head.safetensors", tmp_path / "missing.png", "--format", "csv")
    [row] = csv.DictReader(io.StringIO(result.stdout))
    assert row["error"] == "No such file or directory"
    assert result.exit_code == 1


def test_nothing_to_predict_is_refused(run: Run, trained: Path, tmp_path: Path) -> None:
    """A folder without images is an error, and the JSON is an empty list."""
    result = run("predict", trained / "head.safetensors", tmp_path, "--format", "json")
    assert (json.loads(result.stdout), result.exit_code) == ([], 1)
    assert "nothing to predict" in result.stderr


def test_data_is_no_checkpoint(run: Run, trained: Path) -> None:
    """A file of predictions in place of a checkpoint is refused by name."""
    file = trained / "head.test.predictions.safetensors"
    assert_refused(run("predict", file, trained / "photos"), file.name)


# --------------------------------------------------------------------------------------------------------- heat maps


def test_heat_is_the_class_activation_map() -> None:
    """Where the head is linear in the mean over positions, Grad-CAM is the head's weights times the last maps."""
    architecture = ARCHITECTURES["resnet18"]
    network = build_random_network(architecture, 5, 0).eval()
    steps = [step for _, step in list_steps(network, architecture)]
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    place = find_last_map(steps, x)
    with torch.no_grad():
        maps = torch.nn.Sequential(*steps[:place])(x)
        logits = network(x)[0]
    assert maps.shape == (1, 512, 3, 3)
    for wanted in (None, 3):
        heat, number = compute_heat(steps, place, x, wanted)
        assert number == (int(logits.argmax()) if wanted is None else 3)
        expected = torch.einsum("c,chw->hw", network.fc.weight[number].detach(), maps[0]).relu()
        expected = torch.nn.functional.interpolate(expected[None, None], (96, 96), mode="bilinear")[0, 0]
        torch.testing.assert_close(heat, expected / expected.max())


def test_heat_maps_are_drawn_beside_the_image(run: Run, trained: Path, tmp_path: Path) -> None:
    """Each image that can be read gets a picture: what the network sees, and the same under the heat of its class."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    photos = [trained / "photos" / name / "000.png" for name in CLASSES]
    result = run(
        "predict", trained / "head.safetensors", *photos, bad, "--explain", tmp_path / "heat", "--format", "json"
    )
    rows = json.loads(result.stdout)
    pictures = [Path(row["heat_map"]) for row in rows[:3]]
    assert sorted((tmp_path / "heat").iterdir()) == sorted(pictures)
    assert len({*pictures}) == 3
    preprocessing = tensors.read_metadata(trained / "head.safetensors", tensors.CHECKPOINT)["preprocessing"]
    for row, picture, photo in zip(rows, pictures, photos, strict=False):
        assert f".{row['class']}" in picture.name
        with Image.open(picture) as image:
            pixels = np.asarray(image)
        seen = resize(decode(photo.read_bytes()), Preprocessing.from_json(preprocessing)).numpy()
        assert pixels.shape == (64, 128, 3)
        assert np.array_equal(pixels[:, :64], seen)
        assert not np.array_equal(pixels[:, 64:], seen)
    again = run("predict", trained / "head.safetensors", *photos, "--explain", tmp_path / "heat")
    assert_refused(again, "heat", "not empty", "--force")
    forced = run("predict", trained / "head.safetensors", photos[0], "--explain", tmp_path / "heat", "--force")
    assert forced.exit_code == 0


def test_heat_maps_of_a_given_class(run: Run, trained: Path, tmp_path: Path) -> None:
    """--of-class draws the heat of that class, whatever is predicted; an unknown one is refused by name."""
    arguments = ("predict", trained / "head.safetensors", trained / "photos" / "cat", "--explain", tmp_path / "heat")
    assert run(*arguments, "--of-class", "straße").exit_code == 0
    assert all(".straße" in path.name for path in (tmp_path / "heat").iterdir())
    assert_wrong_usage(run(*arguments[:-1], tmp_path / "other", "--of-class", "dog"), "dog", "cat")
    assert_wrong_usage(run(*arguments[:-2], "--of-class", "cat"), "--explain")


def test_networks_without_positions_are_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformer's layers keep tokens, not positions, which is said; no folder is made."""
    shrink_networks(monkeypatch)
    make_photos(tmp_path / "photos", {"a": 5, "b": 5}, (64, 64))
    split, output = tmp_path / "s.split.json", tmp_path / "vit.safetensors"
    run_dlcv("data", "split", tmp_path / "photos", "-o", split)
    run_dlcv("vgg", "scratch", split, "--arch", "vit_b_16", "--epochs", 1, "-o", output)
    result = run("predict", output, tmp_path / "photos", "--explain", tmp_path / "heat")
    assert_wrong_usage(result, "vit_b_16", "positions")
    assert not (tmp_path / "heat").exists()


# --------------------------------------------------------------------------------------------------------- sequences


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with sequences, and a GRU that was evaluated on them."""
    folder = tmp_path_factory.mktemp("cells")
    run_dlcv("seq", "gen", "--count", 60, "-o", folder / "adding.safetensors")
    run_dlcv(
        "seq", "train", folder / "adding.safetensors", "--cell", "gru", "--hidden-size", 8,
        "--record-every", 20, "-o", folder / "gru.safetensors",
    )  # fmt: skip
    run_dlcv("eval", folder / "gru.safetensors")
    return folder


def list_sequences(data: Path) -> Iterator[list[list[float]]]:
    """Yield the steps of each sequence of the test part."""
    part = sequences.read(data).parts["test"]
    for steps in np.split(part.inputs, np.cumsum(part.lengths)[:-1]):
        yield steps.astype(float).tolist()


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_sequences_are_predicted_as_by_eval(run: Run, cells: Path, tmp_path: Path, kind: str) -> None:
    """Sequences from JSON or CSV get the stored predictions."""
    test_part = list(list_sequences(cells / "adding.safetensors"))
    path = tmp_path / f"given.{kind}"
    if kind == "json":
        path.write_text(json.dumps(test_part))
    else:
        lines = [f"s{number},{value!r},{marker}" for number, steps in enumerate(test_part) for value, marker in steps]
        path.write_text("\n".join(["sequence,value,marker", *lines]))
    rows = predict_json(run, cells / "gru.safetensors", path)
    stored = tensors.read(cells / "gru.test.predictions.safetensors", tensors.PREDICTIONS).arrays["predictions"]
    assert [row["prediction"] for row in rows] == pytest.approx(stored, abs=1e-6)
    assert [row["sequence"] for row in rows[:2]] == (["1", "2"] if kind == "json" else ["s0", "s1"])


def test_sequences_have_no_heat_maps(run: Run, cells: Path, tmp_path: Path) -> None:
    """--explain with a checkpoint of sequences is refused."""
    assert_wrong_usage(run("predict", cells / "gru.safetensors", "x.json", "--explain", tmp_path / "heat"), "sequences")


WRONG = {
    "no list": ('{"a": 1}', "not a list of sequences"),
    "broken": ("[[[1, 2]", "not JSON"),
    "ragged": ("[[[1, 2], [3]]]", "not a list of steps"),
    "words": ("[[['a', 2]]]", "not JSON"),
    "text in JSON": ('[[["a", 2]]]', "not a list of steps"),
    "one input": ("[[[1], [2]]]", "1 inputs per step, and this checkpoint takes 2"),
    "objects": ('[[{"a": 1}]]', "not a list of steps"),
    "empty list": ("[]", "has no sequences"),
    "empty sequence": ("[[]]", "not a list of steps"),
    "not finite": ("[[[1, NaN]]]", "not finite"),
    "too large": ("[[[1, 1e40]]]", "not finite"),
    "letters in CSV": ("sequence,value,marker\n1,a,1\n", "row 2"),
    "divided": ("s,v,m\n1,1,1\n2,1,1\n1,1,1\n", "row 4: sequence 1 continues"),
    "a heading alone": ("sequence,value,marker\n", "has no sequences"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_sequences_are_rows(run: Run, cells: Path, tmp_path: Path, wrong: str) -> None:
    """A file that holds something else than sequences gets one row that says what."""
    text, reason = WRONG[wrong]
    (tmp_path / "given").write_text(text)
    result: Result = run("predict", cells / "gru.safetensors", tmp_path / "given", "--format", "json")
    [row] = json.loads(result.stdout)
    assert reason in row["error"]
    assert result.exit_code == 1


# ------------------------------------------------------------------------------------------------------ eval's tables


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))


def test_eval_writes_classes_and_images(run: Run, trained: Path, tmp_path: Path) -> None:
    """The CSV of classes has the evaluation's figures; that of images gives its accuracy and loss."""
    classes, listed = tmp_path / "classes.csv", tmp_path / "images.csv"
    arguments = ("eval", trained / "head.safetensors", "--per-class", classes, "--per-image", listed)
    assert run(*arguments).exit_code == 0
    evaluation = json.loads((trained / "head.test.eval.json").read_text("utf-8"))
    expected = [
        {key: "" if v is None else str(v) for key, v in own.items()} for own in evaluation["details"]["per_class"]
    ]
    assert read_rows(classes) == expected
    rows = read_rows(listed)
    split = json.loads((trained / "photos.split.json").read_text("utf-8"))
    assert [row["file"] for row in rows] == [example["path"] for example in split["parts"]["test"]]
    assert all(row["file"].startswith(f"{row['class']}/") for row in rows)
    right = [row["class"] == row["predicted"] for row in rows]
    assert np.mean(right) == pytest.approx(evaluation["metrics"]["top1_accuracy"])
    assert np.mean([float(row["loss"]) for row in rows]) == pytest.approx(evaluation["metrics"]["loss"])
    assert run(*arguments).exit_code == 0  # the same content again
    listed.write_text("mine")
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "images.csv already exists, but it has other content; use --force" in refused.stderr
    assert listed.read_text() == "mine"


def test_tables_of_several_or_of_sequences_are_refused(run: Run, trained: Path, cells: Path, tmp_path: Path) -> None:
    """A CSV of classes or images is of one checkpoint of images."""
    several = run("eval", trained / "head.safetensors", trained / "x.safetensors", "--per-class", tmp_path / "c.csv")
    assert_wrong_usage(several, "one checkpoint")
    assert_wrong_usage(run("eval", cells / "gru.safetensors", "--per-image", tmp_path / "i.csv"), "sequences")
    assert list(tmp_path.iterdir()) == []


def test_closed_stdout_is_no_traceback(trained: Path) -> None:
    """With stdout closed, predictions go nowhere, and the command ends as it should."""
    image = trained / "photos" / "cat" / "000.png"
    command = shlex.join(map(str, [sys.executable, "-m", "dlcv_cli", "predict", trained / "head.safetensors", image]))
    result = subprocess.run(["sh", "-c", f"{command} >&-"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_heat_maps_need_a_folder(run: Run, trained: Path, tmp_path: Path) -> None:
    """--explain with a file in place of a folder is refused, and the file stays."""
    file = tmp_path / "notes"
    file.write_text("mine")
    result = run("predict", trained / "head.safetensors", trained / "photos" / "cat", "--explain", file)
    assert_refused(result, "notes", "give a folder")
    assert file.read_text() == "mine"


def test_predicting_does_not_import_the_compiler(trained: Path) -> None:
    """A prediction does without torch's compiler, whose import takes longer than all else; it still works later."""
    code = (
        "import sys; from typer.testing import CliRunner; from dlcv_cli.cli.app import app\n"
        "result = CliRunner().invoke(app, sys.argv[1:]); assert result.exit_code == 0, result.output\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "import torch, torchvision\n"
        "pooled = torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), [torch.tensor([[0.0, 0, 4, 4]])], 2)\n"
        "assert pooled.eq(1).all()\n"
        "from dlcv_cli.vision.torchvision_parts import is_compile_supported\n"
        "assert is_compile_supported('cpu') == torch._dynamo.utils.is_compile_supported('cpu')\n"
    )
    image = trained / "photos" / "cat" / "000.png"
    arguments = [sys.executable, "-c", code, "predict", trained / "head.safetensors", image]
    result = subprocess.run(arguments, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
