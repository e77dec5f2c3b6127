"""The image study: classifiers, and what transfer learning buys. Letters: N images, K classes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from dlcv_cli.config import PredictConfig
from dlcv_cli.context import Context, Reporter, map_in_threads
from dlcv_cli.errors import DlcvError, FileError, SettingError, list_names
from dlcv_cli.files import splits
from dlcv_cli.files.disk import make_relative
from dlcv_cli.files.splits import Split
from dlcv_cli.report.kinds import FigureGroup
from dlcv_cli.report.reported import Disagreement, Gallery, Reported, ReportedRow
from dlcv_cli.results.comparison import Column
from dlcv_cli.results.evaluation import AnyEvaluation, ImageDetails
from dlcv_cli.statistics import metrics
from dlcv_cli.statistics.collapse import Collapse, judge_classes
from dlcv_cli.statistics.means import compute_mean_interval
from dlcv_cli.statistics.metrics import Scores, score_logits, score_predictions
from dlcv_cli.statistics.recalls import compute_recall_interval
from dlcv_cli.statistics.significance import estimate_share
from dlcv_cli.studies.base import Array, Arrays, Exported, ExportRequest, Measured, Metric, Places, Prediction, Study
from dlcv_cli.studies.images.errors import describe_errors, number_groups
from dlcv_cli.studies.images.near_duplicates import measure_without
from dlcv_cli.vision.datasets import list_images

if TYPE_CHECKING:
    from dlcv_cli.studies.images.predictor import ImageCheckpoint

CHUNK = 2048  # images that are predicted before more are listed
TOP = 5

METRICS: tuple[Metric[Scores], ...] = (
    Metric(
        Column("top1_accuracy", "top-1 %", "top-1 accuracy", higher_is_better=True, percent=True),
        value=lambda s: float(s.right.mean()),
        range=(0, 1),
        interval=lambda s: estimate_share(s.right),
        values=lambda s: s.right,
        groups=lambda s: s.groups,
        tested=True,
    ),
    Metric(
        Column("top5_accuracy", "top-5 %", "top-5 accuracy", higher_is_better=True, percent=True),
        value=lambda s: float(s.in_five.mean()),
        range=(0, 1),
        interval=lambda s: estimate_share(s.in_five),
        values=lambda s: s.in_five,
        groups=lambda s: s.groups,
        of_baselines=False,
        applies=lambda s: s.classes > TOP,  # five of five classes are always right
    ),
    Metric(
        Column("mean_per_class_recall", "per-class recall %", "per-class recall", higher_is_better=True, percent=True),
        value=lambda s: metrics.compute_mean_recall(s.right, s.labels),
        range=(0, 1),
        interval=lambda s: compute_recall_interval(s.right, s.labels),
        values=lambda s: s.right,
        groups=lambda s: s.groups,
        strata=lambda s: s.labels,
        tested=True,
    ),
    Metric(  # none of the usual intervals holds for it (docs/statistics.md)
        Column("expected_calibration_error", "ECE %", "calibration error", higher_is_better=False, percent=True),
        value=lambda s: metrics.compute_calibration_error(s),
        range=(0, 1),
        of_baselines=False,
    ),
    Metric(
        Column("loss", "loss", "loss", higher_is_better=False),
        value=lambda s: float(s.losses.mean()),
        interval=lambda s: compute_mean_interval(s.losses),
        values=lambda s: s.losses,
        groups=lambda s: s.groups,
        of_baselines=False,
    ),
)


class ImageStudy(Study[Scores]):
    """Pretrained head, finetuning or random weights?"""

    name = "images"
    stages = ("vgg.head", "vgg.finetune", "vgg.scratch", "calibrate")
    data_role = "split"
    details = ImageDetails
    metrics = METRICS
    truth = "labels"
    step = "epoch"
    classifies = True

    def digest_examples(self, data: Path, fold: int | None) -> dict[str, list[str]]:
        """Return the sha256 of each image's file."""
        parts = splits.read_for(data, None, fold).parts
        return {part: [example.sha256 for example in own] for part, own in parts.items()}

    def check_files(self, data: Path, fold: int | None, part: str, context: Context) -> None:
        """Raise FileError unless each image of a part exists unchanged in the context's root."""
        require_images(splits.read_for(data, context.root, fold), part, context.reporter)

    def measure(self, checkpoint: Path, data: Path, part: str, context: Context) -> Measured:
        """Compute the logits of each image of a part."""
        from dlcv_cli.studies.images.predictor import PACKAGES, Predictor, load_part, open_checkpoint, require_classes

        stored = open_checkpoint(checkpoint)
        split = splits.read_for(data, context.root, stored.fold)
        require_classes(checkpoint, stored.classes, data, split.classes)
        predictor = Predictor(stored, context)
        images = load_part(split, part, stored.preprocessing, context.reporter)
        logits = np.concatenate([batch.numpy() for batch in predictor.predict(images)])
        if not np.isfinite(logits).all():
            raise FileError(checkpoint, "its predictions are not finite numbers: damaged, or diverged in training")
        scores, classes = score_logits(logits, images.labels), split.classes
        baseline = metrics.find_largest_class(np.array([example.label for example in split.parts["train"]], np.int64))
        of_baseline = score_predictions(np.full(len(images.labels), baseline), images.labels, len(classes))
        collapse = self.judge(scores, of_baseline, classes)
        arrays = {"logits": logits, "labels": images.labels, "baselines": np.full((1, len(images.labels)), baseline)}
        groups = number_groups(split.parts[part])
        if groups is not None:
            arrays["groups"] = groups
        details = describe_errors(scores, classes, split.parts[part], make_relative(split.root, checkpoint.parent))
        return Measured(
            splits.hash_part(classes, split.parts[part]),
            len(split.parts["train"]),
            arrays,
            [f"always {classes[baseline]}"],
            collapse,
            msgspec.structs.replace(
                details,
                groups=0 if groups is None else int(groups.max()) + 1,
                near_duplicates=measure_without(split, part, scores.right),
            ),
            PACKAGES,
            predictor.describe(),
        )

    def predict(
        self, checkpoint: Path, files: Iterable[Path], config: PredictConfig, explain: Path | None, context: Context
    ) -> Iterator[Prediction]:
        """Predict the class of each image, also of those below folders: `class`, its `probability`, and the `top`.

        With `config.abstain`, the class of an image is None where the checkpoint is not sure enough.
        """
        from dlcv_cli.studies.images.predictor import Predictor, open_checkpoint

        stored = open_checkpoint(checkpoint)
        explainer = None
        if explain:
            from dlcv_cli.studies.images.explain import Explainer

            # a network of its own, because the predictor changes where and how its network computes
            explainer = Explainer(open_checkpoint(checkpoint), explain, config.of_class, context.force)
        threshold = choose_threshold(stored, config.abstain, context.reporter) if config.abstain else None
        predictor, expanded = Predictor(stored, context), list_images(files)
        while chunk := list(itertools.islice(expanded, CHUNK)):
            for done, (path, row) in enumerate(predictor.predict_files(chunk), 1):
                context.reporter.progress(f"predicting with {checkpoint.name}", done, len(chunk))
                if isinstance(row, str):
                    yield Prediction(path, problem=row)
                    continue
                shares, numbers = row.softmax(0).topk(min(config.top, len(stored.classes)))
                ranked = [
                    {"class": stored.classes[k], "probability": share}
                    for k, share in zip(numbers.tolist(), shares.tolist(), strict=True)
                ]
                unsure = {"class": None} if threshold is not None and shares[0] <= threshold else {}
                drawn = {"heat_map": str(explainer.draw(path))} if explainer else {}
                yield Prediction(path, {**ranked[0], **unsure, "top": ranked, **drawn})

    def export(self, request: ExportRequest) -> Exported:
        """Return a classifier as ONNX, TorchScript or timm's folder, checked on images of the validation part."""
        from dlcv_cli.studies.images.export import export

        return export(request)

    def expected_arrays(self, evaluation: AnyEvaluation) -> dict[str, Array]:
        """Return logits (N, K), labels (N,) and baselines (R, N)."""
        n, classes, groups = evaluation.data.n, len(evaluation.details.per_class), evaluation.details.groups
        grouped = {"groups": Array(np.int64, (n,), below=groups)} if groups else {}
        return {
            **grouped,
            "logits": Array(np.float32, (n, classes)),
            "labels": Array(np.int64, (n,), below=classes),
            "baselines": Array(np.int64, (len(evaluation.baselines), n), axis=-1, below=classes),
        }

    def list_examples(
        self, data: Path, fold: int | None, evaluation: AnyEvaluation, arrays: Arrays
    ) -> list[dict[str, Any]]:
        """Return file, class, predicted class with its probability, and loss in nats, of each image."""
        scores, classes = score_logits(arrays["logits"], arrays["labels"]), self.class_names(evaluation)
        examples = splits.read_for(data, None, fold).parts[evaluation.data.part]
        if [example.sha256 for example in examples] != [digest.tobytes().hex() for digest in arrays["examples"]]:
            raise FileError(data, "has other images than those that were evaluated; evaluate again with --force")
        return [
            {
                "file": example.path,
                "class": classes[scores.labels[i]],
                "predicted": classes[scores.predicted[i]],
                "probability": float(scores.confidences[i]),
                "loss": float(scores.losses[i]),
            }
            for i, example in enumerate(examples)
        ]

    def list_classes(self, evaluation: AnyEvaluation) -> list[dict[str, Any]]:
        """Return the evaluation's `per_class` as rows."""
        return [msgspec.to_builtins(own) for own in evaluation.details.per_class]

    def score(self, arrays: Arrays) -> tuple[Scores, list[Scores]]:
        """Score logits; or, of another program that gives no probabilities, the predicted classes."""
        logits, labels = arrays.get("logits"), arrays["labels"]
        if logits is None:
            classes = 1 + int(max(labels.max(), arrays["predicted"].max()))
            own = score_predictions(arrays["predicted"], labels, classes)
        else:
            own = score_logits(logits, labels)
        rules = [score_predictions(predicted, labels, own.classes) for predicted in arrays["baselines"]]
        groups = arrays.get("groups")
        return replace(own, groups=groups), [replace(rule, groups=groups) for rule in rules]

    def judge(self, scores: Scores, baseline: Scores, classes: Sequence[str]) -> Collapse:
        predicted, right = (
            np.bincount(own, minlength=len(classes)) for own in (scores.predicted, scores.labels[scores.right])
        )
        return judge_classes(predicted, right, scores.labels, int(baseline.predicted[0]), [*classes])

    def class_names(self, evaluation: AnyEvaluation) -> list[str]:
        return [row.name for row in evaluation.details.per_class]

    def draw_figures(self, rows: Sequence[ReportedRow], reference: str) -> list[FigureGroup]:
        from dlcv_cli.studies.images.report import draw_figures

        return draw_figures(rows, reference)

    def load_pictures(self, network: Reported, rows: int, places: Places) -> tuple[Gallery, ...]:
        from dlcv_cli.studies.images.pictures import load_pictures

        return load_pictures(network, rows, places)

    def find_disagreement(self, pair: tuple[Reported, Reported], rows: int, places: Places) -> Disagreement:
        from dlcv_cli.studies.images.pictures import find_disagreement

        return find_disagreement(pair, rows, places)


