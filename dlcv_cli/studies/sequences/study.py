"""The sequence study: cells that learn a number from a sequence. Letters: N sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.config import PredictConfig, SeqTrainConfig
from dlcv_cli.context import Context
from dlcv_cli.errors import DlcvError, FileError, SettingError
from dlcv_cli.files import sequences, tensors
from dlcv_cli.files.disk import as_object
from dlcv_cli.files.sequences import SequenceFile
from dlcv_cli.report.axes import Axis, spanning_axis
from dlcv_cli.report.figures import line_over_runs, thin_out
from dlcv_cli.report.kinds import Curves, Density, FigureGroup
from dlcv_cli.report.reported import ReportedRow
from dlcv_cli.results.comparison import Column, format_number
from dlcv_cli.results.evaluation import AnyEvaluation, ByLength, SequenceDetails
from dlcv_cli.sequences.cells import CELLS, Cell, check_parameters
from dlcv_cli.sequences.engines import ENGINES, build_engine
from dlcv_cli.sequences.tasks import TASKS, Sequences, Task
from dlcv_cli.statistics import metrics
from dlcv_cli.statistics.collapse import Collapse, judge_numbers
from dlcv_cli.statistics.means import compute_mean_interval, compute_r2_interval
from dlcv_cli.statistics.significance import estimate_share
from dlcv_cli.studies.base import Array, Arrays, Exported, ExportRequest, Measured, Metric, Prediction, Study
from dlcv_cli.studies.stored import read_predictions

Floats = NDArray[np.float32]
BINS = 48  # of each axis of a figure
# engine -> the packages whose versions its results depend on
PACKAGES = {name: (engine.package, "numpy", "safetensors") for name, engine in ENGINES.items()}


@dataclass(frozen=True)
class Predicted:
    """The predictions of one run and the targets, both (N,)."""

    predictions: Floats
    targets: Floats

    @property
    def errors(self) -> NDArray[np.float64]:
        """Absolute errors (N,)."""
        return metrics.compute_absolute_errors(self.predictions, self.targets)


METRICS: tuple[Metric[Predicted], ...] = (
    Metric(
        Column("mse", "MSE", "MSE", higher_is_better=False),
        value=lambda p: float(np.mean(p.errors**2)),
        interval=lambda p: compute_mean_interval(p.errors**2),
        values=lambda p: p.errors**2,
        tested=True,
    ),
    Metric(
        Column("mae", "MAE", "MAE", higher_is_better=False),
        value=lambda p: float(np.mean(p.errors)),
        interval=lambda p: compute_mean_interval(p.errors),
        values=lambda p: p.errors,
    ),
    Metric(
        Column("close", "within 0.04 %", "share within 0.04", higher_is_better=True, percent=True),
        value=lambda p: float(np.mean(p.errors < metrics.CLOSE)),
        range=(0, 1),
        interval=lambda p: estimate_share(p.errors < metrics.CLOSE),
        values=lambda p: p.errors < metrics.CLOSE,
    ),
    Metric(
        Column("r2", "R2", "R2", higher_is_better=True, small=False),
        value=lambda p: metrics.compute_explained_variance(p.predictions, p.targets),
        range=(-np.inf, 1),
        interval=lambda p: compute_r2_interval(p.predictions, p.targets),
    ),
)


class SequenceStudy(Study[Predicted]):
    """Elman network, LSTM or GRU?"""

    name = "sequences"
    stages = ("seq.train",)
    data_role = "data"
    details = SequenceDetails
    metrics = METRICS
    truth = "targets"
    step = "iteration"
    log_loss = True

    def digest_examples(self, data: Path, fold: int | None) -> dict[str, list[str]]:
        """Return the sha256 of each sequence of each part."""
        parts = sequences.read(data).parts
        return {part: [digest.hex() for digest in sequences.hash_examples(content)] for part, content in parts.items()}

    def repeats_examples(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether the task is of symbols, so that short sequences can be equal by chance."""
        task = metadata.get("task")
        return isinstance(task, str) and task in TASKS and TASKS[task].finite

    def measure(self, checkpoint: Path, data: Path, part: str, context: Context) -> Measured:
        """Predict each sequence of a part."""
        stored, file = tensors.read(checkpoint, tensors.CHECKPOINT), sequences.read(data)
        if stored.metadata.get("task") != file.task:
            trained = stored.metadata.get("task")
            raise DlcvError(f"{checkpoint} was trained on the task {trained!r}, but {data} is of {file.task!r}")
        examples, task = file.parts[part], look_up_task(file)
        predictions, engine, learns = predict_sequences(stored, examples, context)
        if not np.isfinite(predictions).all():
            raise FileError(checkpoint, "its predictions are not finite numbers: damaged, or diverged in training")
        try:
            halves = [task.guess(x) for x in np.split(examples.inputs, np.cumsum(examples.lengths)[:-1])]
        except IndexError:
            raise FileError(data, "damaged: a sequence in which nothing is marked") from None
        collapse = judge_numbers(predictions[None], examples.targets, task.constant, learns)
        return Measured(
            sequences.hash_part(examples),
            len(file.parts["train"].lengths),
            {
                "predictions": predictions,
                "targets": examples.targets,
                "lengths": examples.lengths,
                "baselines": np.array([np.full_like(halves, task.constant), halves], np.float32),
            },
            [f"constant {task.constant:g}", "knows one of the two"],
            collapse,
            SequenceDetails(by_length=measure_by_length(predictions, examples.targets, examples.lengths)),
            PACKAGES[engine],
        )

    def predict(
        self, checkpoint: Path, files: Iterable[Path], config: PredictConfig, explain: Path | None, context: Context
    ) -> Iterator[Prediction]:
        """Predict the number of each `sequence` of CSV or JSON files."""
        if explain:
            raise SettingError("--explain draws heat maps of images, and this checkpoint is of sequences")
        if config.abstain:
            raise SettingError("--abstain is of classes, and this checkpoint is of sequences")
        stored = tensors.read(checkpoint, tensors.CHECKPOINT)
        read_cell(stored)
        weight = stored.arrays.get("rnn.weight_ih_l0")
        for path in files:
            try:
                new = sequences.read_new_sequences(path)
                for name, steps in new.items():
                    if weight is not None and steps.shape[1] != weight.shape[-1]:
                        expected = f"this checkpoint takes {weight.shape[-1]}"
                        raise ValueError(f"sequence {name} has {steps.shape[1]} inputs per step, and {expected}")
            except ValueError as error:
                yield Prediction(path, problem=str(error))
                continue
            lengths = np.array([len(steps) for steps in new.values()])
            inputs = np.concatenate([*new.values()])
            examples = Sequences(inputs, lengths, np.zeros(len(new), np.float32))
            predictions, _, _ = predict_sequences(stored, examples, context)
            for name, prediction in zip(new, predictions.tolist(), strict=True):
                yield Prediction(path, {"sequence": name, "prediction": prediction})

    def export(self, request: ExportRequest) -> Exported:
        """Return a cell as ONNX or TorchScript, checked on sequences of the validation part."""
        from dlcv_cli.studies.sequences.export import export

        return export(request)

    def expected_arrays(self, evaluation: AnyEvaluation) -> dict[str, Array]:
        """Return predictions (N,), targets, lengths and baselines."""
        n = evaluation.data.n
        return {
            "predictions": Array(np.float32, (n,)),
            "targets": Array(np.float32, (n,)),
            "lengths": Array(np.int64, (n,)),
            "baselines": Array(np.float32, (len(evaluation.baselines), n), axis=-1),
        }

    def score(self, arrays: Arrays) -> tuple[Predicted, list[Predicted]]:
        targets = arrays["targets"]
        return Predicted(arrays["predictions"], targets), [Predicted(rule, targets) for rule in arrays["baselines"]]

    def judge(self, scores: Predicted, baseline: Predicted, classes: Sequence[str]) -> Collapse:
        return judge_numbers(scores.predictions[None], scores.targets, float(baseline.predictions[0]))

    def draw_figures(self, rows: Sequence[ReportedRow], reference: str) -> list[FigureGroup]:
        densities = []
        for row in rows:
            arrays = [read_predictions(network.file, network.evaluation) for network in row.networks]
            predictions, targets = (np.concatenate([own[key] for own in arrays]) for key in ("predictions", "targets"))
            densities.append(draw_predictions(row.name, predictions, targets))
        several = any(len(row.networks) > 1 for row in rows)
        return [
            FigureGroup(
                "Predictions and true values",
                "The stronger a cell's colour, the more predictions lie in it; correct ones lie on the diagonal."
                + (" Those of all runs are put together." if several else ""),
                densities,
            ),
            FigureGroup(
                "Where they fail: error by length",
                "Mean squared error over the sequences of each length"
                + (": median of the runs, with their range as a band." if several else "."),
                [draw_error_by_length(rows)],
            ),
        ]


