"""What a study is: its data, examples, checkpoints, metrics, baselines, collapse rule, tests and figures.

A study is one subclass of Study, and one line in studies/__init__.py. Letters: N examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.config import ExportConfig, PredictConfig
from dlcv_cli.context import Context
from dlcv_cli.errors import SettingError
from dlcv_cli.files.disk import JSON
from dlcv_cli.report.kinds import FigureGroup
from dlcv_cli.report.reported import Disagreement, Gallery, Reported, ReportedRow
from dlcv_cli.results.codec import Struct
from dlcv_cli.results.comparison import Column
from dlcv_cli.results.evaluation import AnyEvaluation, Baseline, Interval
from dlcv_cli.statistics.collapse import Collapse
from dlcv_cli.statistics.means import compute_mean_interval
from dlcv_cli.statistics.paired import Fold

S = TypeVar("S")  # what a study makes of predictions: all that its metrics need
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Metric(Generic[S]):
    """One metric: all that evaluating, comparing, tables and figures need to know of it."""

    column: Column  # its key in files and how it is shown
    value: Callable[[S], float]
    range: tuple[float, float] = (0, np.inf)
    interval: Callable[[S], tuple[float, float]] | None = None  # over the examples; None: no interval is known to hold
    values: Callable[[S], NDArray[Any]] | None = None  # of each example (N,), whose mean it is; None: it is no mean
    strata: Callable[[S], NDArray[np.int64]] | None = None  # of each example (N,): it is the mean of the strata's means
    groups: Callable[[S], NDArray[np.int64] | None] = lambda scores: None  # of each example (N,), if they have any
    tested: bool = False  # whether differences are tested
    of_baselines: bool = True
    applies: Callable[[S], bool] | None = None  # None: always; else the column is absent where it does not

    def describe(self, scores: S, n: int, trained: int) -> Fold:
        """Return what tests of this metric need to know of N examples."""
        return Fold(n, trained, self.strata(scores) if self.strata else None, self.groups(scores))

    def estimate(self, scores: S) -> Interval | None:
        """Return the 95 % interval over the examples, or over their groups; None if none is known to hold."""
        if self.values and self.groups(scores) is not None:
            values = self.values(scores)
            sums = self.describe(scores, len(values), 0).sum_groups(values)
            low, high = np.clip(compute_mean_interval(sums), *self.range).tolist()
            return Interval(low, high)
        return Interval(*self.interval(scores)) if self.interval else None


@dataclass(frozen=True)
class Array:
    """What an array of a predictions file must be: its type, shape, which axis are the examples, and its range."""

    dtype: type[np.generic]
    shape: tuple[int, ...]
    axis: int = 0
    below: int | None = None  # values are integers in 0..below-1


@dataclass(frozen=True)
class Measured:
    """One checkpoint on one part: the predictions' arrays, and what the evaluation says beside the metrics."""

    fingerprint: str  # of the examples
    trained: int  # training examples
    arrays: dict[str, NDArray[Any]]
    baselines: list[str]
    collapse: Collapse
    details: Struct
    packages: tuple[str, ...]  # whose versions the results depend on
    machine: dict[str, Any] = field(default_factory=dict)  # what `run` records of the computation


@dataclass(frozen=True)
class Prediction:
    """What a checkpoint predicts for one file, or for one part of it; or why it cannot."""

    file: Path
    values: dict[str, Any] = field(default_factory=dict)  # by the names of the columns
    problem: str = ""


@dataclass(frozen=True)
class Places:
    """Where a report looks for images and data; None: where the evaluation names them."""

    root: Path | None = None
    data: Path | None = None


@dataclass(frozen=True)
class ExportRequest:
    """A checkpoint to write for other programs, and what the export is checked with."""

    checkpoint: Path
    config: ExportConfig
    record: JSON  # of its origin, which the export carries
    card: str  # the model card, in Markdown
    data: Path | None  # whose validation part has real examples; None: it is not at hand
    context: Context


@dataclass(frozen=True)
class Exported:
    """What an export writes, and how far it is from the checkpoint on the examples that it was checked with."""

    files: dict[str, bytes]  # by name in the output folder; of a single file the name is empty
    differences: dict[str, float]  # the largest, by what was compared
    examples: str  # what they were


