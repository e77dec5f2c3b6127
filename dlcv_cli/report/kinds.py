"""The kinds of figure: what each holds, as numbers, and the table behind it. Draws nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.report.axes import Axis, number

Range = tuple[float, float]
PAIRS = 300  # of a confusion matrix, rows of the table behind it: more is for the evaluation file


@dataclass(frozen=True)
class Table:
    """The numbers behind a figure, as text."""

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """`key` names it among the figures of a study, `text` says in words what there is to see."""

    key: str
    title: str
    text: str


@dataclass(frozen=True)
class Panel:
    """One metric of a forest: for each row its value and interval, where it has them. `zero` marks no difference."""

    axis: Axis
    values: tuple[tuple[float, Range | None] | None, ...]
    zero: bool = False


@dataclass(frozen=True)
class Forest(Figure):
    """Values with their intervals, one row a network or a pair."""

    names: tuple[str, ...]
    panels: tuple[Panel, ...]

    def table(self) -> Table:
        """Each row's values, each with its interval."""
        rows = []
        for place, name in enumerate(self.names):
            rows.append((name, *(_interval(panel.axis, panel.values[place]) for panel in self.panels)))
        return Table(("network", *(panel.axis.title for panel in self.panels)), rows)


@dataclass(frozen=True)
class Line:
    """Points from left to right; `band` is the range over runs, `marks` are points that stand out."""

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
    mark: str = ""  # what the marks are

    def table(self) -> Table:
        """One row for each x, one column for each line, with its range over runs."""
        found: dict[float, dict[int, str]] = defaultdict(dict)
        for place, line in enumerate(self.lines):
            for step, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
                text = self.y.label(y)
                if line.band:
                    text += f" ({self.y.label(line.band[step][0])} to {self.y.label(line.band[step][1])})"
                found[x][place] = text + (" *" if (x, y) in line.marks else "")
        count = range(len(self.lines))
        rows = [(f"{x:,.10g}", *(found[x].get(place, "") for place in count)) for x in sorted(found)]
        starred = any("*" in cell for row in rows for cell in row)  # of several runs, the lines are medians
        return Table((self.x.title, *(line.name for line in self.lines)), rows, f"* {self.mark}" if starred else "")


@dataclass(frozen=True)
class Bars(Figure):
    """A share for each name, with the number of examples it is taken over."""

    axis: Axis
    names: tuple[str, ...]
    values: tuple[float, ...]
    counts: tuple[int, ...]
    extra: tuple[tuple[str, ...], ...] = ()  # further columns of the table: heading first

    def table(self) -> Table:
        """Name, share, number of examples."""
        more = [column[1:] for column in self.extra]
        rows = zip(self.names, map(self.axis.label, self.values), map(str, self.counts), *more, strict=True)
        return Table(("class", self.axis.title, "examples", *(column[0] for column in self.extra)), list(rows))


@dataclass(frozen=True)
class Reliability(Figure):
    """Accuracy against confidence; each bin is (low, high, n, confidence, accuracy)."""

    bins: tuple[tuple[float, float, int, float, float], ...]

    def table(self) -> Table:
        """One row a bin."""
        rows = [
            (f"{low:.2f} to {high:.2f}", f"{n:,}", f"{100 * confidence:.1f}", f"{100 * accuracy:.1f}")
            for low, high, n, confidence, accuracy in self.bins
        ]
        return Table(("bin", "images", "mean confidence %", "accuracy %"), rows)


@dataclass(frozen=True)
class Matrix(Figure):
    """Who was taken for whom; each cell is (true class, answer, images, share of the true class), none of them 0."""

    names: tuple[str, ...]
    cells: tuple[tuple[int, int, int, float], ...]

    def table(self) -> Table:
        """The wrong answers, the most frequent first."""
        wrong = sorted((cell for cell in self.cells if cell[0] != cell[1]), key=lambda cell: (-cell[2], cell[:2]))
        rows = [(self.names[t], self.names[a], str(n), f"{100 * share:.1f}") for t, a, n, share in wrong[:PAIRS]]
        note = f"the {PAIRS} most frequent of {len(wrong):,}" if len(wrong) > PAIRS else ""
        return Table(("true class", "answered", "images", "% of the class"), rows, note)


@dataclass(frozen=True)
class Density(Figure):
    """How many answers lie where: counts[x, y] over equal bins of both axes; `deciles` of the true values."""

    x: Axis
    y: Axis
    counts: NDArray[np.int64]
    deciles: tuple[tuple[float, float, int, float, float], ...]  # low, high, n, mean answer, mean error without sign

    def table(self) -> Table:
        """What was answered in each tenth of the range of true values."""
        rows = [
            (f"{low:.2f} to {high:.2f}", f"{n:,}", number(mean), number(error))
            for low, high, n, mean, error in self.deciles
        ]
        return Table(("true value", "answers", "mean answer", "mean absolute error"), rows)


@dataclass(frozen=True)
class Node:
    """A file in the line from data to table; `sources` are the places of those it was made from, all before it."""

    name: str
    kind: str
    sha256: str
    sources: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Graph(Figure):
    """Files and what they were made from."""

    nodes: tuple[Node, ...]
    layers: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        layers: list[int] = []
        for node in self.nodes:
            layers.append(1 + max((layers[source] for source in node.sources), default=-1))
        last = len(self.nodes) - 1
        for place in range(last - 1, -1, -1):  # beside what they lead to: data that begins the line, and what ends it
            users = [k for k, node in enumerate(self.nodes) if place in node.sources]
            if users and (not self.nodes[place].sources or users == [last]):
                layers[place] = min(layers[user] for user in users) - 1
        object.__setattr__(self, "layers", tuple(layers))

    def places(self) -> list[tuple[int, float]]:
        """Where each node stands: its layer from the left, its row from the top; a short layer stands in the middle."""
        rows: dict[int, int] = defaultdict(int)
        most = max(map(self.layers.count, self.layers))
        found = []
        for layer in self.layers:
            found.append((layer, rows[layer] + (most - self.layers.count(layer)) / 2))
            rows[layer] += 1
        return found

    def edges(self) -> list[tuple[int, int]]:
        """(source, node) pairs, without those that another way from the source to the node says already."""
        above: list[set[int]] = []  # everything that each node was made from, however far back
        found = []
        for place, node in enumerate(self.nodes):
            above.append(set(node.sources).union(*(above[source] for source in node.sources)))
            found += [(s, place) for s in node.sources if not any(s in above[other] for other in node.sources)]
        return found

    def table(self) -> Table:
        """One row a file, with its whole hash."""
        rows = []
        for node in self.nodes:
            sources = ", ".join(self.nodes[source].name for source in node.sources)
            rows.append((node.name, node.kind + (f" ({node.note})" if node.note else ""), sources, node.sha256))
        return Table(("file", "what", "made from", "sha256"), rows)


AnyFigure = Forest | Curves | Bars | Reliability | Matrix | Density | Graph


def _interval(axis: Axis, value: tuple[float, Range | None] | None) -> str:
    if value is None:
        return ""
    middle, interval = value
    return axis.label(middle) + (f" ({axis.label(interval[0])} to {axis.label(interval[1])})" if interval else "")
