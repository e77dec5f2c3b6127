"""Linear heads solved by L-BFGS, and `--recipe auto`, which chooses settings by them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, read_metrics
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from dlcv_cli.config import HeadConfig, ScratchConfig
from dlcv_cli.context import Reporter
from dlcv_cli.errors import SettingError
from dlcv_cli.files import splits, tensors
from dlcv_cli.stages import search
from dlcv_cli.stages.search import DECAYS, LR
from dlcv_cli.studies.images.predictor import load_part
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.linear import LinearHead, list_decays, solve
from dlcv_cli.vision.models import build_network, build_random_network, unfreeze
from dlcv_cli.vision.preprocessing import Preprocessing
from dlcv_cli.vision.steps import split_at_frozen

LINEAR = 3 * len(DECAYS)  # crop and squash, and one of them mirrored as well
AUTO = ("--arch", "vgg16_mini", "--recipe", "auto", "--threads", 1, "--precision", "float32")


def draw_features(rows: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (rows, 6) of very different spreads, with a mean far from 0, and labels that follow them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 6)) * np.array([0.1, 1, 1, 3, 3, 10]) + 5
    labels = (x @ rng.normal(size=(6, classes)) + rng.normal(size=(rows, classes)) * 5).argmax(1)
    return torch.from_numpy(x).float(), torch.from_numpy(labels)


def test_solutions_are_scikit_learns() -> None:
    """For each weight decay, the head is scikit-learn's logistic regression with as strong a penalty."""
    x, labels = draw_features(200, 4)
    decays = list_decays(x, (1e-1, 1e-2, 1e-3))
    for decay, solution in zip(decays, solve(x, labels, 4, decays, F.cross_entropy), strict=True):
        theirs = LogisticRegression(C=1 / (decay * len(x)), tol=1e-10, max_iter=100_000).fit(x.double(), labels)
        ours = F.linear(x, solution.weight, solution.bias).softmax(1)
        np.testing.assert_allclose(ours, theirs.predict_proba(x.double()), atol=2e-3)
        np.testing.assert_allclose(solution.weight, theirs.coef_, atol=2e-3)


def test_decays_follow_the_scale_of_the_features() -> None:
    """Features a hundred times as large get decays that are ten thousand times as large, and the same predictions."""
    x, labels = draw_features(200, 4)
    decays, scaled = list_decays(x, (1e-2, 1e-3)), list_decays(100 * x, (1e-2, 1e-3))
    assert scaled == pytest.approx([1e4 * decay for decay in decays])
    for one, other in zip(
        solve(x, labels, 4, decays, F.cross_entropy), solve(100 * x, labels, 4, scaled, F.cross_entropy), strict=True
    ):
        torch.testing.assert_close(100 * other.weight, one.weight, rtol=0, atol=1e-3)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_network_has_a_linear_head(arch: str) -> None:
    """The one layer of each network that a head trains is what LinearHead finds."""
    architecture = ARCHITECTURES[arch]
    with torch.device("meta"):
        network = build_network(architecture, 3)
    unfreeze(network, (architecture.head,))
    head = LinearHead.of(split_at_frozen(network, architecture))
    assert head.layer is network.get_submodule(architecture.head)


@pytest.mark.parametrize("arch", ["squeezenet1_1", "vgg16_mini", "resnet18"])
def test_network_predicts_what_was_solved(arch: str) -> None:
    """With a solution in its head, a network gives the solution's probabilities, also through a ReLU and a mean."""
    architecture = ARCHITECTURES[arch]
    network = build_random_network(architecture, 3, 0)
    unfreeze(network, (architecture.head,))
    split = split_at_frozen(network, architecture)
    images = torch.randn(40, 3, 64, 64, generator=torch.Generator().manual_seed(0)).cumsum(2) / 4
    labels = images.mean((2, 3)).argmax(1)
    network.eval()
    with torch.no_grad():
        x = split.frozen(images)
        head = LinearHead.of(split)
        pooled = head.pool(x)
    [solution] = solve(pooled, labels, 3, list_decays(pooled, (1e-3,)), F.cross_entropy)
    head.set(solution, x)
    expected = F.linear(pooled, solution.weight, solution.bias).softmax(1)
    with torch.no_grad():
        torch.testing.assert_close(network(images).softmax(1), expected, rtol=0, atol=0.04)
    assert (expected.argmax(1) == labels).float().mean() > 0.8


