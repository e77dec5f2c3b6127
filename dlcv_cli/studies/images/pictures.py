"""The images in a report: those that a classifier gets most wrong, and those of which two classifiers disagree."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dlcv_cli.files import splits
from dlcv_cli.report.reported import Disagreement, Gallery, Picture, PictureRow, Reported
from dlcv_cli.results.evaluation import HighLoss, ImageDetails
from dlcv_cli.statistics.metrics import Scores, score_logits
from dlcv_cli.studies.base import Places
from dlcv_cli.studies.images.errors import describe_examples
from dlcv_cli.studies.stored import read_predictions
from dlcv_cli.vision import images
from dlcv_cli.vision.splits import Example

SIDE = 96  # of a thumbnail, in pixels
EXAMPLES = 3  # images shown of each confused pair
CONFUSED, HIGHEST, DISAGREED = 10, 16, 6  # pairs, images with the highest loss, images of each kind of disagreement
FULL = 3  # rows that are shown in full; of more, each gets less


def share_out(most: int, rows: int) -> int:
    """Return how many of something each row shows, so that a page of many rows is not much larger than one of FULL."""
    return max(1, min(most, math.ceil(most * FULL / rows)))


@dataclass(frozen=True)
class _Run:
    """A run's scores (N,) with what they are of."""

    network: Reported
    scores: Scores
    examples: Sequence[Example]
    digests: list[bytes]  # of the examples
    root: Path

    def describe(self, indices: Iterable[int]) -> list[HighLoss]:
        classes = [own.name for own in self.network.evaluation.details.per_class]
        return describe_examples(self.scores, classes, self.examples, indices)


def _read_run(network: Reported, places: Places) -> _Run:
    evaluation = network.evaluation
    arrays = read_predictions(network.file, evaluation)
    path = places.data or network.file.parent / evaluation.data.path
    examples = splits.read_for(path, None, evaluation.trained.fold).parts[evaluation.data.part]
    root = places.root or network.file.parent / evaluation.details.root
    digests = [digest.tobytes() for digest in arrays["examples"]]
    return _Run(network, score_logits(arrays["logits"], arrays["labels"]), examples, digests, root)


def load_pictures(network: Reported, rows: int, places: Places) -> tuple[Gallery, ...]:
    """Return the most confused pairs of classes with some of their images, and the images with the highest loss.

    Args:
        rows: how many rows the page has.
    """
    run, details = _read_run(network, places), network.evaluation.details
    highest = details.highest_loss[: share_out(HIGHEST, rows)]
    pictures = tuple(_load(run.root, example) for example in highest)
    hint = "Each image has its class, the predicted class, and the probability given to its class."
    confused = Gallery("Most confused pairs", "", _load_confused(run, details, share_out(CONFUSED, rows)))
    return confused, Gallery("Images with the highest loss", hint, (PictureRow(pictures, ""),))


def _load_confused(run: _Run, details: ImageDetails, most: int) -> tuple[PictureRow, ...]:
    numbers = {own.name: number for number, own in enumerate(details.per_class)}
    rows = []
    for pair in details.confused[:most]:
        confused = (run.scores.labels == numbers[pair.true]) & (run.scores.predicted == numbers[pair.predicted])
        pictures = _load_highest(run, np.flatnonzero(confused), EXAMPLES)
        text = f"{pair.n:,} images, {100 * pair.share:.1f} % of the class"
        rows.append(PictureRow(pictures, f"{pair.true} taken for {pair.predicted}", text))
    return tuple(rows)


def _load_highest(run: _Run, indices: NDArray[np.int64], most: int) -> tuple[Picture, ...]:
    """Return the pictures with the highest loss among those of these indices."""
    chosen = indices[np.argsort(-run.scores.losses[indices], kind="stable")][:most]
    return tuple(_load(run.root, example) for example in run.describe(chosen.tolist()))


def find_disagreement(pair: tuple[Reported, Reported], rows: int, places: Places) -> Disagreement:
    """Return how often only one of two runs is right, both are, or none, on the images that both have seen.

    A picture's caption has the wrong answer; where both are wrong, that is one.
    """
    ours, theirs = (_read_run(network, places) for network in pair)
    place = {digest: index for index, digest in enumerate(theirs.digests)}
    if ours.digests == theirs.digests:
        mine = others = np.arange(len(ours.digests))
    else:
        shared = [index for index, digest in enumerate(ours.digests) if digest in place]
        mine, others = np.array(shared), np.array([place[ours.digests[index]] for index in shared])
    a, b = ours.scores.right[mine], theirs.scores.right[others]
    alike = ours.scores.predicted[mine] == theirs.scores.predicted[others]
    first, second = (network.name for network in pair)
    kinds: list[tuple[str, NDArray[np.bool_], _Run, NDArray[np.int64]]] = [
        (f"Only {first} is right", a & ~b, theirs, others),
        (f"Only {second} is right", b & ~a, ours, mine),
        ("Both are wrong alike", ~a & ~b & alike, ours, mine),
    ]
    most = share_out(DISAGREED, rows)
    strips = [
        PictureRow(_load_highest(run, indices[mask], most), title, f"{mask.sum():,} images")
        for title, mask, run, indices in kinds
        if mask.any()
    ]
    masks = (a & b, a & ~b, b & ~a, ~a & ~b & alike, ~a & ~b & ~alike)
    return Disagreement(*pair, tuple(int(mask.sum()) for mask in masks), Gallery("", "", tuple(strips)))


def _load(root: Path, example: HighLoss) -> Picture:
    """Return an image with its thumbnail, or with the reason why it has none."""
    try:
        return Picture(example, *make_thumbnail(root / example.path, example.sha256))
    except ValueError as error:
        return Picture(example, problem=str(error))


@lru_cache(maxsize=1024)
def make_thumbnail(path: Path, sha256: str) -> tuple[bytes, tuple[int, int]]:
    """Return an image as a small upright JPEG, and its (width, height).

    Images of a few pixels are enlarged, each pixel a square.

    Raises:
        ValueError: the image is missing or its sha256 is another; the message is the reason in a word.
    """
    if not path.exists():
        raise ValueError("missing")
    data = images.read_image_file(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("changed")
    with images.convert_decoder_errors():
        image = images.decode_image(images.open_image(data))
    image.thumbnail((SIDE, SIDE))
    if (factor := SIDE // max(image.size)) > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue(), image.size
