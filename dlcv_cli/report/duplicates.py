"""The page of near-duplicates: pairs of images side by side. The template is templates/duplicates.html.j2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlcv_cli.report.page import render_page
from dlcv_cli.report.reported import embed_jpeg

MOST = 500  # pairs shown in a section


@dataclass(frozen=True)
class Copy:
    """An image with its thumbnail (a JPEG, its width and height), or the reason why it has none."""

    path: str
    label: str
    part: str
    jpeg: bytes = b""
    size: tuple[int, int] = (96, 96)
    problem: str = ""

    @property
    def uri(self) -> str:
        """The thumbnail as an address that holds it."""
        return embed_jpeg(self.jpeg)


@dataclass(frozen=True)
class Shown:
    """Two near-duplicates; similarity is in 0..1."""

    first: Copy
    second: Copy
    similarity: float


@dataclass(frozen=True)
class Section:
    """The first MOST of `count` pairs that have something in common."""

    heading: str
    count: int
    pairs: Sequence[Shown]


def render_duplicates(split: str, sections: Sequence[Section], count: int) -> str:
    """Return the whole page about `count` pairs of a split file, of which the sections show those that matter."""
    return render_page("duplicates.html.j2", split=split, sections=sections, count=count)
