"""Thumbnails of the evaluated images that say most: highest loss, most confused."""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from dlcv_cli.errors import DlcvError
from dlcv_cli.files import splits, tensors
from dlcv_cli.files.disk import JSON
from dlcv_cli.report.page_parts import Confused, Picture
from dlcv_cli.statistics.metrics import scores
from dlcv_cli.vision import images

SIDE = 96  # of a thumbnail, in pixels
EXAMPLES = 3  # of each confused pair


@lru_cache(maxsize=1024)
def thumbnail(path: Path, sha256: str) -> tuple[bytes, tuple[int, int]]:
    """An image of that sha256 as a small JPEG, upright, and its size. ValueError, with the reason, if it is not there.

    Images of a few pixels are enlarged, each pixel a square.
    """
    if not path.exists():
        raise ValueError("gone")
    data = images.read(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("changed")
    with images.refusing():
        image = images.upright(images.header(data))
    image.thumbnail((SIDE, SIDE))
    if (times := SIDE // max(image.size)) > 1:
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue(), image.size


def _picture(root: Path, path: str, sha256: str, label: str, answer: str, loss: float, probability: float) -> Picture:
    try:
        jpeg, size = thumbnail(root / path, sha256)
    except ValueError as error:
        return Picture(path, label, answer, loss, probability, problem=str(error))
    return Picture(path, label, answer, loss, probability, jpeg, size)


def highest_loss(document: JSON, root: Path) -> tuple[Picture, ...]:
    """The images of highest loss of an evaluation."""
    return tuple(
        _picture(root, e["path"], e["sha256"], e["label"], e["answer"], e["loss"], e["probability"])
        for e in document["highest_loss"]
    )


def confused(document: JSON, evaluation: Path, root: Path, data: Path | None = None) -> tuple[Confused, ...]:
    """The most confused pairs, each with its images of highest loss; `data` is where the split is, if it has moved."""
    predictions = tensors.read(evaluation.parent / document["predictions"]["path"], tensors.PREDICTIONS)
    labels = tensors.get_array(predictions, "labels", np.int64, 1)
    measured = scores(tensors.get_array(predictions, "logits", np.float32, 2), labels)
    losses, answers = measured.losses, measured.answers
    split = splits.read(data or evaluation.parent / document["inputs"]["data"]["path"])
    examples = split.parts[document["data"]["split"]]
    number = {name: place for place, name in enumerate(split.classes)}
    found = []
    for pair in document["confused"]:
        where = np.flatnonzero((labels == number[pair["true"]]) & (answers == number[pair["answered"]]))
        chosen = where[np.argsort(-losses[where], kind="stable")][:EXAMPLES]
        pictures = (
            _picture(
                root, examples[i].path, examples[i].sha256, pair["true"], pair["answered"],
                float(losses[i]), float(np.exp(-losses[i])),
            )
            for i in chosen
        )  # fmt: skip
        found.append(Confused(pair["true"], pair["answered"], pair["n"], pair["share"], tuple(pictures)))
    return tuple(found)


def root_of(document: JSON, evaluation: Path, root: Path | None) -> Path:
    """The images' folder: the one given, or where the evaluation found them."""
    if root:
        return root
    recorded = document.get("root")
    if not isinstance(recorded, str):
        raise DlcvError(f"{evaluation}: does not say where its images are: dlcv eval --force makes it anew")
    return evaluation.parent / recorded
