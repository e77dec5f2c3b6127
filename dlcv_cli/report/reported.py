"""What a page shows of a row: the checkpoints of its runs with their files, and pictures of single examples."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dlcv_cli.results.evaluation import AnyEvaluation, HighLoss
from dlcv_cli.results.metrics import TrainingMetrics


@dataclass(frozen=True)
class Picture:
    """An evaluated image with its thumbnail (a JPEG, its width and height), or the reason why it has none."""

    example: HighLoss
    jpeg: bytes = b""
    size: tuple[int, int] = (96, 96)
    problem: str = ""

    @cached_property
    def uri(self) -> str:
        """The thumbnail as an address that holds it."""
        return embed_jpeg(self.jpeg)


def embed_jpeg(content: bytes) -> str:
    """Return an address that holds a JPEG."""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class PictureRow:
    """Pictures side by side, with what they have in common."""

    pictures: tuple[Picture, ...]
    title: str
    text: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures under a heading; galleries with the same heading stand together on the page."""

    heading: str
    hint: str
    rows: tuple[PictureRow, ...]


@dataclass(frozen=True)
class Reported:
    """A checkpoint on the page of a report."""

    name: str
    checkpoint: Path
    file: Path  # its evaluation
    evaluation: AnyEvaluation
    metrics: TrainingMetrics

    @property
    def fold(self) -> int:
        """The fold of its split; 0 if that has none."""
        return self.evaluation.trained.fold or 0


@dataclass(frozen=True)
class ReportedRow:
    """A row of the comparison: the checkpoints of one recipe. `metric` is the key of the comparison's first metric."""

    name: str
    networks: tuple[Reported, ...]
    metric: str
    galleries: tuple[Gallery, ...] = field(default=())

    @property
    def representative(self) -> Reported:
        """The median run in the first metric; of an even number the lower one."""
        return choose_median(self.networks, self.metric)

    @property
    def shown(self) -> str:
        """The row's name, with the run that its pictures are of, if it has several."""
        return f"{self.name} (run {self.representative.name})" if len(self.networks) > 1 else self.name

    def by_fold(self) -> dict[int, tuple[Reported, ...]]:
        """Return the checkpoints of each fold, in order."""
        ordered = sorted(self.networks, key=lambda network: network.fold)
        return {fold: tuple(own) for fold, own in itertools.groupby(ordered, lambda network: network.fold)}


def choose_median(networks: Sequence[Reported], metric: str) -> Reported:
    """Return the checkpoint whose metric is the median; of an even number the lower one of the middle."""
    ordered = sorted(networks, key=lambda network: (network.evaluation.metrics[metric], network.name))
    return ordered[(len(ordered) - 1) // 2]


def pair_runs(row: ReportedRow, reference: ReportedRow) -> tuple[Reported, Reported]:
    """Return a run of each row that were evaluated on the same fold: the median ones.

    The fold is that of the row's representative, or the first that both have.
    """
    ours, theirs = row.by_fold(), reference.by_fold()
    own = row.representative
    if own.fold in theirs:
        return own, choose_median(theirs[own.fold], reference.metric)
    fold = next(fold for fold in ours if fold in theirs)
    return choose_median(ours[fold], row.metric), choose_median(theirs[fold], reference.metric)


@dataclass(frozen=True)
class Disagreement:
    """The examples of two runs by who gets them right: counts, and pictures of some of them."""

    row: Reported
    reference: Reported
    counts: tuple[int, ...]  # both right, only the row, only the reference, both wrong alike, both wrong differently
    gallery: Gallery
