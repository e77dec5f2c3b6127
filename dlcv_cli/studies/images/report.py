"""What a report shows of classifiers: confusion, recall and calibration, and the images that they get most wrong."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from dlcv_cli.files import splits, tensors
from dlcv_cli.files.recipes import identify_run
from dlcv_cli.report.kinds import Axis, Bars, FigureGroup, Matrix, Reliability
from dlcv_cli.report.reported import Gallery, Picture, Reported, Row
from dlcv_cli.results.evaluation import Evaluation, HighLoss, ImageDetails
from dlcv_cli.statistics.metrics import score_logits
from dlcv_cli.studies.images.errors import describe_examples
from dlcv_cli.studies.stored import read_predictions
from dlcv_cli.vision import images

SIDE = 96  # of a thumbnail, in pixels
EXAMPLES = 3  # images shown of each confused pair
ImageEvaluation = Evaluation[ImageDetails]


def draw_figures(networks: Sequence[Reported]) -> list[FigureGroup]:
    """Return a confusion matrix, recall by class and a calibration plot of each network."""
    evaluations = [(network.name, network.evaluation) for network in networks]
    return [
        FigureGroup(
            "Confusion matrix",
            "Rows are true classes, columns predictions; the stronger the colour, the larger the share of the row.",
            [draw_confusion(*pair) for pair in evaluations],
        ),
        FigureGroup(
            "Recall by class",
            "Recall is the share of a class's images that are classified correctly. The lowest comes first.",
            [draw_recall(*pair) for pair in evaluations],
        ),
        FigureGroup(
            "Calibration",
            "A well-calibrated network lies on the diagonal: of predictions with a confidence of 80 %, 80 % are right. "
            "Below the diagonal it is overconfident. ECE is the mean distance from the diagonal, weighted by images.",
            [draw_calibration(*pair) for pair in evaluations],
        ),
    ]


def draw_confusion(name: str, evaluation: ImageEvaluation) -> Matrix:
    """Return the confusion matrix, each row as shares of its true class."""
    classes = evaluation.details.per_class
    cells = tuple((true, predicted, n, n / classes[true].n) for true, predicted, n in evaluation.details.confusion)
    wrong = [cell for cell in cells if cell[0] != cell[1]]
    names = tuple(row.name for row in classes)
    text = f"Predictions of {name} by true class, {len(names)} classes, as shares of each class. "
    if wrong:
        true, predicted, n, _ = max(wrong, key=lambda cell: cell[2])
        text += f"Most confused: {names[true]} taken for {names[predicted]}, {n} times."
    else:
        text += "No errors."
    return Matrix(f"confusion-{name}", f"Confusion matrix: {name}", text, names, cells)


def draw_recall(name: str, evaluation: ImageEvaluation) -> Bars:
    """Return the recall of each class that has images, lowest first."""
    known = [(row, row.recall) for row in evaluation.details.per_class if row.recall is not None]
    rows = sorted(known, key=lambda pair: (pair[1], pair[0].name))
    values = tuple(recall for _, recall in rows)
    precisions = ["" if row.precision is None else f"{100 * row.precision:.1f}" for row, _ in rows]
    extra = (("precision %", *precisions), ("times predicted", *(str(row.predicted) for row, _ in rows)))
    lowest = ", ".join(f"{row.name} {100 * recall:.0f} %" for row, recall in rows[:3])
    text = f"Recall of {len(rows)} classes by {name}. Lowest: {lowest}. Median: {100 * median(values):.1f} %."
    axis = Axis("recall %", 0, 1, percent=True)
    names, counts = tuple(row.name for row, _ in rows), tuple(row.n for row, _ in rows)
    return Bars(f"recall-{name}", f"Recall by class: {name}", text, axis, names, values, counts, extra)


def draw_calibration(name: str, evaluation: ImageEvaluation) -> Reliability:
    """Return confidence against accuracy in the evaluation's bins."""
    bins = tuple((b.low, b.high, b.n, b.confidence, b.accuracy) for b in evaluation.details.calibration)
    error = evaluation.metrics["expected_calibration_error"]
    confidence = sum(b[2] * b[3] for b in bins) / sum(b[2] for b in bins)
    accuracy = sum(b[2] * b[4] for b in bins) / sum(b[2] for b in bins)
    text = f"Accuracy by confidence of {name} in {len(bins)} bins. Mean confidence {100 * confidence:.1f} %, "
    text += f"accuracy {100 * accuracy:.1f} %; expected calibration error {100 * error:.2f} %."
    return Reliability(f"calibration-{name}", f"Calibration: {name}, ECE {100 * error:.2f} %", text, bins)


def load_pictures(network: Reported, root: Path | None, data: Path | None) -> tuple[Gallery, ...]:
    """Return the most confused pairs of classes with some of their images, and the images with the highest loss.

    Args:
        root: folder of the images; None: the folder that the evaluation names.
        data: the split file; None: the file that the evaluation names.
    """
    root = root or network.file.parent / network.evaluation.details.root
    pictures = tuple(_load(root, example) for example in network.evaluation.details.highest_loss)
    hint = "Each image has its class, the predicted class, and the probability given to its class."
    return _load_confused(network, root, data), Gallery("Images with the highest loss", hint, (Row(pictures),))


def _load_confused(network: Reported, root: Path, data: Path | None) -> Gallery:
    evaluation: ImageEvaluation = network.evaluation
    predictions = read_predictions(network.file, evaluation)
    scores = score_logits(predictions["logits"], predictions["labels"])
    fold = identify_run(tensors.read_metadata(network.checkpoint, tensors.CHECKPOINT)).fold
    path = data or network.file.parent / evaluation.data.path
    examples = splits.read_for(path, None, fold).parts[evaluation.data.part]
    classes = [row.name for row in evaluation.details.per_class]
    numbers = {name: number for number, name in enumerate(classes)}
    rows = []
    for pair in evaluation.details.confused:
        confused = (scores.labels == numbers[pair.true]) & (scores.predicted == numbers[pair.predicted])
        indices = np.flatnonzero(confused)
        highest = indices[np.argsort(-scores.losses[indices], kind="stable")][:EXAMPLES]
        pictures = tuple(_load(root, e) for e in describe_examples(scores, classes, examples, highest))
        text = f"{pair.n:,} images, {100 * pair.share:.1f} % of the class"
        rows.append(Row(pictures, pair.true, pair.predicted, text))
    return Gallery("Most confused pairs", "", tuple(rows))


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