class Study(ABC, Generic[S]):
    """One kind of question, with its data, networks and metrics. No method but `measure` imports torch or numba."""

    name: ClassVar[str]
    stages: ClassVar[tuple[str, ...]]  # the stages that write its checkpoints
    data_role: ClassVar[str]  # the role of its data among a checkpoint's inputs
    details: ClassVar[type[Struct]]  # what its evaluations say beside metrics
    metrics: ClassVar[tuple[Metric[Any], ...]]  # the difference to the reference is shown of the first
    truth: ClassVar[str]  # the array of true labels or targets
    step: ClassVar[str]  # what learning curves run over: a field of results.metrics.Record
    classifies: ClassVar[bool] = False  # whether its checkpoints give probabilities of classes
    log_loss: ClassVar[bool] = False  # whether losses span orders of magnitude

    @abstractmethod
    def digest_examples(self, data: Path, fold: int | None) -> dict[str, list[str]]:
        """Return the sha256 of each example of each part of a data file, or of a fold of it.

        Args:
            fold: that a checkpoint was trained on; of data without folds it says nothing.

        Raises:
            FileError: it is no data of this study.
        """

    def repeats_examples(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether the checkpoint's data has so few different examples that equal ones are no leak."""
        return False

    def check_files(self, data: Path, fold: int | None, part: str, context: Context) -> None:
        """Raise FileError unless the files that the data consists of are as they were."""

    @abstractmethod
    def measure(self, checkpoint: Path, data: Path, part: str, context: Context) -> Measured:
        """Predict each example of a part. DlcvError: checkpoint or data are damaged, or do not fit each other."""

    @abstractmethod
    def predict(
        self, checkpoint: Path, files: Iterable[Path], config: PredictConfig, explain: Path | None, context: Context
    ) -> Iterator[Prediction]:
        """Predict what new files hold, in their order and in constant memory.

        Args:
            files: may hold folders. explain: new folder for pictures that explain the predictions.

        Raises:
            DlcvError: the checkpoint is damaged. What is wrong with a file is its prediction's `problem`.
        """

    def export(self, request: ExportRequest) -> Exported:
        """Return a checkpoint as another format, after comparing it with the checkpoint.

        Raises:
            DlcvError: the format's package is missing, or the export gives other numbers than the checkpoint.
            SettingError: this study or network has no such format.
        """
        raise SettingError(f"checkpoints of {self.name} cannot be exported")

    @abstractmethod
    def expected_arrays(self, evaluation: AnyEvaluation) -> dict[str, Array]:
        """Return what the arrays of an evaluation's predictions must be, without `examples`."""

    @abstractmethod
    def score(self, arrays: Arrays) -> tuple[S, list[S]]:
        """Return the scores of a network, and of each baseline."""

    @abstractmethod
    def judge(self, scores: S, baseline: S, classes: Sequence[str]) -> Collapse:
        """Return whether predictions ignore their examples, compared with the first baseline on the same ones."""

    def class_names(self, evaluation: AnyEvaluation) -> list[str]:
        """Return the names of the classes that predictions number."""
        return []

    def list_examples(
        self, data: Path, fold: int | None, evaluation: AnyEvaluation, arrays: Arrays
    ) -> list[dict[str, Any]]:
        """Return a row for each evaluated example: what it is, and what was predicted. FileError: the data is gone."""
        raise SettingError(f"examples are listed of images, and this checkpoint is of {self.name}")

    def list_classes(self, evaluation: AnyEvaluation) -> list[dict[str, Any]]:
        """Return a row for each class: how many examples it has, and how often it is predicted, and rightly."""
        raise SettingError(f"classes are listed of images, and this checkpoint is of {self.name}")

    @abstractmethod
    def draw_figures(self, rows: Sequence[ReportedRow], reference: str) -> list[FigureGroup]:
        """Return the figures of a report beside table and learning curves; `reference` is the name of a row."""

    def load_pictures(self, network: Reported, rows: int, places: Places) -> tuple[Gallery, ...]:
        """Return pictures of single examples for a report that has this number of rows."""
        return ()

    def find_disagreement(self, pair: tuple[Reported, Reported], rows: int, places: Places) -> Disagreement | None:
        """Return on which examples two checkpoints disagree; None: the study has no right and wrong."""
        return None


@dataclass(frozen=True)
class Summary:
    """What an evaluation says of a network and its baselines on one set of examples."""

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    baselines: list[Baseline]


def summarize(study: Study[S], arrays: Arrays, baselines: Sequence[str]) -> Summary:
    """Return metrics and 95 % intervals, over the examples, of the arrays of a network's predictions."""
    own, rules = study.score(arrays)
    metrics = [metric for metric in study.metrics if not metric.applies or metric.applies(own)]
    of_rules = [metric for metric in metrics if metric.of_baselines]
    return Summary(
        *measure(metrics, own),
        [
            Baseline(name=name, metrics=values, intervals=intervals)
            for name, (values, intervals) in zip(baselines, (measure(of_rules, rule) for rule in rules), strict=True)
        ],
    )


def measure(metrics: Sequence[Metric[S]], scores: S) -> tuple[dict[str, float], dict[str, Interval]]:
    """Return the values of metrics, and their 95 % intervals over the examples."""
    values = {metric.column.key: metric.value(scores) for metric in metrics}
    intervals = {metric.column.key: metric.estimate(scores) for metric in metrics}
    return values, {key: interval for key, interval in intervals.items() if interval}
