"""The kinds of figure: the numbers that each shows, their axes, and the same numbers as a table. Draws nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.report.axes import Axis
from dlcv_cli.results.comparison import format_number

Range = tuple[float, float]
PAIRS = 100  # rows of a confusion matrix's table; the evaluation files have them all
STEPS = 200  # rows of a table of curves, and points of a line; the metrics files have them all
THIN = 10  # images of a bin; of fewer, the accuracy says nothing


@dataclass(frozen=True)
class Table:
    """The numbers of a figure, as text."""

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """`key` is unique among the figures of a study; `text` describes in words what the figure shows."""

    key: str
    title: str
    text: str


@dataclass(frozen=True)
class Panel:
    """One metric of a forest: each row's value and interval, if it has them, and the value of each of its runs.

    `zero` draws a line at 0.
    """

    axis: Axis
    values: tuple[tuple[float, Range | None] | None, ...]
    zero: bool = False
    runs: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Forest(Figure):
    """Values with their intervals; a row is a row of the comparison, or a pair."""

    names: tuple[str, ...]
    panels: tuple[Panel, ...]

    def table(self) -> Table:
        """Return one row per name, one column per metric."""
        rows = [
            (name, *(_with_interval(panel.axis, panel.values[place]) for panel in self.panels))
            for place, name in enumerate(self.names)
        ]
        return Table(("row", *(panel.axis.title for panel in self.panels)), rows)


@dataclass(frozen=True)
class Line:
    """Points from left to right; `band` is the range over runs, `marks` are highlighted points."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    band: tuple[Range, ...] = ()
    marks: tuple[tuple[float, float], ...] = ()
    style: int = 0  # colour and dashes


@dataclass(frozen=True)
class Curves(Figure):
    """Lines over a common x axis."""

    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    mark: str = ""  # what the marks mean

    def table(self) -> Table:
        """Return one row per x and one column per line, with its range over runs."""
        cells: dict[float, dict[int, str]] = defaultdict(dict)
        for place, line in enumerate(self.lines):
            for step, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
                text = self.y.label(y)
                if line.band:
                    text += f" ({self.y.label(line.band[step][0])} to {self.y.label(line.band[step][1])})"
                cells[x][place] = text + (" *" if (x, y) in line.marks else "")
        columns = range(len(self.lines))
        rows = [(f"{x:,.10g}", *(cells[x].get(place, "") for place in columns)) for x in sorted(cells)]
        starred = any("*" in cell for row in rows for cell in row)  # medians of several runs have no marks
        return Table((self.x.title, *(line.name for line in self.lines)), rows, f"* {self.mark}" if starred else "")


@dataclass(frozen=True)
class Dots(Figure):
    """A value of each category, such as a class, for each series, such as a row; None where it has no value.

    `series` are pairs of a name and its values, one per category; `extra` are more columns of the table alone.
    """

    axis: Axis
    names: tuple[str, ...]
    series: tuple[tuple[str, tuple[float | None, ...]], ...]
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()
    category: str = "class"

    def table(self) -> Table:
        """Return one row per category."""
        columns = [tuple("" if v is None else self.axis.label(v) for v in values) for _, values in self.series]
        headings = [f"{name}, {self.axis.title}" for name, _ in self.series]
        rows = list(zip(self.names, *columns, *(values for _, values in self.extra), strict=True))
        return Table((self.category, *headings, *(heading for heading, _ in self.extra)), rows)


@dataclass(frozen=True)
class Bin:
    """Predictions of similar confidence: how many, of how many images; mean confidence; accuracy and its interval."""

    low: float
    high: float
    n: int
    images: int
    confidence: float
    accuracy: float
    interval: Range

    @property
    def is_thin(self) -> bool:
        """Whether it has too few images for its accuracy to say anything."""
        return self.images < THIN


@dataclass(frozen=True)
class Reliability(Figure):
    """Accuracy against confidence."""

    bins: tuple[Bin, ...]

    def table(self) -> Table:
        """Return one row per bin."""
        rows = [
            (
                f"{b.low:.2f} to {b.high:.2f}",
                f"{b.n:,}",
                f"{b.images:,}",
                f"{100 * b.confidence:.1f}",
                f"{100 * b.accuracy:.1f} ({100 * b.interval[0]:.1f} to {100 * b.interval[1]:.1f})",
            )
            for b in self.bins
        ]
        return Table(("bin", "predictions", "images", "mean confidence %", "accuracy %"), rows)


Cell = tuple[int, int, int, float]  # true class, predicted class, predictions, share of the true class