def test_more_layers_are_no_linear_head() -> None:
    """Where two layers train, there is no linear head to solve."""
    network = build_random_network(ARCHITECTURES["vgg16_mini"], 3, 0)
    unfreeze(network, ("classifier",))
    with pytest.raises(SettingError, match="one linear layer"):
        LinearHead.of(split_at_frozen(network, ARCHITECTURES["vgg16_mini"]))


# ------------------------------------------------------------------------------------------------------- the command


def test_every_try_is_recorded_and_the_best_is_kept(run: Run, split_file: Path, tmp_path: Path) -> None:
    """The metrics list what was tried; the checkpoint has the settings of the lowest validation loss."""
    output = tmp_path / "head.safetensors"
    result = run("vgg", "head", split_file, *AUTO, "-o", output)
    assert result.exit_code == 0, result.stderr
    metrics = read_metrics(output)
    linear, trained = metrics["tries"][:LINEAR], metrics["tries"][LINEAR:]
    assert len(trained) == len(LR) == len(metrics["run"]["seconds_per_try"]) - LINEAR
    assert all("lr" not in t for t in linear)
    best = min(linear, key=lambda t: t["val_loss"])
    settings = {name: best[name] for name in ("resize", "augment", "weight_decay")}
    assert all(settings.items() <= t.items() for t in trained)
    assert settings.items() <= metrics["chosen"].items()
    assert metrics["best"]["val_loss"] == min(t["val_loss"] for t in trained)
    assert all(metrics["config"][name] is None for name in ("lr", "augment", "weight_decay"))
    metadata = tensors.read_metadata(output, tensors.CHECKPOINT)
    assert metadata["tries"] == len(metrics["tries"])
    assert metadata["preprocessing"].get("fit", "crop") == best["resize"]
    assert "tried 9 linear heads; the best: resize crop, augment none" in result.stderr
    again = run("vgg", "head", split_file, *AUTO, "-o", output)
    assert "up to date" in again.stdout