def predict_sequences(stored: tensors.Tensors, examples: Sequences, context: Context) -> tuple[Floats, str, bool]:
    """Return the predictions (N,), the engine's name, and whether the cell learns at all.

    Raises:
        FileError: the checkpoint is damaged, or of a cell that this version lacks.
    """
    from dlcv_cli.studies.sequences.compiled_kernels import prepare_kernels

    cell = read_cell(stored)
    settings = SeqTrainConfig(engine="compiled" if cell.compiled else "torch")
    if cell.compiled:
        prepare_kernels(context.cache, context.reporter)
    try:
        weights = check_parameters(cell, stored.arrays, examples.inputs.shape[1])
        predictions = build_engine(cell, weights, settings).predict(examples)
    except ValueError as error:
        raise FileError(stored.path, f"damaged: {error}") from None
    return predictions, settings.engine, cell.module is not None


def measure_by_length(predictions: Floats, targets: Floats, lengths: NDArray[np.int64]) -> list[ByLength]:
    """Return the metrics of predictions (N,) for the sequences of each length.

    Without R2, which says little within a length and nothing about a single sequence.
    """
    errors, rows = metrics.compute_absolute_errors(predictions, targets), []
    for length in np.unique(lengths):
        own = errors[lengths == length]
        means = {"mse": np.mean(own**2), "mae": np.mean(own), "close": np.mean(own < metrics.CLOSE)}
        rows.append(ByLength(length=int(length), n=len(own), **{key: float(mean) for key, mean in means.items()}))
    return rows