def choose_threshold(checkpoint: ImageCheckpoint, error: float, reporter: Reporter) -> float:
    """Return the probability above which at most this share of the checkpoint's answers is wrong, and report it.

    Raises:
        SettingError: the checkpoint is not calibrated.
        DlcvError: its validation images do not show that it is wrong so rarely.
    """
    if not checkpoint.calibration:
        raise SettingError(
            f"--abstain needs a calibrated checkpoint, and {checkpoint.path} is not: run dlcv calibrate "
            f"{checkpoint.path} first, and predict with what it writes"
        )
    reliability = checkpoint.calibration.reliability
    chosen = reliability.choose_threshold(error)
    if not chosen:
        raise DlcvError(
            f"{checkpoint.path}: its {reliability.n:,} validation images cannot show that at most {100 * error:g} % of "
            f"its answers are wrong, however sure it is; they can show {100 * reliability.lowest_error:.2g} %: ask for "
            "that or more, or make a split with more validation images"
        )
    counts = f"{chosen.answered:,} of {chosen.n:,} validation images, {chosen.wrong:,} of them wrongly"
    if chosen.answered == chosen.n:
        reporter.note(f"--abstain {error:g} asks for no more than the checkpoint does: it answers {counts}")
    else:
        reporter.note(f"answers need a probability above {chosen.probability:.3f}: that answers {counts}")
    if checkpoint.tries:
        reporter.warn(
            f"the validation images also chose among {checkpoint.tries} settings of this checkpoint, so of new images "
            "more may be answered wrongly"
        )
    return chosen.probability


def require_images(split: Split, part: str, reporter: Reporter) -> list[Path]:
    """Return the paths of one part's images, after checking each file against its sha256.

    Raises:
        FileError: the part is empty, or images are missing or changed; names them.
    """
    from dlcv_cli.vision.images import hash_image_file

    def hash_or_none(path: Path) -> str | None:
        try:
            return hash_image_file(path)
        except ValueError:
            return None

    examples = split.parts[part]
    if not examples:
        raise FileError(split.path, f"has no {part} images")
    if not split.root.is_dir():
        raise FileError(split.path, f"its image folder {split.root} does not exist; give the folder with --root")
    paths = [split.root / e.path for e in examples]
    hashes = map_in_threads(hash_or_none, paths, f"checking {part} images", reporter)
    problems = [
        f"{e.path} ({'changed' if digest else 'missing'})"
        for e, digest in zip(examples, hashes, strict=True)
        if digest != e.sha256
    ]
    if problems:
        raise FileError(
            split.path,
            f"{len(problems)} of its images in {split.root} are missing or changed: {list_names(problems)}; "
            "restore them, give the folder with --root, or make a new split",
        )
    return paths
