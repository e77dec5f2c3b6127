"""`dlcv export` and `dlcv card`: checkpoints for other programs, judged by those programs."""

from __future__ import annotations

import importlib.util
import json
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from conftest import Run, assert_refused, make_photos, run_dlcv
from huggingface_hub import ModelCard
from numpy.typing import NDArray
from PIL import Image

import dlcv_cli
from dlcv_cli.files import tensors
from dlcv_cli.studies.images import export as image_export
from dlcv_cli.vision import onnx_graph
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.models import build_network, build_random_network
from dlcv_cli.vision.preprocessing import Fit, Interpolation, Preprocessing
from dlcv_cli.vision.scripted import Prepare
from dlcv_cli.vision.transforms import resize

CLASSES = {"cat": 10, "straße": 10, "tree house": 15}
# the last two leave half a pixel at each end of the middle: one is rounded up, the other down
SIZES = ((5, 7), (1, 1), (20, 24), (3, 200), (200, 3), (64, 64), (301, 180), (24, 33), (24, 35))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, a calibrated head in float32 and its exports. Tests must not change it."""
    folder = tmp_path_factory.mktemp("exported")
    make_photos(folder / "photos", CLASSES, (90, 70))
    run_dlcv("data", "split", folder / "photos", "-o", folder / "photos.split.json")
    run_dlcv(
        "image", "head", folder / "photos.split.json", "--arch", "vgg16_mini", "--precision", "float32", "--epochs", 2,
        "--batch-size", 4, "-o", folder / "plain.safetensors",
    )  # fmt: skip
    run_dlcv("calibrate", folder / "plain.safetensors", "-o", folder / "head.safetensors")
    run_dlcv("export", folder / "head.safetensors")
    run_dlcv("export", folder / "head.safetensors", "--format", "torchscript")
    return folder


@pytest.fixture(autouse=True)
def quiet_jit() -> Iterator[None]:
    """Ignore that torch deprecates TorchScript."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*")
        yield


def open_onnx(path: Path) -> onnxruntime.InferenceSession:
    """Return a session of an ONNX file."""
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """Return an image as another program would read it, (1, H, W, 3)."""
    return np.array(Image.open(path).convert("RGB"))[None]


def predict(run: Run, checkpoint: Path, image: Path, classes: int) -> dict[str, float]:
    """Return what `dlcv predict` gives for an image: each class's probability."""
    [row] = json.loads(run("predict", checkpoint, image, "--top", classes, "--format", "json").stdout)
    return {one["class"]: one["probability"] for one in row["top"]}


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_graphs_prepare_images_as_training_does(fit: Fit, interpolation: Interpolation) -> None:
    """ONNX gives the same pixels within 2 of 255 levels, for images of any shape, and TorchScript the very same."""
    side = 64
    preprocessing = Preprocessing(72 if fit == "crop" else side, side, interpolation=interpolation, fit=fit)
    data = onnx_graph.build_preprocessing(preprocessing).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    script = torch.jit.script(Prepare(preprocessing))
    mean, std = (np.array(triple).reshape(3, 1, 1) for triple in (preprocessing.mean, preprocessing.std))
    rng, changed = np.random.default_rng(0), []
    for height, width in SIZES:
        image = torch.from_numpy(rng.integers(0, 256, (height, width, 3), np.uint8))
        expected = resize(image.permute(2, 0, 1), preprocessing).numpy().astype(float)
        [pixels] = session.run(None, {"images": image[None].numpy()})
        scripted = script(image[None]).numpy()
        levels = [((own[0] * std + mean) * 255).round().transpose(1, 2, 0) for own in (pixels, scripted)]
        difference = np.abs(levels[0] - expected)
        assert difference.max() <= 2
        changed.append((difference > 0).mean())
        assert np.array_equal(levels[1], expected)
    assert np.mean(changed) < 0.03  # of noise, which rounding hits most


def test_onnx_answers_as_predict_does(run: Run, trained: Path) -> None:
    """The ONNX file, given an image's pixels, says what `predict` says of its file, temperature included."""
    session, names = open_onnx(trained / "head.onnx"), [*CLASSES]
    paths = sorted((trained / "photos").rglob("*.png"))[::6]
    for path in paths:
        probabilities, logits = (own[0] for own in session.run(None, {"images": read_pixels(path)}))
        expected = predict(run, trained / "head.safetensors", path, len(names))
        assert dict(zip(names, probabilities, strict=True)) == pytest.approx(
            expected, abs=5e-3
        )  # pixels may be 1 level off
        assert probabilities == pytest.approx(np.exp(logits) / np.exp(logits).sum(), abs=1e-6)
    batch = np.concatenate([read_pixels(path) for path in paths])
    together = session.run(["probabilities"], {"images": batch})[0]
    single = [session.run(["probabilities"], {"images": image[None]})[0][0] for image in batch]
    assert together == pytest.approx(np.array(single), abs=1e-5)


