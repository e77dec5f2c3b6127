"""The Predictor gives the logits that `eval` records, and opens every image checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Run

from dlcv_cli.config import Machine
from dlcv_cli.context import Context, Reporter
from dlcv_cli.errors import DlcvError, FileError
from dlcv_cli.files import splits, tensors
from dlcv_cli.studies.images.predictor import Predictor, load_part, open_checkpoint, require_classes

ON_CPU = ("--threads", 1, "--device", "cpu")


@pytest.fixture
def head(run: Run, split_file: Path) -> Path:
    """Return a head trained for one epoch."""
    output = split_file.parent / "head.safetensors"
    result = run("vgg", "head", split_file, "--arch", "vgg16_mini", "--epochs", 1, *ON_CPU, "-o", output)
    assert result.exit_code == 0, result.stderr
    return output


@pytest.mark.parametrize("cached", [True, False])
def test_predictor_gives_the_logits_of_eval(
    run: Run, head: Path, split_file: Path, cache_folder: Path, cached: bool
) -> None:
    """With and without cached features, the Predictor's logits are those in eval's predictions, bit by bit."""
    assert run("eval", head, *ON_CPU).exit_code == 0
    recorded = tensors.read(head.with_suffix(".test.predictions.safetensors"), tensors.PREDICTIONS).arrays["logits"]
    checkpoint = open_checkpoint(head)
    context = Context(machine=Machine("cpu", 1), cache=cache_folder if cached else None)
    predictor = Predictor(checkpoint, context)
    images = load_part(splits.read(split_file), "test", checkpoint.preprocessing, Reporter())
    logits = np.concatenate([x.numpy() for x in predictor.predict(images)])
    assert np.array_equal(logits, recorded)
    description = predictor.describe()
    assert list(description) == ["device", "threads", "precision", "features"]
    assert description["device"] == "cpu"
    assert description["features"]["used"] is cached


def test_an_open_checkpoint_says_what_it_holds(head: Path) -> None:
    """An open checkpoint has network, trained layers, classes and preprocessing."""
    checkpoint = open_checkpoint(head)
    assert (checkpoint.path, checkpoint.arch, checkpoint.trained) == (head, "vgg16_mini", ("classifier.6",))
    assert checkpoint.classes == ["cat", "straße", "tree house"]
    assert checkpoint.preprocessing.crop == 64


def test_only_image_checkpoints_are_opened(tmp_path: Path) -> None:
    """A checkpoint of another study is refused by name."""
    path = tmp_path / "gru.safetensors"
    tensors.write(path, tensors.CHECKPOINT, {"bias": np.zeros(3, np.float32)}, {"stage": "seq.train"})
    with pytest.raises(FileError, match=r"gru\.safetensors: holds no image network"):
        open_checkpoint(path)


def test_other_classes_are_refused_with_the_difference() -> None:
    """The message names the classes that differ, or their order."""
    a, b = Path("a.safetensors"), Path("b.split.json")
    require_classes(a, ["x", "y"], b, ["x", "y"])
    with pytest.raises(DlcvError, match=r"only in a\.safetensors: 'z'; only in b\.split\.json: 'y'"):
        require_classes(a, ["x", "z"], b, ["x", "y"])
    with pytest.raises(DlcvError, match="same names in another order"):
        require_classes(a, ["y", "x"], b, ["x", "y"])
