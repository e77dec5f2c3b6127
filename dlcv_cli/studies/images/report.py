"""The figures of classifiers in a report: confusion, recall by class and calibration. Letters: K classes.

A figure is of a row. Its runs are put together: confusion and calibration are over the predictions of all runs, recall
is their mean.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from dlcv_cli.report.axes import Axis
from dlcv_cli.report.kinds import THIN, AnyFigure, Bin, Dots, FigureGroup, Matrix, Reliability
from dlcv_cli.report.reported import Reported, ReportedRow
from dlcv_cli.results.evaluation import CalibrationBin, ImageDetails
from dlcv_cli.statistics.significance import compute_wilson_interval

MATRIX = 120  # classes; of more, a matrix would be too large to read and to store
CHUNK = 36  # classes in one figure
LISTED = 150  # classes that are all shown; of more, two chunks are
Key = tuple[int, int]  # true class, predicted class


@dataclass(frozen=True)
class Confusion:
    """The predictions of a row's runs: of each class in all, and of each pair of classes that has any."""

    name: str
    classes: tuple[str, ...]
    totals: tuple[int, ...]
    counts: dict[Key, int]

    def share(self, key: Key) -> float:
        """The share of a true class that is predicted as another one, or as itself."""
        return self.counts.get(key, 0) / self.totals[key[0]] if self.totals[key[0]] else 0.0

    @property
    def mistakes(self) -> list[Key]:
        """The pairs of different classes, the most frequent first."""
        wrong = (key for key in self.counts if key[0] != key[1])
        return sorted(wrong, key=lambda key: (-self.counts[key], key))


def draw_figures(rows: Sequence[ReportedRow], reference: str) -> list[FigureGroup]:
    """Return the figures of all rows, the differences to the row with the name `reference` among them."""
    confusions = {row.name: sum_confusion(row) for row in rows}
    base = confusions[reference]
    few = len(base.classes) <= MATRIX
    figures: list[AnyFigure] = []
    if few:
        best_first = sorted(rows, key=lambda row: -row.representative.evaluation.metrics[row.metric])
        others = [confusions[row.name] for row in best_first if row.name != reference]
        figures += [draw_confusion_difference(own, base) for own in others if own.counts != base.counts]
        figures += map(draw_confusion, confusions.values())
    elif any(own.mistakes for own in confusions.values()):
        figures.append(draw_mistakes([*confusions.values()]))
    several = any(len(row.networks) > 1 for row in rows)
    return [
        FigureGroup("Where they fail: confused classes", _explain_confusion(few, several, len(rows) > 1), figures),
        FigureGroup(
            "Where they fail: recall by class",
            "Recall is the share of a class's images that are classified correctly"
            + (", and the mean over runs" if several else "")
            + ". The order is that of the mean over all rows, the lowest first.",
            draw_recall(rows),
        ),
        FigureGroup(
            "Calibration",
            "A well-calibrated network lies on the dashed diagonal: of predictions with a confidence of 80 %, 80 % are "
            "right; below it, it is overconfident. ECE is the mean distance from the diagonal, weighted by images. "
            "Bars are 95 % intervals (Wilson)"
            + (" of as many different images as the runs share; the ECE is the mean over runs" if several else "")
            + f". Bins of fewer than {THIN} images are faint dots, without interval and line.",
            [draw_calibration(row) for row in rows],
        ),
    ]


def _explain_confusion(few: bool, several: bool, differ: bool) -> str:
    if not few:
        return f"The {CHUNK} most frequent mistakes of all rows, as shares of the true class."
    text = "True classes are in rows, predictions in columns; the stronger the blue, the larger the share of the row."
    text += " Runs are added up." if several else ""
    if differ:
        text += " In a difference, blue is more often and orange less often than the reference: good is blue on the "
        text += "diagonal and orange beside it."
    return text


