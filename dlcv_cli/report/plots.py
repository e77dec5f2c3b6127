"""Figures for papers, by matplotlib: SVG, PDF and PNG of the numbers that the page shows. The same bytes every time."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Canvas

from dlcv_cli.report.axes import Axis
from dlcv_cli.report.kinds import AnyFigure, Bars, Curves, Density, Figure, Forest, Graph, Matrix, Reliability
from dlcv_cli.report.markup import plain, short

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dlcv",  # ids are the same in every run
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a $ in a name is a $
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
}
COLOURS = ("#0065a8", "#b34700", "#00735a", "#8f3f97", "#6b5b00", "#3a3f47")  # told apart by the colour-blind too
LINES = ("-", "--", ":", "-.")
UNDATED = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
WIDTH = 3.5  # inches: a column of a paper


def plot(figure: AnyFigure, kinds: Sequence[str]) -> dict[str, bytes]:
    """The figure as a file of each kind: `svg`, `pdf` or `png` (300 dots an inch)."""
    made = {}
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name in a script that the font lacks
        canvas = _PLOTTED[type(figure)](figure)
        for kind in kinds:
            buffer = io.BytesIO()
            metadata = {**UNDATED[kind], "Title": plain(figure.title)}
            canvas.savefig(buffer, format=kind, dpi=300, bbox_inches="tight", metadata=metadata)
            made[kind] = buffer.getvalue()
    return made


def _axes(figure: Figure, width: float = WIDTH, height: float = 2.6) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(width, height))
    axes = canvas.subplots()
    axes.set_title(short(figure.title, 60))
    return canvas, axes


def _scale(axes: Axes, x: Axis | None = None, y: Axis | None = None) -> None:
    """Ends, ticks and titles as the page has them."""
    for axis, name in ((x, "x"), (y, "y")):
        if axis is None:
            continue
        getattr(axes, f"set_{name}scale")("log" if axis.log else "linear")
        getattr(axes, f"set_{name}lim")(axis.low, axis.high)
        getattr(axes, f"set_{name}label")(axis.title)
        ticks = axis.ticks()
        getattr(axes, f"set_{name}ticks")(ticks, [axis.tick_label(tick) for tick in ticks])
        getattr(axes, f"set_{name}ticks")([], minor=True)


def _forest(figure: Forest) -> Canvas:
    wide, rows = len(figure.panels), len(figure.names)
    canvas = Canvas(figsize=(WIDTH if wide == 1 else 1.9 * wide, 0.8 + 0.3 * rows))
    every = canvas.subplots(1, wide, sharey=True, squeeze=False)[0]
    for axes, panel in zip(every, figure.panels, strict=True):
        for row, found in enumerate(panel.values):
            if found is None:
                continue
            value, interval = found
            if interval:
                axes.plot(interval, (row, row), color=COLOURS[0], linewidth=2, solid_capstyle="butt")
            beyond = "<" if value < panel.axis.low else ">" if value > panel.axis.high else "o"
            inside = min(max(value, panel.axis.low), panel.axis.high)
            axes.plot([inside], [row], beyond, color=COLOURS[0], markersize=4, clip_on=False)
        if panel.zero:
            axes.axvline(0, color="0.5", linestyle="--", linewidth=0.8)
        _scale(axes, panel.axis)
        axes.set_yticks(range(rows), [short(name, 30) for name in figure.names])
        axes.set_ylim(rows - 0.5, -0.5)
    return canvas


def _curves(figure: Curves) -> Canvas:
    canvas, axes = _axes(figure)
    for line in figure.lines:
        colour = COLOURS[line.style % len(COLOURS)]
        if line.band:
            low, high = zip(*line.band, strict=True)
            axes.fill_between(line.x, low, high, color=colour, alpha=0.2, linewidth=0)
        marker = "." if len(line.x) <= 12 else ""
        name, dashes = short(line.name, 40), LINES[line.style % len(LINES)]
        axes.plot(line.x, line.y, dashes, label=name, linewidth=1.2, marker=marker, color=colour)
    marks = [mark for line in figure.lines for mark in line.marks]
    if marks:
        xs, ys = zip(*marks, strict=True)
        axes.plot(xs, ys, "o", markerfacecolor="none", markeredgecolor="black", label=figure.mark, zorder=5)
    _scale(axes, figure.x, figure.y)
    axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
    return canvas


def _bars(figure: Bars) -> Canvas:
    rows = range(len(figure.names))
    canvas, axes = _axes(figure, height=0.6 + 0.16 * len(rows))
    axes.barh(rows, figure.values, color=COLOURS[0], height=0.7)
    for row, count in zip(rows, figure.counts, strict=True):
        axes.text(1.01, row, f"{count:,}", va="center", fontsize=6)
    _scale(axes, figure.axis)
    axes.set_yticks(rows, [short(name, 30) for name in figure.names], fontsize=6)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    return canvas


def _reliability(figure: Reliability) -> Canvas:
    canvas = Canvas(figsize=(WIDTH, 4))
    above, below = canvas.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    left, wide = [b[0] for b in figure.bins], [b[1] - b[0] for b in figure.bins]
    above.set_title(short(figure.title, 60))
    above.bar(left, [b[4] for b in figure.bins], wide, align="edge", color=COLOURS[0], alpha=0.25)
    above.plot((0, 1), (0, 1), color="0.5", linestyle="--", linewidth=0.8)
    above.plot([b[3] for b in figure.bins], [b[4] for b in figure.bins], ".-", color=COLOURS[0], linewidth=1.2)
    below.bar(left, [b[2] for b in figure.bins], wide, align="edge", color=COLOURS[1], edgecolor="white", linewidth=0.5)
    below.set_ylabel("images")
    _scale(above, y=Axis("accuracy %", 0, 1, percent=True))
    _scale(below, Axis("confidence %", 0, 1, percent=True))
    return canvas


def _matrix(figure: Matrix) -> Canvas:
    k = len(figure.names)
    side = max(WIDTH, 0.1 * k)
    canvas, axes = _axes(figure, side, side)
    shares = [[0.0] * k for _ in range(k)]
    for true, answer, n, share in figure.cells:
        shares[true][answer] = share
        if k <= 10:
            axes.text(
                answer, true, str(n), ha="center", va="center", fontsize=6, color="white" if share > 0.5 else "black"
            )
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names, size = [short(name, 20) for name in figure.names], 6 if k <= 40 else 4
    axes.set_xticks(range(k), names, rotation=90, fontsize=size)
    axes.set_yticks(range(k), names, fontsize=size)
    axes.set_xlabel("answer")
    axes.set_ylabel("true class")
    return canvas


def _density(figure: Density) -> Canvas:
    canvas, axes = _axes(figure, height=3.2)
    extent = (figure.x.low, figure.x.high, figure.y.low, figure.y.high)
    counts = figure.counts.T.astype(float)
    norm = LogNorm(1, max(2, counts.max()))
    drawn = axes.imshow(
        counts, origin="lower", extent=extent, aspect="auto", cmap="Blues", norm=norm, interpolation="none"
    )
    canvas.colorbar(drawn, label="answers")
    axes.plot(extent[:2], extent[:2], color="0.5", linestyle="--", linewidth=0.8)
    _scale(axes, figure.x, figure.y)
    return canvas


def _graph(figure: Graph) -> Canvas:
    most = max(figure.layers.count(layer) for layer in figure.layers)
    canvas, axes = _axes(figure, 1.9 * (max(figure.layers) + 1), 0.6 * most + 0.4)
    places = figure.places()
    for (x, y), node in zip(places, figure.nodes, strict=True):
        text = f"{short(node.name, 26)}\n{short(node.kind, 16)} {node.sha256[:8]}"
        axes.text(x, y, text, ha="center", va="center", fontsize=6, bbox={"boxstyle": "round", "facecolor": "0.95"})
    for source, place in figure.edges():
        (x, y), (to_x, to_y) = places[source], places[place]
        axes.annotate("", (to_x - 0.4, to_y), (x + 0.4, y), arrowprops={"arrowstyle": "-", "color": "0.5", "zorder": 0})
    axes.set_xlim(-0.5, max(figure.layers) + 0.5)
    axes.set_ylim(most - 0.5, -0.5)
    axes.set_axis_off()
    return canvas


_PLOTTED: dict[type[Figure], Callable[[Any], Canvas]] = {
    Forest: _forest,
    Curves: _curves,
    Bars: _bars,
    Reliability: _reliability,
    Matrix: _matrix,
    Density: _density,
    Graph: _graph,
}
