"""`*.PART.predictions.safetensors`, schema dlcv.predictions/1: what a network answered to each example of a part."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dlcv_cli.errors import FileError
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import JSON, hash_file
from dlcv_cli.results.documents import EVAL


def read(evaluation: Path, document: JSON) -> tensors.Arrays:
    """The predictions that an evaluation belongs to, checked against its sha256, n and classes.

    Returns: images: logits (N, K), labels (N,); sequences: predictions (N,) or (runs, N), targets (N,), lengths (N,);
        both: baselines (R, N), examples (N, 32) uint8.

    Raises:
        FileError: they are missing, not the ones, or not as they should be.
    """
    path = evaluation.with_name(Path(document["predictions"]["path"]).name)
    remedy = "evaluate again with --force"
    if not path.is_file():
        raise FileError(path, f"no such file, though {evaluation} ({EVAL}) goes with it: {remedy}")
    if hash_file(path) != document["predictions"]["sha256"]:
        raise FileError(path, f"is not the file that {evaluation} goes with: {remedy}")
    file = tensors.read(path, tensors.PREDICTIONS)
    n = document["data"]["n"]
    wanted: dict[str, tuple[type[np.generic], tuple[int, ...]]]
    answer: type[np.generic] = np.float32
    if document["data"]["study"] == "images":
        classes = len(document["per_class"])
        wanted = {"logits": (np.float32, (n, classes)), "labels": (np.int64, (n,))}
        answer = np.int64
    else:
        classes, runs = 0, len(document["seeds"])
        wanted = {"predictions": (np.float32, (runs, n) if runs > 1 else (n,))}
        wanted |= {"targets": (np.float32, (n,)), "lengths": (np.int64, (n,))}
    wanted |= {"baselines": (answer, (len(document["baselines"]), n)), "examples": (np.uint8, (n, 32))}
    for name, (dtype, shape) in wanted.items():
        found = tensors.get_array(file, name, dtype, len(shape))
        if found.shape != shape:
            raise FileError(path, f"damaged: tensor {name!r} is {found.shape}, its evaluation says {shape}")
    for name in ("labels", "baselines") if classes else ():
        values = file.arrays[name]
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise FileError(path, f"damaged: {name} beyond its {classes} classes")
    return file.arrays
