"""`*.metrics.json`, schema dlcv.metrics/1: how a training went. Written beside its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec

from dlcv_cli.errors import FileError
from dlcv_cli.files.disk import as_object, read_json, replace_ending
from dlcv_cli.results.codec import Count, Digest, Document, Finite, NonNegative, Setting, Share, Struct, read_document

SCHEMA = "dlcv.metrics/1"


class InputFile(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An input by content; paths are relative to the folder of the file that names it."""

    name: str | None = None  # of weights that are known by name
    path: str | None = None
    root: str | None = None  # folder of the images, if it was not the one that the split names
    sha256: str
    recipe: str | None = None  # of a checkpoint: its recipe without seed and fold


class Parameters(Struct, frozen=True, kw_only=True):
    """How many numbers a network has, and how many of them were trained."""

    total: Count
    trainable: Count


class Record(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of training progress: an epoch of images, or some hundred iterations over sequences."""

    seed: Count | None = None
    epoch: Count | None = None
    iteration: Count | None = None
    lr: NonNegative | None = None
    train_loss: Finite | None
    train_accuracy: Share | None = None
    val_loss: Finite
    val_accuracy: Share | None = None

    @property
    def step(self) -> int:
        """How far the training was: epochs or iterations."""
        return self.epoch if self.epoch is not None else self.iteration or 0


class Try(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Settings that were tried, and what they gave on the validation part. Without lr and epochs: solved by L-BFGS."""

    resize: str
    augment: str
    weight_decay: NonNegative
    lr: NonNegative | None = None
    epochs: Count | None = None  # that were trained
    val_loss: Finite
    val_accuracy: Share


class OutputFile(Struct, frozen=True, kw_only=True):
    """A file that a document belongs to, and lies beside."""

    path: str
    sha256: Digest


class TrainingMetrics(Document, frozen=True, kw_only=True, omit_defaults=True):
    """A training: settings, inputs, every record and the best one. `run` holds what varies between identical runs."""

    SCHEMA: ClassVar[str] = SCHEMA

    stage: str
    config: dict[str, Setting]
    inputs: dict[str, InputFile]
    arch: str | None = None  # of image networks
    precision: str | None = None
    task: str | None = None  # of cells
    parameters: Parameters
    tries: list[Try] = msgspec.field(default_factory=list)  # of settings that were chosen on the validation part
    chosen: dict[str, Setting] = msgspec.field(default_factory=dict)
    records: Annotated[list[Record], msgspec.Meta(min_length=1)]
    best: Record
    checkpoint: OutputFile
    run: dict[str, Any]


def metrics_path(checkpoint: Path) -> Path:
    """Return where the metrics of a checkpoint are."""
    return replace_ending(checkpoint, ".metrics.json")


def read_metrics(checkpoint: Path, checkpoint_sha256: str) -> TrainingMetrics:
    """Read the metrics of a checkpoint. Raise FileError if they are damaged or belong to another checkpoint."""
    path = metrics_path(checkpoint)
    if not belongs_to(checkpoint, checkpoint_sha256) and path.exists():
        raise FileError(path, f"does not belong to {checkpoint.name}: one of the two was damaged or exchanged")
    metrics = read_document(path, TrainingMetrics)
    for number, record in enumerate([*metrics.records, metrics.best]):
        if record.epoch is None and record.iteration is None:
            raise FileError(path, f"damaged: `$.records[{number}]`: neither `epoch` nor `iteration`")
    return metrics


def belongs_to(checkpoint: Path, checkpoint_sha256: str) -> bool:
    """Return whether the metrics beside a checkpoint exist and name its sha256."""
    path = metrics_path(checkpoint)
    return path.exists() and as_object(read_json(path, SCHEMA).get("checkpoint")).get("sha256") == checkpoint_sha256