def test_weights_are_those_of_the_best_training(
    run: Run, split_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first learning rate is better than the last, its weights are written: eval gets its validation loss."""
    monkeypatch.setattr(search, "LR", (1e-3, 100.0))
    output = tmp_path / "head.safetensors"
    result = run("vgg", "head", split_file, *AUTO, "--weight-decay", 10, "-o", output)
    assert result.exit_code == 0, result.stderr
    metrics = read_metrics(output)
    first, last = metrics["tries"][-2:]
    assert metrics["best"]["epoch"] > 0
    assert metrics["best"]["val_loss"] == first["val_loss"] < last["val_loss"]
    assert run("eval", output, "--part", "val").exit_code == 0
    evaluation = json.loads((tmp_path / "head.val.eval.json").read_text("utf-8"))
    assert evaluation["metrics"]["loss"] == pytest.approx(first["val_loss"], rel=1e-5)


def test_each_view_is_solved_on_once(split_file: Path) -> None:
    """The linear heads see each view that the epochs show, and none of them twice."""
    part = load_part(splits.read(split_file), "train", Preprocessing(64, 64), Reporter())
    part = replace(part, augment="flip")
    views = [(i, part.view(i, epoch)) for epoch, order in search._list_views(part, 5) for i in order.tolist()]
    assert len(views) == len({*views})
    assert {*views} == {(i, part.view(i, epoch)) for epoch in range(5) for i in range(len(part.paths))}
    assert len(views) > len(part.paths)


def test_search_repeats_itself(run: Run, split_file: Path, tmp_path: Path) -> None:
    """With an empty cache, a full one, and none, the checkpoint has the same bytes."""
    outputs = [tmp_path / f"{name}.safetensors" for name in ("cold", "warm", "without")]
    for output, more in zip(outputs, ((), (), ("--no-cache",)), strict=True):
        assert run("vgg", "head", split_file, *AUTO, *more, "-o", output).exit_code == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes() == outputs[2].read_bytes()


GIVEN: dict[str, tuple[tuple[object, ...], dict[str, Any], int]] = {  # options -> what all tries have, their number
    "resize": (("--resize", "pad"), {"resize": "pad"}, 2 * len(DECAYS) + len(LR)),
    "augment": (("--augment", "flip"), {"augment": "flip"}, 2 * len(DECAYS) + len(LR)),
    "weight decay": (("--weight-decay", 0), {"weight_decay": 0.0}, 3 + len(LR)),
    "the published lr": (("--lr", 0.005), {}, LINEAR + 1),
}


@pytest.mark.parametrize("given", GIVEN)
def test_given_settings_are_fixed(run: Run, split_file: Path, tmp_path: Path, given: str) -> None:
    """A setting on the command line is not tried, even if its value is the published one."""
    options, fixed, count = GIVEN[given]
    result = run("vgg", "head", split_file, *AUTO, *options, "--epochs", 1, "-o", tmp_path / "head.safetensors")
    assert result.exit_code == 0, result.stderr
    metrics = read_metrics(tmp_path / "head.safetensors")
    assert all(fixed.items() <= t.items() for t in metrics["tries"])
    assert len(metrics["tries"]) == count
    assert str(options[0]).removeprefix("--").replace("-", "_") not in metrics["chosen"]
    assert metrics["tries"][-1]["lr"] == (0.005 if given == "the published lr" else LR[-1])


def test_images_that_differ_at_their_edges_are_squashed(run: Run, tmp_path: Path) -> None:
    """Where the middle of all images is the same, the whole image is chosen, and most images are classified right."""
    rng = np.random.default_rng(0)
    for name, color in (("blue", (30, 60, 220)), ("red", (220, 60, 30))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.full((30, 120, 3), 128) + rng.integers(-20, 20, (30, 120, 3))
            pixels[:, :40] = pixels[:, 80:] = np.array(color) + rng.integers(-30, 30, (30, 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "photos" / name / f"{number}.png")
    split = tmp_path / "photos.split.json"
    assert run("data", "split", tmp_path / "photos", "-o", split).exit_code == 0
    assert run("vgg", "head", split, *AUTO, "-o", tmp_path / "head.safetensors").exit_code == 0
    metrics = read_metrics(tmp_path / "head.safetensors")
    assert metrics["chosen"]["resize"] == "squash"
    assert metrics["best"]["val_accuracy"] == 1.0


def test_verdict_says_how_many_were_tried(run: Run, split_file: Path, tmp_path: Path) -> None:
    """The comparison and the report count the tries of the network whose settings were chosen, and of no other."""
    auto, published = tmp_path / "auto.safetensors", tmp_path / "published.safetensors"
    assert run("vgg", "head", split_file, *AUTO, "-o", auto).exit_code == 0
    assert run("vgg", "head", split_file, "--arch", "vgg16_mini", "--threads", 1, "-o", published).exit_code == 0
    result = run("eval", "--compare", published, auto)
    assert result.exit_code == 0, result.stderr
    sentence = f"The settings of auto are the best of {LINEAR + len(LR)} that were tried on the validation part."
    assert sentence in " ".join(result.stdout.split())
    assert "The settings of published" not in result.stdout
    assert json.loads((tmp_path / "auto.test.eval.json").read_text("utf-8"))["tries"] == LINEAR + len(LR)
    assert run("report", published, auto, "-o", tmp_path / "report.html").exit_code == 0
    page = (tmp_path / "report.html").read_text("utf-8")
    assert sentence in page
    assert "What was tried on the validation part" in page


def test_modern_recipe_fills_in_what_is_not_given(run: Run, split_file: Path, tmp_path: Path) -> None:
    """`scratch --recipe modern` records its settings, but those on the command line go before them."""
    output = tmp_path / "scratch.safetensors"
    small = ("--arch", "vgg16_mini", "--image-size", 64, "--lr", 0.005, "--epochs", 1, "--threads", 1)
    result = run("vgg", "scratch", split_file, "--recipe", "modern", *small, "-o", output)
    assert result.exit_code == 0, result.stderr
    config = read_metrics(output)["config"]
    typed = {"arch": "vgg16_mini", "image_size": 64, "lr": 0.005}
    assert {**ScratchConfig.RECIPES["modern"], **typed}.items() <= config.items()


def test_recipes_are_configs() -> None:
    """Each recipe is a valid set of settings of its stage."""
    assert HeadConfig.by_recipe(recipe="auto").to_try == ["resize", "augment", "weight_decay", "lr"]
    assert HeadConfig.by_recipe(recipe="published") == HeadConfig()
    assert ScratchConfig.by_recipe(recipe="modern").arch == "resnet18"


def test_unknown_recipe_is_refused(run: Run, split_file: Path, tmp_path: Path) -> None:
    """A recipe that the stage does not have is refused with those that it has."""
    result = run("vgg", "head", split_file, "--recipe", "modern", "-o", tmp_path / "head.safetensors")
    assert result.exit_code != 0
    assert "published" in result.stderr
    assert "auto" in result.stderr
