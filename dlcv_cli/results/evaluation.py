"""`*.eval.json`, schema dlcv.eval/3: what one checkpoint achieves on one part of its data."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import msgspec

from dlcv_cli.results.codec import Count, Digest, Document, Finite, NonNegative, Setting, Share, Struct
from dlcv_cli.results.metrics import InputFile, OutputFile
from dlcv_cli.statistics.collapse import Collapse

SCHEMA = "dlcv.eval/3"
Over = Literal["examples", "seeds and examples", "splits"]  # what an interval or a test takes as drawn at random


class Interval(msgspec.Struct, frozen=True, array_like=True):
    """The ends of a 95 % interval."""

    low: Finite
    high: Finite

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"the interval's low end {self.low} is above its high end {self.high}")


class Data(Struct, frozen=True, kw_only=True):
    """The examples that were evaluated: which, how many, and a fingerprint of their content."""

    study: str
    part: str
    n: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    path: str
    fingerprint: str


class Trained(Struct, frozen=True, kw_only=True):
    """Which run of which recipe the checkpoint is, and how many examples it was trained on."""

    stage: str
    recipe: Digest  # without seed and fold: the runs of one recipe share it
    seed: Count
    fold: Count | None
    examples: Count


class Baseline(Struct, frozen=True, kw_only=True):
    """What a rule without any learning achieves on the same examples."""

    name: str
    metrics: dict[str, Finite]
    intervals: dict[str, Interval]


class Unchecked(Struct, frozen=True, kw_only=True):
    """A file of the lineage that could not be read as it was."""

    name: str
    why: str


class Contamination(Struct, frozen=True, kw_only=True):
    """How many evaluated examples the checkpoint, or one of its ancestors, was trained or selected on."""

    checked: list[str]  # data files whose examples were compared
    unchecked: list[Unchecked]
    unrecorded: list[str]  # weights that do not say what they were trained on
    examples: Count  # evaluated examples that are training examples
    chosen: Count  # evaluated examples that are validation examples
    of: Count
    by_chance: bool  # the task has so few different examples that equal ones are no leak
    allowed: bool

    @property
    def leaks(self) -> bool:
        """Whether the figures are better than they would be on new examples."""
        return self.examples > 0 and not self.by_chance


class PerClass(Struct, frozen=True, kw_only=True):
    """One class: how many images it has, how often it is predicted, and how often rightly."""

    name: str = msgspec.field(name="class")
    n: Count
    recall: Share | None  # None: the part has no image of it
    precision: Share | None  # None: it is never predicted
    predicted: Count


class ConfusedPair(Struct, frozen=True, kw_only=True):
    """Images of one class that were taken for another; share is of the class's images."""

    true: str
    predicted: str
    n: Count
    share: Share


class CalibrationBin(Struct, frozen=True, kw_only=True):
    """The images whose confidence lies in (low, high]: mean confidence and accuracy."""

    low: Share
    high: Share
    n: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    confidence: Share
    accuracy: Share


class HighLoss(Struct, frozen=True, kw_only=True):
    """An image with a high loss (nats), and the probability that the network gave its true class."""

    path: str
    sha256: str
    label: str
    predicted: str
    loss: Finite
    probability: Share


class ByLength(Struct, frozen=True, kw_only=True):
    """The sequences of one length."""

    length: Count
    n: Count
    mse: NonNegative
    mae: NonNegative
    close: Share


class NearDuplicates(Struct, frozen=True, kw_only=True):
    """How many evaluated images have a near-duplicate among the training images, and the accuracy on the others."""

    n: Count
    n_without: Count
    top1_accuracy: Share | None  # of the others; None: there are none


class ImageDetails(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a classifier goes wrong."""

    per_class: Annotated[list[PerClass], msgspec.Meta(min_length=1)]
    confusion: list[tuple[Count, Count, Count]]  # true class, predicted class, images; only where there are any
    confused: list[ConfusedPair]  # most frequent first
    calibration: list[CalibrationBin]
    highest_loss: list[HighLoss]  # highest first
    root: str  # folder of the images, relative to the evaluation
    groups: Count = 0  # that the images belong to; the intervals are over these
    near_duplicates: NearDuplicates | None = None  # None: the split records none of these images

    def __post_init__(self) -> None:
        if any(max(cell[:2]) >= len(self.per_class) for cell in self.confusion):
            raise ValueError(f"`confusion` names a class beyond the {len(self.per_class)} of `per_class`")


class SequenceDetails(Struct, frozen=True, kw_only=True):
    """How the error depends on the length."""

    by_length: list[ByLength]


Details = TypeVar("Details", bound=Struct)


class Evaluation(Document, Generic[Details], frozen=True, kw_only=True):
    """One checkpoint on one part. `metrics`, `intervals`: a value for each key of the study's METRICS that applies.

    Intervals take the examples as drawn at random.
    """

    SCHEMA: ClassVar[str] = SCHEMA

    stage: str
    config: dict[str, Setting]
    inputs: dict[str, InputFile]  # "checkpoint", "data"
    data: Data
    trained: Trained
    metrics: dict[str, Finite]
    intervals: dict[str, Interval]
    baselines: list[Baseline]
    collapse: Collapse
    details: Details
    contamination: Contamination
    tries: Count = 0  # settings that were tried on the validation part, of which the checkpoint has the best
    predictions: OutputFile
    run: dict[str, Any]


AnyEvaluation = Evaluation[Any]