@dataclass(frozen=True)
class Matrix(Figure):
    """A confusion matrix; its cells are those that have any predictions.

    signed: it is the difference of two: shares are differences, and their strongest colour is the largest of them.
    """

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    signed: bool = False

    @property
    def full(self) -> float:
        """The share that has the strongest colour."""
        return max((abs(share) for *_, share in self.cells), default=0) or 1.0 if self.signed else 1.0

    def table(self) -> Table:
        """Return the wrong predictions, most frequent first; of a difference the largest ones, right ones too."""
        if self.signed:
            cells = sorted(self.cells, key=lambda cell: (-abs(cell[3]), cell[:2]))
            rows: list[tuple[str, ...]] = [
                (self.names[t], self.names[a], f"{100 * share:+.1f}") for t, a, _, share in cells[:PAIRS]
            ]
            headings: tuple[str, ...] = ("true class", "predicted", "points of the class")
        else:
            cells = sorted((cell for cell in self.cells if cell[0] != cell[1]), key=lambda cell: (-cell[2], cell[:2]))
            rows = [(self.names[t], self.names[a], f"{n:,}", f"{100 * s:.1f}") for t, a, n, s in cells[:PAIRS]]
            headings = ("true class", "predicted", "n", "% of the class")
        note = f"the {PAIRS} largest of {len(cells):,}" if len(cells) > PAIRS else ""
        return Table(headings, rows, note)


@dataclass(frozen=True)
class Density(Figure):
    """Predictions against true values: counts[x, y] over equal bins of both axes."""

    x: Axis
    y: Axis
    counts: NDArray[np.int64]
    deciles: tuple[tuple[float, float, int, float, float], ...]  # low, high, n, mean prediction, mean absolute error

    def table(self) -> Table:
        """Return one row per tenth of the range of true values."""
        rows = [
            (f"{low:.2f} to {high:.2f}", f"{n:,}", format_number(mean), format_number(error))
            for low, high, n, mean, error in self.deciles
        ]
        return Table(("true value", "predictions", "mean prediction", "mean absolute error"), rows)


@dataclass(frozen=True)
class Node:
    """A file of a lineage; `sources` are the indices of the earlier nodes that it was made from."""

    name: str
    kind: str
    sha256: str
    sources: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Graph(Figure):
    """A lineage: files and what they were made from, the sources of each before it."""

    nodes: tuple[Node, ...]
    listed: tuple[Node, ...] = ()  # for the table, if it has more than are drawn
    layers: tuple[int, ...] = field(init=False)  # of each node, counted from the left

    def __post_init__(self) -> None:
        layers: list[int] = []
        for node in self.nodes:
            layers.append(1 + max((layers[source] for source in node.sources), default=-1))
        last = len(self.nodes) - 1
        for index in range(last - 1, -1, -1):  # data without sources, and what only the table uses, move to their users
            users = [k for k, node in enumerate(self.nodes) if index in node.sources]
            if users and (not self.nodes[index].sources or users == [last]):
                layers[index] = min(layers[user] for user in users) - 1
        object.__setattr__(self, "layers", tuple(layers))

    def positions(self) -> list[tuple[int, float]]:
        """Return each node's layer from the left and row from the top; short layers are centred."""
        rows: dict[int, int] = defaultdict(int)
        longest = max(map(self.layers.count, self.layers))
        positions = []
        for layer in self.layers:
            positions.append((layer, rows[layer] + (longest - self.layers.count(layer)) / 2))
            rows[layer] += 1
        return positions

    def edges(self) -> list[tuple[int, int]]:
        """Return (source, node) pairs, without those that a longer path implies."""
        ancestors: list[set[int]] = []
        edges = []
        for index, node in enumerate(self.nodes):
            ancestors.append(set(node.sources).union(*(ancestors[source] for source in node.sources)))
            edges += [(s, index) for s in node.sources if not any(s in ancestors[other] for other in node.sources)]
        return edges

    def table(self) -> Table:
        """Return one row per file, with its whole hash."""
        rows, nodes = [], self.listed or self.nodes
        for node in nodes:
            sources = ", ".join(nodes[source].name for source in node.sources)
            rows.append((node.name, node.kind + (f" ({node.note})" if node.note else ""), sources, node.sha256))
        return Table(("file", "kind", "made from", "sha256"), rows)


AnyFigure = Forest | Curves | Dots | Reliability | Matrix | Density | Graph


@dataclass(frozen=True)
class FigureGroup:
    """Figures that stand under one heading of the page; `hint` says how to read them."""

    heading: str
    hint: str
    figures: Sequence[AnyFigure]


def _with_interval(axis: Axis, value: tuple[float, Range | None] | None) -> str:
    if value is None:
        return ""
    middle, interval = value
    return axis.label(middle) + (f" ({axis.label(interval[0])} to {axis.label(interval[1])})" if interval else "")