def sum_confusion(row: ReportedRow) -> Confusion:
    """Return the confusion of all runs of a row together."""
    counts: Counter[Key] = Counter()
    for details in _list_details(row):
        for true, predicted, n in details.confusion:
            counts[true, predicted] += n
    classes = tuple(own.name for own in row.representative.evaluation.details.per_class)
    totals = [0] * len(classes)
    for (true, _), n in counts.items():
        totals[true] += n
    return Confusion(row.name, classes, tuple(totals), dict(counts))


def _list_details(row: ReportedRow) -> list[ImageDetails]:
    return [network.evaluation.details for network in row.networks]


def draw_confusion(of: Confusion) -> Matrix:
    """Return the confusion matrix, each row as shares of its true class."""
    cells = tuple((*key, of.counts[key], of.share(key)) for key in sorted(of.counts))
    text = f"Predictions of {of.name} by true class, {len(of.classes)} classes, as shares of each class. "
    if mistakes := of.mistakes:
        true, predicted = mistakes[0]
        text += (
            f"Most confused: {of.classes[true]} taken for {of.classes[predicted]}, {of.counts[mistakes[0]]:,} times."
        )
    else:
        text += "No errors."
    return Matrix(f"confusion-{of.name}", f"Confusion matrix: {of.name}", text, of.classes, cells)


def draw_confusion_difference(of: Confusion, base: Confusion) -> Matrix:
    """Return by how much more often than the reference a row predicts each class, as shares of each true class."""
    shares = {key: of.share(key) - base.share(key) for key in sorted(of.counts.keys() | base.counts.keys())}
    cells = tuple((*key, of.counts.get(key, 0), share) for key, share in shares.items() if share)
    title = f"Confusion: {of.name} minus {base.name}"
    text = f"By how much more often {of.name} predicts each class than {base.name}, by true class. "
    if cells:
        true, predicted, _, share = max(cells, key=lambda cell: (abs(cell[3]), cell[:2]))
        text += f"Largest: {of.classes[true]} is predicted as {of.classes[predicted]} {100 * share:+.1f} points."
    else:
        text += "No difference."
    return Matrix(f"confusion-{of.name}-minus-{base.name}", title, text, of.classes, cells, signed=True)


def draw_mistakes(confusions: Sequence[Confusion]) -> Dots:
    """Return the most frequent mistakes of all rows, as shares of the true class."""
    sums: dict[Key, float] = defaultdict(float)
    for own in confusions:
        for key in own.mistakes[: 10 * CHUNK]:  # a mistake beyond these is not among the most frequent of all
            sums[key] += own.counts[key] / sum(own.totals)
    keys = sorted(sums, key=lambda key: (-sums[key], key))[:CHUNK]
    classes = confusions[0].classes
    names = tuple(f"{classes[true]} → {classes[predicted]}" for true, predicted in keys)
    series = tuple((own.name, tuple(map(own.share, keys))) for own in confusions)
    axis = Axis("share %", 0, max(value for _, values in series for value in values) * 1.04, percent=True)
    extra = tuple((f"{own.name}, n", tuple(f"{own.counts.get(key, 0):,}" for key in keys)) for own in confusions)
    text = f"The {len(keys)} most frequent mistakes of {', '.join(own.name for own in confusions)}. First: {names[0]}."
    return Dots("confusions", "Most frequent mistakes", text, axis, names, series, extra, "taken for")


