"""The page of images whose label looks wrong. The template is templates/doubts.html.j2."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dlcv_cli.report.kinds import Table
from dlcv_cli.report.page import render_page


@dataclass(frozen=True)
class DoubtedImage:
    """An image whose label is in doubt, with its thumbnail: a JPEG, its width and height."""

    path: str
    part: str
    label: str
    suggested: str
    probability: float  # of the label
    suggested_probability: float
    jpeg: bytes
    size: tuple[int, int]

    @cached_property
    def uri(self) -> str:
        """The thumbnail as an address that holds it."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


@dataclass(frozen=True)
class DoubtsPage:
    """What the page shows."""

    split: str  # name of the split file
    images: int  # that were judged
    doubts: int
    pairs: Sequence[tuple[str, str, int]]  # class, suggested class, doubts; the most frequent first
    shown: Sequence[DoubtedImage]  # the most doubtful first

    def table(self) -> Table:
        """Return the pairs of classes with their doubts."""
        rows = [(label, suggested, f"{count:,}") for label, suggested, count in self.pairs]
        return Table(("class", "looks like", "images"), rows)


def write_doubts_page(page: DoubtsPage) -> str:
    """Return the whole page."""
    return render_page("doubts.html.j2", page=page)
