"""Pieces of the report page: what it is made of, and tables, folds and thumbnails as HTML. Knows no files."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dlcv_cli.report.axes import number
from dlcv_cli.report.kinds import AnyFigure, Forest, Table
from dlcv_cli.report.markup import safe

JSON = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """An image of the evaluated part: its thumbnail (JPEG, with width and height), or why there is none."""

    path: str
    label: str
    answer: str
    loss: float
    probability: float  # of the label
    jpeg: bytes = b""
    size: tuple[int, int] = (96, 96)
    problem: str = ""


@dataclass(frozen=True)
class Confused:
    """A class that was often taken for another, with some of the images."""

    true: str
    answered: str
    n: int
    share: float
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Network:
    """One network: its `dlcv.eval/1` and `dlcv.metrics/1` documents, and pictures (of images only)."""

    name: str
    document: JSON
    metrics: JSON
    confused: tuple[Confused, ...] = ()
    highest_loss: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Study:
    """One section of the page: the comparison, its networks, and the figures by group (a key of GROUPS)."""

    comparison: JSON
    networks: tuple[Network, ...]
    forest: Forest
    figures: Mapping[str, Sequence[AnyFigure]]


def scroll(content: str, label: str, kind: str = "scroll") -> str:
    """What may be wider than a phone, in a region of its own that the keyboard can reach and scroll."""
    return f'<div class="{kind}" tabindex="0" role="region" aria-label="{safe(label)}">{content}</div>'


def html_table(caption: str, headings: Iterable[str], rows: Iterable[str], kind: str) -> str:
    """A table of rows that are HTML already; `kind`: `numbers` to the right, `words` to the left."""
    head = "".join(f'<th scope="col">{safe(heading)}</th>' for heading in headings)
    return (
        f'<table class="{kind}"><caption>{safe(caption)}</caption><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def table(caption: str, behind: Table, numbers: bool = True) -> str:
    """The table behind a figure."""
    rows = [
        f'<tr><th scope="row">{safe(first)}</th>' + "".join(f"<td>{safe(cell)}</td>" for cell in rest) + "</tr>\n"
        for first, *rest in behind.rows
    ]
    made = html_table(caption, behind.headings, rows, "numbers" if numbers else "words")
    return scroll(made, f"Table: {caption}", "scroll tall") + (
        f'<p class="hint">{safe(behind.note)}</p>' if behind.note else ""
    )


def details(summary: str, content: str, about: str = "", opened: bool = False) -> str:
    """Content that is folded away; `about` completes the summary for those who hear it alone."""
    hidden = f'<span class="unseen"> {safe(about)}</span>' if about else ""
    return f"<details{' open' if opened else ''}><summary>{safe(summary)}{hidden}</summary>{content}</details>\n"


@lru_cache(maxsize=1024)
def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def thumbnails(pictures: Iterable[Picture]) -> str:
    """Pictures side by side, each with its class, the answer, and the probability of its class."""
    return f'<div class="thumbs">{"".join(map(_thumbnail, pictures))}</div>'


def _thumbnail(picture: Picture) -> str:
    """A picture, or a frame that says why it is missing."""
    wrong = f"{picture.label}, answered {picture.answer}"
    said = safe(f"{wrong}; loss {number(picture.loss)}, probability {number(picture.probability)}; {picture.path}")
    if picture.problem:
        problem = safe(picture.problem)
        shown = f'<span class="gone" role="img" aria-label="{said}: {problem}">{problem}</span>'
    else:
        size = 'width="{}" height="{}"'.format(*picture.size)
        shown = f'<img src="{_data_uri(picture.jpeg)}" {size} alt="{said}" title="{said}">'
    caption = f"{safe(picture.label)} <b>→ {safe(picture.answer)}</b> {100 * picture.probability:.1f}&nbsp;%"
    return f'<figure class="thumb">{shown}<figcaption>{caption}</figcaption></figure>'
