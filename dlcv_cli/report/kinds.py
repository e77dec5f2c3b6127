"""The kinds of figure: the numbers that each shows, their axes, and the same numbers as a table. Draws nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.results.comparison import format_number

Range = tuple[float, float]
PAIRS = 300  # rows of a confusion matrix's table; the evaluation file has them all


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`; `percent` and `small` as in format_number; `whole`: ticks at whole numbers only."""

    title: str
    low: float
    high: float
    log: bool = False
    percent: bool = False
    whole: bool = False
    small: bool = True

    def place(self, value: float) -> float:
        """Return the position of a value, 0 to 1; values beyond an end are at the end."""
        inside = min(max(value, self.low), self.high)
        if self.log:
            return math.log(inside / self.low) / math.log(self.high / self.low)
        return (inside - self.low) / (self.high - self.low)

    def label(self, value: float) -> str:
        """Return a value in full."""
        return f"{value:,.0f}" if self.whole else format_number(value, self.percent, small=self.small)

    def tick_label(self, value: float) -> str:
        """Return a value in short, as at a tick."""
        return f"{100 * value:.4g}" if self.percent else f"{value:,.0f}" if self.whole else f"{value:.4g}"

    def low_high(self) -> str:
        """Return both ends in short."""
        return f"{self.tick_label(self.low)} to {self.tick_label(self.high)}"

    def ticks(self, most: int = 6) -> list[float]:
        """Return round numbers within the ends, at most `most` of them."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5)):
                ticks = [step * 10.0**power for power in powers for step in steps]
                ticks = [tick for tick in ticks if self.low <= tick <= self.high]
                if len(ticks) >= 3:
                    break
            if len(ticks) >= 2:
                return ticks[:: math.ceil(len(ticks) / most)]
        scale = 100 if self.percent else 1
        span = (self.high - self.low) * scale
        power = 10.0 ** math.floor(math.log10(span / most))
        step = next(power * s for s in (1, 2, 5, 10, 20) if span / (power * s) <= most)
        step = max(step, 1.0) if self.whole else step
        first = math.ceil(self.low * scale / step - 1e-9)
        last = math.floor(self.high * scale / step + 1e-9)
        return [round(k * step, 12) / scale for k in range(first, last + 1)]


def spanning_axis(
    title: str, values: Iterable[float], *, log: bool = False, percent: bool = False, whole: bool = False
) -> Axis:
    """Return the axis that spans the values with a small margin; linear if one of them is not above 0."""
    spanned = list(values) or [0.0, 1.0]
    low, high = min(spanned), max(spanned)
    if log and low > 0:
        return Axis(title, low / 1.25, high * 1.25, log=True, percent=percent)
    margin = 0.04 * (high - low) or (0.5 if whole else 0.01 if percent else 0.05 * abs(high) or 0.5)
    share = percent and low >= 0  # shares lie between 0 and 100 %
    return Axis(
        title,
        max(0, low - margin) if share else low - margin,
        min(1, high + margin) if share else high + margin,
        percent=percent,
        whole=whole,
    )


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
    """One metric of a forest: each row's value and interval, if it has them. `zero` draws a line at 0."""

    axis: Axis
    values: tuple[tuple[float, Range | None] | None, ...]
    zero: bool = False


@dataclass(frozen=True)
class Forest(Figure):
    """Values with their intervals, one row a network or a pair."""

    names: tuple[str, ...]
    panels: tuple[Panel, ...]

    def table(self) -> Table:
        """Return one row per network or pair, one column per metric."""
        rows = [
            (name, *(_with_interval(panel.axis, panel.values[place]) for panel in self.panels))
            for place, name in enumerate(self.names)
        ]
        return Table(("network", *(panel.axis.title for panel in self.panels)), rows)


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
class Bars(Figure):
    """A share of each class, with the number of its examples."""

    axis: Axis
    names: tuple[str, ...]
    values: tuple[float, ...]
    counts: tuple[int, ...]
    extra: tuple[tuple[str, ...], ...] = ()  # more columns of the table, each with its heading first

    def table(self) -> Table:
        """Return one row per class."""
        more = [column[1:] for column in self.extra]
        rows = zip(self.names, map(self.axis.label, self.values), map(str, self.counts), *more, strict=True)
        return Table(("class", self.axis.title, "examples", *(column[0] for column in self.extra)), list(rows))


@dataclass(frozen=True)
class Reliability(Figure):
    """Accuracy against confidence; each bin is (low, high, n, confidence, accuracy)."""

    bins: tuple[tuple[float, float, int, float, float], ...]

    def table(self) -> Table:
        """Return one row per bin."""
        rows = [
            (f"{low:.2f} to {high:.2f}", f"{n:,}", f"{100 * confidence:.1f}", f"{100 * accuracy:.1f}")
            for low, high, n, confidence, accuracy in self.bins
        ]
        return Table(("bin", "n", "mean confidence %", "accuracy %"), rows)


@dataclass(frozen=True)
class Matrix(Figure):
    """A confusion matrix, whose cells are (true class, predicted class, images, share of the true class)."""

    names: tuple[str, ...]
    cells: tuple[tuple[int, int, int, float], ...]

    def table(self) -> Table:
        """Return the wrong predictions, most frequent first."""
        wrong = sorted((cell for cell in self.cells if cell[0] != cell[1]), key=lambda cell: (-cell[2], cell[:2]))
        rows = [(self.names[t], self.names[a], str(n), f"{100 * share:.1f}") for t, a, n, share in wrong[:PAIRS]]
        note = f"the {PAIRS} most frequent of {len(wrong):,}" if len(wrong) > PAIRS else ""
        return Table(("true class", "predicted", "n", "% of the class"), rows, note)


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
        rows = []
        for node in self.nodes:
            sources = ", ".join(self.nodes[source].name for source in node.sources)
            rows.append((node.name, node.kind + (f" ({node.note})" if node.note else ""), sources, node.sha256))
        return Table(("file", "kind", "made from", "sha256"), rows)


AnyFigure = Forest | Curves | Bars | Reliability | Matrix | Density | Graph


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