def test_torchscript_answers_as_predict_does(run: Run, trained: Path) -> None:
    """The TorchScript file, loaded without dlcv, says what `predict` says."""
    module = torch.jit.load(trained / "head.pt")
    path = trained / "photos" / "straße" / "002.png"
    probabilities, _ = module(torch.from_numpy(read_pixels(path)))
    expected = predict(run, trained / "head.safetensors", path, len(CLASSES))
    assert dict(zip(CLASSES, probabilities[0].tolist(), strict=True)) == pytest.approx(expected, abs=1e-5)


def test_metadata_is_what_other_programs_read(trained: Path) -> None:
    """The ONNX file is valid and names classes, task and size; its record names no folder."""
    model = onnx.load(trained / "head.onnx")
    onnx.checker.check_model(model, full_check=True)
    texts = {own.key: own.value for own in model.metadata_props}
    assert json.loads(texts["class_names"]) == [*CLASSES]
    assert texts["names"] == str(dict(enumerate(CLASSES)))
    assert (texts["task"], texts["imgsz"]) == ("classify", "[64, 64]")
    record = json.loads(texts["dlcv"])
    assert record["schema"] == "dlcv.export/1"
    assert record["checkpoint"]["arch"] == "vgg16_mini"
    assert str(trained) not in texts["dlcv"]
    assert '"path"' not in texts["dlcv"]


def test_exports_name_no_file_of_this_machine(trained: Path) -> None:
    """Neither export has a path of this machine: where dlcv or torch is installed, or the files are."""
    with zipfile.ZipFile(trained / "head.pt") as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    folders = [str(trained), *(str(Path(module.__file__ or "").parents[1]) for module in (dlcv_cli, torch))]
    for content in (*contents, (trained / "head.onnx").read_bytes()):
        assert not any(folder.encode() in content for folder in folders)


def test_show_knows_exports(run: Run, trained: Path) -> None:
    """`show` says what an export was made from."""
    for name in ("head.onnx", "head.pt"):
        text = run("show", trained / name).stdout
        assert "export, made by dlcv export" in text
        assert "checkpoint head.safetensors" in text