def look_up_task(file: SequenceFile) -> Task:
    """Return a file's task. FileError: this version lacks it, or the sequences have another width."""
    if file.task not in TASKS:
        raise FileError(file.path, f"is of the task {file.task!r}, which this version does not know")
    task, width = TASKS[file.task], file.parts["train"].inputs.shape[1]
    if width != task.inputs:
        raise FileError(file.path, f"damaged: {width} inputs per step, but {file.task} has {task.inputs}")
    return task


def read_cell(stored: tensors.Tensors) -> Cell:
    """Return a checkpoint's cell.

    Raises:
        FileError: it is damaged, this version does not know the cell, or it holds several runs, as files of dlcv 0.1
            could.
    """
    name, seeds = as_object(stored.metadata.get("config")).get("cell"), stored.metadata.get("seeds", [0])
    if not isinstance(name, str) or name not in CELLS:
        raise FileError(stored.path, f"is no checkpoint of a cell that this version knows ({name})")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise FileError(stored.path, "damaged: its metadata lists no seeds")
    if len(seeds) > 1:
        raise FileError(
            stored.path,
            f"holds {len(seeds)} runs in one file, as dlcv 0.1 wrote them: train again with --seeds {len(seeds)}, "
            "which writes one file a run",
        )
    return CELLS[name]


def draw_predictions(name: str, predictions: NDArray[np.floating], targets: NDArray[np.floating]) -> Density:
    """Return predictions (N,) against true values (N,); those beyond an axis are counted at its end."""
    true, predicted = targets.astype(float), predictions.astype(float)
    low, high = float(targets.min()), float(targets.max())
    margin = 0.1 * (high - low) or 0.5
    x = Axis("true value", low, high if high > low else low + 1)
    y = Axis("prediction", low - margin, high + margin)
    inside = predicted.clip(y.low, y.high)
    counts = np.histogram2d(true, inside, bins=BINS, range=((x.low, x.high), (y.low, y.high)))[0].astype(np.int64)
    edges = np.linspace(x.low, x.high, 11)
    tenths = np.digitize(true, edges[1:-1])
    deciles = []
    for tenth in np.unique(tenths):
        chosen = tenths == tenth
        error = float(np.abs(predicted - true)[chosen].mean())
        deciles.append((edges[tenth], edges[tenth + 1], int(chosen.sum()), float(predicted[chosen].mean()), error))
    beyond = int((inside != predicted).sum())
    text = f"{true.size:,} predictions of {name} against the true values; correct ones lie on the diagonal. "
    text += f"Mean absolute error {format_number(float(np.abs(predicted - true).mean()))}."
    text += f" {beyond:,} lie beyond the axis." if beyond else ""
    return Density(f"predicted-{name}", f"Predictions: {name}", text, x, y, counts, tuple(deciles))


def draw_error_by_length(rows: Sequence[ReportedRow]) -> Curves:
    """Return the mean squared error by sequence length, one line per row."""
    lines = []
    for style, row in enumerate(rows):
        details: list[SequenceDetails] = [network.evaluation.details for network in row.networks]
        points = [(own.length, own.mse) for part in details for own in part.by_length]
        line = line_over_runs(row.name, points, style)
        lines.append(thin_out(line, line.x[-1]))
    x = spanning_axis("length", [x for line in lines for x in line.x], whole=True)
    ends = [y for line in lines for y in (*line.y, *(end for band in line.band for end in band))]
    y = spanning_axis("MSE", ends, log=True)
    texts = "; ".join(f"{line.name} {y.label(line.y[0])} to {y.label(line.y[-1])}" for line in lines)
    text = f"Mean squared error from length {x.label(lines[0].x[0])} to {x.label(lines[0].x[-1])}: {texts}."
    return Curves("by-length", "Error by length", text, x, y, tuple(lines))
