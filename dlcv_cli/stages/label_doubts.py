"""`data doubts`: a split file in, its images by how wrong their label looks out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlcv_cli.config import DoubtsConfig, HeadConfig
from dlcv_cli.context import Context, Outcome, count_processors
from dlcv_cli.errors import DlcvError, FileError, list_names, look_up
from dlcv_cli.files import splits
from dlcv_cli.files.disk import check_output
from dlcv_cli.files.splits import Split
from dlcv_cli.report.doubts_page import DoubtedImage, DoubtsPage, write_doubts_page
from dlcv_cli.stages.evaluate import format_csv, require_replaceable, write_text
from dlcv_cli.stages.train_images import start_head
from dlcv_cli.stages.weights import locate_weights
from dlcv_cli.statistics.label_doubts import LabelDoubts, find_doubts
from dlcv_cli.studies.images.features import FrozenLayers
from dlcv_cli.studies.images.label_doubts import assign_folds, pool_features, predict_out_of_fold
from dlcv_cli.studies.images.pictures import make_thumbnail
from dlcv_cli.studies.images.predictor import load_part, place_and_split, prepare
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.inference import resolve_precision
from dlcv_cli.vision.splits import PARTS, Example

SHOWN = 200  # images on the page
DIGITS = 6  # of a probability


@dataclass(frozen=True)
class Judged:
    """Examples, their probabilities (N, K), and what these say of their labels."""

    examples: Sequence[Example]
    parts: Sequence[str]  # of each example
    classes: Sequence[str]
    probabilities: NDArray[np.float64]
    doubts: LabelDoubts

    def rank(self) -> list[int]:
        """Return the numbers of the examples by score, the most doubtful first; equal ones by path."""
        return sorted(range(len(self.examples)), key=lambda i: (self.doubts.scores[i], self.examples[i].path))

    def describe(self, i: int) -> dict[str, Any]:
        """Return the row of the CSV about an example."""
        label, suggested = self.examples[i].label, int(self.doubts.suggested[i])
        return {
            "file": self.examples[i].path,
            "part": self.parts[i],
            "class": self.classes[label],
            "suggested": self.classes[suggested],
            "class_probability": float(self.probabilities[i, label]),
            "suggested_probability": float(self.probabilities[i, suggested]),
            "doubt": int(self.doubts.doubted[i]),
        }


def find_label_doubts(
    split: Path,
    output: Path,
    config: DoubtsConfig,
    *,
    weights: str | None = None,
    page: Path | None = None,
    context: Context = Context(),
) -> Outcome:
    """Write a CSV of the images of a split, those whose label looks most wrong first.

    Args:
        weights: as in `train_head`.
        page: HTML file for the images in doubt.

    Raises:
        DlcvError: bad inputs, or an output that exists with other content.
    """
    look_up(ARCHITECTURES, config.arch, "network")
    check_output(output, ".csv")
    if page:
        check_output(page, ".html")
    data = splits.read_each(split, context.root)[0]  # each fold has all images
    parts = choose_parts(data, config)
    x = compute_features(data, parts, config, weights, context)
    judged = judge(data.classes, parts, x, config, context)
    ranked = judged.rank()
    doubts = [i for i in ranked if judged.doubts.doubted[i]]
    pairs = _count_pairs(judged, doubts)
    texts = {output: format_csv([judged.describe(i) for i in ranked])}
    if page:
        shown = [_show(judged, i, data.root) for i in doubts[:SHOWN]]
        texts[page] = write_doubts_page(DoubtsPage(split.name, len(ranked), len(doubts), pairs, shown))
    for path, text in texts.items():  # of all, before one is written
        require_replaceable(path, text, context.force)
    changed = [write_text(path, text, context.force) for path, text in texts.items()]
    summary = {
        "images": len(ranked),
        "doubts": len(doubts),
        "pairs": [{"class": label, "suggested": suggested, "images": count} for label, suggested, count in pairs],
        **({"page": str(page)} if page else {}),
    }
    return Outcome(output, any(changed), summary)


def choose_parts(data: Split, config: DoubtsConfig) -> dict[str, list[Example]]:
    """Return the examples that are judged, by part: of the part that the settings name, or of all that have any."""
    names = [config.part] if config.part else [part for part in PARTS if data.parts[part]]
    return {name: data.parts[name] for name in names}


def compute_features(
    data: Split, parts: Iterable[str], config: DoubtsConfig, weights: str | None, context: Context
) -> Tensor:
    """Return what a linear head takes (N, C) float32, of the images of these parts, one part after the other."""
    reporter = context.reporter
    file = locate_weights(weights, ARCHITECTURES[config.arch])
    device, threads = prepare(context.machine)
    head = HeadConfig(arch=config.arch, resize=config.resize, image_size=config.image_size)
    start = start_head(file, head, len(data.classes), reporter)
    network = place_and_split(start.network, start.arch, start.trained, device)
    frozen = FrozenLayers(network, start.arch, device, resolve_precision(config.precision, device), threads)
    images = [load_part(data, part, start.preprocessing, reporter) for part in parts]
    return pool_features(frozen, images, context)


def judge(
    classes: Sequence[str], examples: Mapping[str, Sequence[Example]], x: Tensor, config: DoubtsConfig, context: Context
) -> Judged:
    """Return what heads on features `x` (N, C) say of the labels of the examples of these parts, in their order.

    Raises:
        DlcvError: fewer than two classes have images that can be judged.
    """
    everyone = [(part, example) for part, own in examples.items() for example in own]
    folds = assign_folds([example for _, example in everyone], config.folds, config.seed)
    labels = np.array([example.label for _, example in everyone], np.int64)
    several = np.array([len(set(folds[labels == label])) > 1 for label in range(len(classes))])
    judged = several[labels]  # the head of a fold has to have seen others of the class
    if several.sum() < 2:
        raise DlcvError("fewer than two classes have images that can be judged: each needs two different images")
    if not judged.all():
        names = list_names(repr(classes[label]) for label in np.unique(labels[~judged]))
        context.reporter.warn(
            f"{(~judged).sum():,} images are not judged, because their class has no others that differ: {names}"
        )
    labels, everyone = labels[judged], [own for own, is_judged in zip(everyone, judged, strict=True) if is_judged]
    folds = np.unique(folds[judged], return_inverse=True)[1]  # without empty ones
    x = x[torch.from_numpy(judged)]
    places = [torch.from_numpy(own).to(x.device) for own in (labels, folds)]
    threads = context.machine.threads or count_processors()
    result = predict_out_of_fold(x, places[0], len(classes), places[1], threads, context.reporter)
    context.reporter.note(f"{len(set(folds))} linear heads with weight decay {result.weight_decay:g}")
    probabilities = result.probabilities.round(DIGITS)
    parts, own = [part for part, _ in everyone], [example for _, example in everyone]
    return Judged(own, parts, classes, probabilities, find_doubts(probabilities, labels))


def _count_pairs(judged: Judged, doubts: Sequence[int]) -> list[tuple[str, str, int]]:
    """Return (class, suggested class, number of doubts), the most frequent pairs first."""
    names, suggested = judged.classes, judged.doubts.suggested
    pairs = Counter((names[judged.examples[i].label], names[suggested[i]]) for i in doubts)
    return [(*pair, count) for pair, count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))]


def _show(judged: Judged, i: int, root: Path) -> DoubtedImage:
    """Return a doubted image with its thumbnail. FileError: it has changed since it was read."""
    example, row = judged.examples[i], judged.describe(i)
    try:
        jpeg, size = make_thumbnail(root / example.path, example.sha256)
    except ValueError as error:
        raise FileError(root / example.path, f"{error} while it was in use; make a new split") from None
    probabilities = row["class_probability"], row["suggested_probability"]
    return DoubtedImage(example.path, row["part"], row["class"], row["suggested"], *probabilities, jpeg, size)