def test_tensor_form_takes_prepared_pixels(run: Run, trained: Path, tmp_path: Path) -> None:
    """With --input tensor, any number of prepared images gives the logits of the plain network."""
    result = run("export", trained / "plain.safetensors", "--input", "tensor", "-o", tmp_path / "tensor.onnx")
    assert result.exit_code == 0, result.stderr
    stored = tensors.read(trained / "plain.safetensors", tensors.CHECKPOINT)
    network = build_random_network(ARCHITECTURES["vgg16_mini"], len(CLASSES), 0).eval()
    network.load_state_dict({name: torch.from_numpy(array) for name, array in stored.arrays.items()})
    session = open_onnx(tmp_path / "tensor.onnx")
    for count in (1, 3):
        pixels = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            expected = network(pixels).numpy()
        assert session.run(["logits"], {"pixels": pixels.numpy()})[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_other_numbers_are_refused(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """An export whose logits differ by more than 1e-3 is not written."""

    class Off(image_export.Classifier):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.network(pixels) + 0.002
            return logits.softmax(1), logits

    build = {"onnx": "_build_onnx", "torchscript": "_build_torchscript"}[form]
    real = getattr(image_export, build)

    def build_off(*arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(image_export, "Classifier", Off)
            return real(*arguments)

    monkeypatch.setattr(image_export, build, build_off)
    output = tmp_path / {"onnx": "off.onnx", "torchscript": "off.pt"}[form]
    result = run("export", trained / "plain.safetensors", "--format", form, "-o", output)
    assert_refused(result, "plain.safetensors", "logits", "0.002", "nothing is written")
    assert not [*tmp_path.iterdir()]


@pytest.fixture(scope="module")
def resnet(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of a resnet18 with random weights, temperature 2, as if it came from another machine."""
    stored = tensors.read(trained / "head.safetensors", tensors.CHECKPOINT)
    network = build_random_network(ARCHITECTURES["resnet18"], len(CLASSES), 0)
    metadata = {key: value for key, value in stored.metadata.items() if key not in ("schema", "sha256")}
    metadata |= {"arch": "resnet18", "preprocessing": replace(Preprocessing(80, 64), fit="crop").to_json()}
    metadata["trained"] = ["fc"]
    metadata["calibration"] = {**metadata["calibration"], "temperature": 2.0}
    path = tmp_path_factory.mktemp("resnet") / "resnet.safetensors"
    tensors.write(path, tensors.CHECKPOINT, {name: t.numpy() for name, t in network.state_dict().items()}, metadata)
    return path


def test_timm_opens_the_folder(run: Run, resnet: Path, tmp_path: Path) -> None:
    """timm builds the network, its preprocessing and class names from the folder, and gives logits / temperature."""
    result = run("export", resnet, "--format", "timm", "-o", tmp_path / "resnet")
    assert result.exit_code == 0, result.stderr
    model = timm.create_model(f"local-dir:{tmp_path / 'resnet'}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    assert (config["input_size"], config["crop_pct"], config["crop_mode"]) == ([3, 64, 64], 0.8, "center")
    transform = timm.data.create_transform(**config, is_training=False)
    pixels = transform(Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 140, 3), np.uint8)))[None]
    network = build_random_network(ARCHITECTURES["resnet18"], len(CLASSES), 0).eval()
    with torch.no_grad():
        assert model(pixels).numpy() == pytest.approx(network(pixels).numpy() / 2, abs=1e-4)
    assert model.pretrained_cfg["label_names"] == [*CLASSES]
    assert ModelCard.load(tmp_path / "resnet" / "README.md").data.pipeline_tag == "image-classification"


@pytest.mark.parametrize("arch", [name for name, own in ARCHITECTURES.items() if own.in_timm])
def test_timm_has_these_names_and_shapes(arch: str) -> None:
    """Every tensor of the folder has the name and shape of timm's own network, so that nothing is loaded by halves."""
    with torch.device("meta"):
        network = build_network(ARCHITECTURES[arch], 3)
        expected = timm.create_model(arch, num_classes=3).state_dict()
    renamed = dict(image_export._rename_for_timm(name, tensor) for name, tensor in network.state_dict().items())
    assert {name: t.shape for name, t in renamed.items()} == {name: t.shape for name, t in expected.items()}


def test_networks_that_timm_lacks_are_refused(run: Run, trained: Path, tmp_path: Path) -> None:
    """A network that timm cannot read is refused by name."""
    result = run("export", trained / "head.safetensors", "--format", "timm", "-o", tmp_path / "mini")
    assert result.exit_code == 2
    assert "vgg16_mini" in result.stderr
    assert not (tmp_path / "mini").exists()


def test_missing_package_is_named(run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnx, the message says what to install."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else real(name))
    result = run("export", trained / "head.safetensors", "-o", tmp_path / "head.onnx")
    assert_refused(result, "needs onnx", "pip install '.[export]'", "pipx inject dlcv onnx")


def test_exports_are_made_once(run: Run, trained: Path, tmp_path: Path) -> None:
    """A second run is up to date; another checkpoint or setting, or another file, is not overwritten."""
    for form, name in (("onnx", "head.onnx"), ("torchscript", "head.pt")):
        output = tmp_path / name
        shutil.copy(trained / name, output)
        common = ("--format", form, "-o", output)
        assert "up to date" in run("export", trained / "head.safetensors", *common).stdout
        assert_refused(run("export", trained / "plain.safetensors", *common), name, "checkpoint")
        assert_refused(run("export", trained / "head.safetensors", "--input", "tensor", *common), name, "--input")
        output.write_text("a diary")
        assert_refused(run("export", trained / "head.safetensors", *common), name, "--force")
        assert output.read_text() == "a diary"


def test_exports_a_checkpoint_alone(run: Run, trained: Path, tmp_path: Path) -> None:
    """Without split and images, the check takes drawn images, and says so; the file is the same."""
    shutil.copy(trained / "head.safetensors", tmp_path)
    result = run("export", tmp_path / "head.safetensors")
    assert result.exit_code == 0, result.stderr
    assert "16 drawn images" in result.stdout
    image = read_pixels(trained / "photos" / "cat" / "001.png")
    alone, other = (open_onnx(folder / "head.onnx").run(None, {"images": image})[0] for folder in (tmp_path, trained))
    assert np.array_equal(alone, other)


@pytest.mark.parametrize("cell", ["baseline", "elman", "lstm", "gru"])
@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_cells_of_any_length(run: Run, tmp_path: Path, cell: str, form: str) -> None:
    """The export of a cell gives the predictions of torch.nn's layers."""
    run_dlcv("seq", "gen", "--count", 300, "-o", tmp_path / "adding.safetensors")
    checkpoint, output = tmp_path / "cell.safetensors", tmp_path / {"onnx": "cell.onnx", "torchscript": "cell.pt"}[form]
    run_dlcv(
        "seq", "train", tmp_path / "adding.safetensors", "--cell", cell, "--hidden-size", 7, "--epochs", 1,
        "-o", checkpoint,
    )  # fmt: skip
    assert "48 validation sequences" in run("export", checkpoint, "--format", form, "-o", output).stdout
    assert run("export", checkpoint, "--format", form, "--input", "tensor", "-o", output, "--force").exit_code == 2
    arrays = tensors.read(checkpoint, tensors.CHECKPOINT).arrays
    rng = np.random.default_rng(0)
    for steps in (1, 2, 9, 50):
        x = rng.random((3, steps, 2), np.float32)
        expected = _predict_by_torch(cell, arrays, x)
        if form == "onnx":
            [predictions] = open_onnx(output).run(None, {"sequences": x})
        else:
            predictions = torch.jit.load(output)(torch.from_numpy(x)).detach().numpy()
        assert predictions.shape == (3,)
        assert predictions == pytest.approx(expected, abs=1e-5)


def _predict_by_torch(cell: str, arrays: tensors.Arrays, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the predictions (n,) of a checkpoint, by torch.nn's layers."""
    own = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if cell == "baseline":
        return np.full(len(x), own["constant"].item(), np.float32)
    layer = {"elman": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](2, 7, batch_first=True)
    head = torch.nn.Linear(7, 1)
    for module, prefix in ((layer, "rnn."), (head, "head.")):
        module.load_state_dict({n.removeprefix(prefix): t for n, t in own.items() if n.startswith(prefix)})
    with torch.no_grad():
        states: torch.Tensor = layer(torch.from_numpy(x))[0]
        return head(states[:, -1])[:, 0].numpy()


def test_card_is_read_by_hubs(run: Run, trained: Path) -> None:
    """The card's YAML, read by huggingface_hub, has the test metrics; the text has intervals, the test and origins."""
    assert run("eval", trained / "head.safetensors").exit_code == 0
    document = json.loads((trained / "head.test.eval.json").read_text("utf-8"))
    text = run("card", trained / "head.safetensors").stdout
    card = ModelCard(text)
    [accuracy] = [own for own in card.data.eval_results if own.metric_type == "accuracy"]
    assert accuracy.metric_value == document["metrics"]["top1_accuracy"]
    assert (accuracy.dataset_name, accuracy.dataset_split) == ("photos", "test")
    low, high = document["intervals"]["top1_accuracy"]
    assert f"{100 * low:.1f} to {100 * high:.1f}" in card.text
    assert "baseline: always" in card.text
    assert "plain.safetensors" in card.text
    assert str(trained) not in text
    assert "../" not in text


def test_card_of_a_checkpoint_alone(run: Run, trained: Path, tmp_path: Path) -> None:
    """Without evaluations, the card says how to get them; it is written to a file, and not over another one."""
    shutil.copy(trained / "plain.safetensors", tmp_path)
    output = tmp_path / "README.md"
    assert run("card", tmp_path / "plain.safetensors", "-o", output).exit_code == 0
    assert "Not evaluated yet" in output.read_text("utf-8")
    assert ModelCard.load(output).data.library_name == "dlcv"
    output.write_text("mine")
    assert_refused(run("card", tmp_path / "plain.safetensors", "-o", output), "README.md", "--force")
    before = (tmp_path / "plain.safetensors").read_bytes()
    result = run("card", tmp_path / "plain.safetensors", "-o", tmp_path / "plain.safetensors", "--force")
    assert_refused(result, "must end in .md")
    assert (tmp_path / "plain.safetensors").read_bytes() == before


def test_card_of_a_cell(run: Run, tmp_path: Path) -> None:
    """A cell has a card as well, with its error."""
    run_dlcv("seq", "gen", "--count", 100, "-o", tmp_path / "adding.safetensors")
    run_dlcv("seq", "train", tmp_path / "adding.safetensors", "--epochs", 1, "-o", tmp_path / "gru.safetensors")
    run_dlcv("eval", tmp_path / "gru.safetensors")
    card = ModelCard(run("card", tmp_path / "gru.safetensors").stdout)
    assert "mse" in [own.metric_type for own in card.data.eval_results]
    assert "gru cell" in card.text
