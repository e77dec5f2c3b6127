"""Image classifiers for other programs: ONNX, TorchScript, and timm's folder. Letters: S pixels a side, K classes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlcv_cli.config import DrawConfig
from dlcv_cli.errors import DlcvError, FileError, SettingError
from dlcv_cli.files import splits
from dlcv_cli.files.disk import JSON
from dlcv_cli.files.exchange import (
    RECORD,
    Call,
    require_packages,
    script_to_bytes,
    start_onnx,
    start_torchscript,
)
from dlcv_cli.studies.base import Exported, ExportRequest
from dlcv_cli.studies.images.predictor import ImageCheckpoint, open_checkpoint
from dlcv_cli.vision import images, scripted
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.drawing import draw_figures
from dlcv_cli.vision.inference import FeatureExtractor
from dlcv_cli.vision.models import Classifier, build_loaded_network
from dlcv_cli.vision.transforms import decode, resize

CHECKED, DRAWN = 64, 16  # images that an export is compared on: of the validation part, or drawn without it
# the largest differences allowed: of logits from the same pixels; of probabilities from the same file, which another
# library may resize with pixels that are one of 255 levels off
LARGEST = {"logits": 1e-3, "probabilities": 1e-2}
TIMM_VGG_SIDE = 224  # timm's VGG pools images of other sizes differently
# torchvision's layer -> timm's, and the shape of its kernels
TIMM_VGG: dict[str, tuple[str, tuple[int, ...]]] = {
    "classifier.0.": ("pre_logits.fc1.", (512, 7, 7)),
    "classifier.3.": ("pre_logits.fc2.", (4096, 1, 1)),
    "classifier.6.": ("head.fc.", ()),
}
CROP_MODES = {"crop": "center", "squash": "squash", "pad": "border"}  # fit -> timm's name


@dataclass(frozen=True)
class _Built:
    """An export in memory. Both calls return probabilities and logits (1, K)."""

    classify: Call  # of pixels (1, 3, S, S)
    whole: Call  # of what the export takes
    files: dict[str, bytes]


def export(request: ExportRequest) -> Exported:
    """Return a classifier in another format. See Study.export."""
    stored = open_checkpoint(request.checkpoint)
    build = {"onnx": _build_onnx, "torchscript": _build_torchscript, "timm": _build_timm}[request.config.format]
    built = build(stored, request)
    shown, pictures = _list_examples(request, stored.fold)
    return Exported(built.files, _compare(stored, built, request, pictures), shown)


def _list_examples(request: ExportRequest, fold: int | None) -> tuple[str, Iterator[Tensor]]:
    """Return what the check is made with, in words, and the images (3, H, W) uint8: of validation, or drawn ones."""
    if request.data:
        split = splits.read_for(request.data, request.context.root, fold)
        paths = [split.root / example.path for example in split.parts["val"]]
        chosen = paths[:: max(1, len(paths) // CHECKED)][:CHECKED]
        if chosen and all(path.is_file() for path in chosen):
            return f"{len(chosen)} validation images", map(_read_image, chosen)
    drawn = draw_figures(DrawConfig(classes=DRAWN, per_class=1, size=128))
    return f"{DRAWN} drawn images (the validation images are not at hand)", (decode(data) for _, data in drawn)


def _read_image(path: Path) -> Tensor:
    """Return an image (3, H, W) uint8. FileError: it cannot be read."""
    try:
        return decode(images.read_image_file(path))
    except ValueError as error:
        raise FileError(path, str(error)) from None


def _compare(
    stored: ImageCheckpoint, built: _Built, request: ExportRequest, pictures: Iterator[Tensor]
) -> dict[str, float]:
    """Return the largest differences between the export and the checkpoint in float32.

    Raises:
        DlcvError: one is larger than it may be.
    """
    classifier, differences = Classifier(stored.network, stored.temperature), dict.fromkeys(LARGEST, 0.0)
    normalise = FeatureExtractor([], stored.preprocessing, torch.device("cpu"), "float32")
    for image in pictures:
        pixels = normalise(resize(image, stored.preprocessing)[None]).contiguous()
        with torch.no_grad():
            probabilities, logits = (own.numpy() for own in classifier(pixels))
        values = image.permute(1, 2, 0)[None].contiguous() if request.config.input == "image" else pixels
        pairs = {
            "logits": (built.classify(pixels.numpy())[1], logits),
            "probabilities": (built.whole(values.numpy())[0], probabilities),
        }
        for what, (exported, own) in pairs.items():
            differences[what] = max(differences[what], float(np.abs(exported - own).max()))
    for what, limit in LARGEST.items():
        if not differences[what] <= limit:
            raise DlcvError(
                f"{request.checkpoint}: the {what} of the export differ by {differences[what]:.2g} from the "
                f"checkpoint's, more than {limit:g}; nothing is written"
            )
    return differences


def _describe(stored: ImageCheckpoint, request: ExportRequest) -> dict[str, str]:
    """Return what an exported file says of itself, under the names that other programs read."""
    side = stored.preprocessing.crop
    return {
        "class_names": json.dumps(stored.classes, ensure_ascii=False),
        "names": str(dict(enumerate(stored.classes))),
        "task": "classify",
        "imgsz": json.dumps([side, side]),
        RECORD: json.dumps(request.record),
    }


def _build_onnx(stored: ImageCheckpoint, request: ExportRequest) -> _Built:
    require_packages("--format onnx", "export", "onnx", "onnxscript", "onnxruntime")
    from onnx import checker, helper

    from dlcv_cli.vision import onnx_graph

    core = onnx_graph.build_classifier(Classifier(stored.network, stored.temperature), stored.preprocessing.crop)
    classify = start_onnx(core.SerializeToString())
    model = core
    if request.config.input == "image":
        model = onnx_graph.join(onnx_graph.build_preprocessing(stored.preprocessing), core)
    helper.set_model_props(model, _describe(stored, request))
    checker.check_model(model)
    data = model.SerializeToString()
    return _Built(classify, start_onnx(data), {"": data})


def _build_torchscript(stored: ImageCheckpoint, request: ExportRequest) -> _Built:
    classifier, whole = scripted.trace(Classifier(stored.network, stored.temperature), stored.preprocessing)
    data = script_to_bytes(whole if request.config.input == "image" else classifier, _describe(stored, request))
    return _Built(start_torchscript(script_to_bytes(classifier, {})), start_torchscript(data), {"": data})


def _build_timm(stored: ImageCheckpoint, request: ExportRequest) -> _Built:
    """Return timm's layout. Its logits have no temperature, so the head's weights are divided by it."""
    architecture, side = ARCHITECTURES[stored.arch], stored.preprocessing.crop
    if not architecture.in_timm:
        known = [name for name, own in ARCHITECTURES.items() if own.in_timm]
        raise SettingError(
            f"--format timm: timm cannot read the tensors of {stored.arch}; it can of {', '.join(known)}. "
            "Take --format onnx"
        )
    if stored.arch.startswith("vgg") and side != TIMM_VGG_SIDE:
        raise SettingError(f"--format timm: timm's {stored.arch} takes images of {TIMM_VGG_SIDE} pixels, not {side}")
    tensors = {
        name: tensor / stored.temperature if name.startswith(f"{architecture.head}.") else tensor
        for name, tensor in stored.network.state_dict().items()
    }
    renamed = dict(_rename_for_timm(name, tensor) for name, tensor in tensors.items())
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in renamed.items()}, {"format": "pt"})
    network = build_loaded_network(architecture, len(stored.classes), tensors).eval()

    def compute(values: NDArray[Any]) -> list[NDArray[Any]]:
        with torch.no_grad():
            logits = network(torch.from_numpy(values))
        return [logits.softmax(1).numpy(), logits.numpy()]

    def compute_image(values: NDArray[Any]) -> list[NDArray[Any]]:
        pixels = resize(torch.from_numpy(values)[0].permute(2, 0, 1), stored.preprocessing)
        normalise = FeatureExtractor([], stored.preprocessing, torch.device("cpu"), "float32")
        return compute(normalise(pixels[None]).contiguous().numpy())

    files = {
        "model.safetensors": data,
        "config.json": (json.dumps(_configure_timm(stored), indent=1, ensure_ascii=False) + "\n").encode(),
        "README.md": request.card.encode("utf-8", "surrogateescape"),
    }
    return _Built(compute, compute_image, files)


def _rename_for_timm(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Return a tensor under timm's name and shape: its VGG has convolutions in place of fully connected layers.

    timm renames torchvision's tensors itself, but transformers reads the file without timm's help.
    """
    for own, (new, shape) in TIMM_VGG.items():
        if name.startswith(own):
            return name.replace(own, new), tensor.reshape(-1, *shape) if shape and tensor.dim() == 2 else tensor
    return name, tensor


def _configure_timm(stored: ImageCheckpoint) -> JSON:
    """Return the content of timm's config.json."""
    preprocessing, side = stored.preprocessing, stored.preprocessing.crop
    share = side / preprocessing.resize
    if math.floor(side / share) != preprocessing.resize:  # timm divides, and rounds down
        share = math.nextafter(share, 0)
    return {
        "architecture": ARCHITECTURES[stored.arch].builder,
        "num_classes": len(stored.classes),
        "label_names": stored.classes,
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "interpolation": preprocessing.interpolation,
            "crop_pct": share,
            "crop_mode": CROP_MODES[preprocessing.fit],
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": len(stored.classes),
        },
    }