def draw_recall(rows: Sequence[ReportedRow]) -> list[Dots]:
    """Return the recall of each class of all rows, lowest mean first; of many classes the lowest and most different."""
    recalls = {
        row.name: [_mean(own) for own in zip(*(_list_recalls(n) for n in row.networks), strict=True)] for row in rows
    }
    means = {k: fmean(own) for k, own in enumerate(zip(*recalls.values(), strict=True)) if None not in own}
    ordered = sorted(means, key=lambda k: (means[k], k))
    if len(ordered) <= LISTED:
        count = math.ceil(len(ordered) / CHUNK)
        size = math.ceil(len(ordered) / count)
        chunks = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        titles = [
            f"Recall by class, {number} of {count}" if count > 1 else "Recall by class"
            for number in range(1, count + 1)
        ]
        return [_draw_classes(title, part, rows, recalls) for title, part in zip(titles, chunks, strict=True)]
    figures = [_draw_classes(f"Recall: the {CHUNK} lowest of {len(ordered):,} classes", ordered[:CHUNK], rows, recalls)]
    if len(rows) > 1:
        ranges = {k: max(own) - min(own) for k in ordered if (own := [recalls[row.name][k] or 0.0 for row in rows])}
        widest = set(sorted(ordered, key=lambda k: (-ranges[k], k))[:CHUNK])
        title = f"Recall: the {CHUNK} classes in which rows differ most"
        figures.append(_draw_classes(title, [k for k in ordered if k in widest], rows, recalls))
    return figures


def _list_recalls(network: Reported) -> list[float | None]:
    details: ImageDetails = network.evaluation.details
    return [own.recall for own in details.per_class]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _draw_classes(
    title: str, classes: Sequence[int], rows: Sequence[ReportedRow], recalls: dict[str, list[float | None]]
) -> Dots:
    details = [_list_details(row) for row in rows]
    names = tuple(details[0][0].per_class[k].name for k in classes)
    series = tuple((row.name, tuple(recalls[row.name][k] for k in classes)) for row in rows)
    counts = tuple(f"{fmean(own.per_class[k].n for own in details[0]):,.4g}" for k in classes)
    extra = [("images", counts)]
    for row, runs in zip(rows, details, strict=True):
        precisions = (_mean([own.per_class[k].precision for own in runs]) for k in classes)
        extra.append((f"{row.name}, precision %", tuple("" if p is None else f"{100 * p:.1f}" for p in precisions)))
    lowest = [
        f"{name} {' and '.join(f'{100 * v:.0f} %' for _, values in series if (v := values[k]) is not None)}"
        for k, name in enumerate(names[:3])
    ]
    medians = ", ".join(f"{name} {100 * median(v for v in values if v is not None):.1f} %" for name, values in series)
    text = f"Recall of {len(names)} classes by {', '.join(row.name for row in rows)}. First: {'; '.join(lowest)}. "
    text += f"Medians of these classes: {medians}."
    key = title.lower().replace(":", "").replace(",", "").replace(" ", "-")
    return Dots(key, title, text, Axis("recall %", 0, 1, percent=True), names, series, tuple(extra))


def draw_calibration(row: ReportedRow) -> Reliability:
    """Return confidence against accuracy in the bins of all runs together."""
    folds = len(row.by_fold())
    parts: dict[float, list[CalibrationBin]] = defaultdict(list)
    for details in _list_details(row):
        for part in details.calibration:
            parts[part.low].append(part)
    bins = []
    for low in sorted(parts):
        own = parts[low]
        n = sum(part.n for part in own)
        confidence, accuracy = (sum(p.n * getattr(p, key) for p in own) / n for key in ("confidence", "accuracy"))
        images = max(1, round(n * folds / len(row.networks)))  # runs of a fold see the same images
        interval = compute_wilson_interval(round(accuracy * images), images)
        bins.append(Bin(low, own[0].high, n, images, confidence, accuracy, interval))
    total = sum(b.n for b in bins)
    confidence, accuracy = (sum(b.n * getattr(b, key) for b in bins) / total for key in ("confidence", "accuracy"))
    error = fmean(network.evaluation.metrics["expected_calibration_error"] for network in row.networks)
    text = f"Accuracy by confidence of {row.name} in {len(bins)} bins. Mean confidence {100 * confidence:.1f} %, "
    text += f"accuracy {100 * accuracy:.1f} %; expected calibration error {100 * error:.2f} %."
    return Reliability(
        f"calibration-{row.name}", f"Calibration: {row.name}, ECE {100 * error:.2f} %", text, tuple(bins)
    )
