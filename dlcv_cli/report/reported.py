"""What a page shows of a network: its files, its evaluation and metrics, and pictures of single examples."""

from __future__ import annotations

import base64
from dataclasses import dataclass
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
class Row:
    """Pictures side by side, with what they have in common."""

    pictures: tuple[Picture, ...]
    true: str = ""
    predicted: str = ""
    text: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures of one network under a heading; galleries with the same heading stand together on the page."""

    heading: str
    hint: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Reported:
    """A checkpoint on the page of a report."""

    name: str
    checkpoint: Path
    file: Path  # its evaluation
    evaluation: AnyEvaluation
    metrics: TrainingMetrics
    galleries: tuple[Gallery, ...] = ()
