"""The one renderer of figures, by matplotlib: inline SVG for the page, and SVG, PDF and PNG for papers.

Both are the same drawing. A figure is as wide as a phone; only a matrix of many classes and a long lineage are wider.
The same figure gives the same bytes. Units are pixels of the page, which are points on paper.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from dlcv_cli.errors import escape_controls
from dlcv_cli.report.inline_svg import compact
from dlcv_cli.report.kinds import AnyFigure, Axis, Bars, Curves, Density, Figure, Forest, Graph, Matrix, Reliability
from dlcv_cli.report.palette import BOX, EDGE, HEAT, INK, LIGHT_HEAT, PAGE, RULE, SERIES, SOFT

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dlcv",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a $ in a name is a $
    "text.color": INK,
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "figure.dpi": 72,
    "figure.facecolor": "none",
    "figure.constrained_layout.w_pad": 0.03,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.hspace": 0.02,
    "axes.facecolor": "none",
    "axes.edgecolor": EDGE,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 11,
    "axes.titlesize": 11,
    "axes.titlecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": RULE,
    "grid.linewidth": 1,
    "xtick.color": EDGE,
    "xtick.labelcolor": INK,
    "ytick.color": EDGE,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "path.snap": False,
}
DASHES = ("-", (0, (6, 3)), (0, (2, 2)), (0, (8, 3, 2, 3)))
UNDATED = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
WIDTH = 340
LETTER = 6.3  # width of a character at 11 pixels, on the large side


def render_inline(figure: AnyFigure, ident: str) -> Markup:
    """Return the figure as an <svg> element for the page, with title and description; `ident` begins its ids."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # in a script that the font lacks; the browser has it
        canvas = _DRAWERS[type(figure)](figure)
        width, height = (round(72 * inches) for inches in canvas.get_size_inches())
        content = compact(_save(canvas, "svg"))
    return Markup(
        '<svg role="img" aria-labelledby="{0}-t {0}-d" viewBox="0 0 {1} {2}" width="{1}" height="{2}">'
        '<title id="{0}-t">{3}</title><desc id="{0}-d">{4}</desc>{5}</svg>'
    ).format(ident, width, height, escape_controls(figure.title), escape_controls(figure.text), content)


def render_files(figure: AnyFigure, formats: Sequence[str]) -> dict[str, bytes]:
    """Return the figure as the bytes of a file in each format: `svg`, `pdf` or `png` (300 dots per inch)."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        canvas = _DRAWERS[type(figure)](figure)
        return {name: _save(canvas, name, Title=escape_controls(figure.title), paper=True) for name in formats}


def _save(canvas: Canvas, name: str, paper: bool = False, **metadata: str) -> bytes:
    buffer = io.BytesIO()
    face = PAGE if paper else "none"
    canvas.savefig(buffer, format=name, dpi=300 if paper else 72, facecolor=face, metadata=UNDATED[name] | metadata)
    return buffer.getvalue()


def shorten(text: object, length: int) -> str:
    """Return the text with its control characters as escapes, cut to a length with an ellipsis."""
    shown = escape_controls(str(text))
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def _canvas(width: float, height: float, layout: str | None = "constrained") -> Canvas:
    return Canvas(figsize=(width / 72, height / 72), layout=layout)  # type: ignore[arg-type]


def _set_axes(axes: Axes, x: Axis | None = None, y: Axis | None = None) -> None:
    """Set scales, limits, ticks and titles. The title of the y axis stands above it, which saves width."""
    for axis, side in ((x, axes.xaxis), (y, axes.yaxis)):
        if axis is None:
            continue
        ticks = axis.ticks()
        getattr(axes, f"set_{side.axis_name}scale")("log" if axis.log else "linear")
        side.set_ticks(ticks, [axis.tick_label(tick) for tick in ticks])
        side.set_ticks([], minor=True)
    if x:
        axes.set_xlim(x.low, x.high)
        axes.set_xlabel(x.title)
    if y:
        axes.set_ylim(y.low, y.high)
        axes.set_title(y.title, loc="left")
        axes.grid(axis="y")


def _forest(figure: Forest) -> Canvas:
    rows = len(figure.names)
    canvas = _canvas(WIDTH, (34 * rows + 44) * len(figure.panels))
    for axes, panel in zip(canvas.subplots(len(figure.panels), 1, squeeze=False)[:, 0], figure.panels, strict=True):
        _set_axes(axes, panel.axis)
        axes.set_yticks([])
        axes.set_ylim(rows - 0.4, -0.5)
        low, high = panel.axis.low, panel.axis.high
        if panel.zero:
            axes.axvline(0, color=EDGE, linestyle=(0, (3, 3)), linewidth=1)
        for row, name in enumerate(figure.names):
            box = {"facecolor": PAGE, "edgecolor": "none", "pad": 1}
            axes.text(0, row - 0.18, shorten(name, 44), transform=axes.get_yaxis_transform(), va="center", bbox=box)
            if (estimate := panel.values[row]) is None:
                continue
            value, interval = estimate
            axes.plot((low, high), (row + 0.2,) * 2, color=RULE, linewidth=1)
            if interval:
                ends = [min(max(end, low), high) for end in interval]
                axes.plot(ends, (row + 0.2,) * 2, color=SERIES[0], linewidth=4, solid_capstyle="butt")
            marker = "<" if value < low else ">" if value > high else "o"
            place = min(max(value, low), high)
            axes.plot(place, row + 0.2, marker, color=SERIES[0], markeredgecolor=PAGE, markersize=7.5, clip_on=False)
    return canvas


def _curves(figure: Curves) -> Canvas:
    marks = [(mark, len(line.marks)) for line in figure.lines for mark in line.marks]
    names = [shorten(line.name, 44) for line in figure.lines]
    labels = [*names, figure.mark] if marks else names
    columns = max(1, min(len(labels), int(WIDTH / (36 + LETTER * max(map(len, labels))))))
    canvas = _canvas(WIDTH, 250 + 17 * math.ceil(len(labels) / columns))
    axes = canvas.subplots()
    _set_axes(axes, figure.x, figure.y)
    for line in figure.lines:
        if line.band:
            low, high = zip(*line.band, strict=True)
            axes.fill_between(line.x, low, high, color=_colour(line.style), alpha=0.22, linewidth=0)
    handles = []
    for line in figure.lines:
        marker = "o" if len(line.x) <= 12 else ""
        dashes: Any = DASHES[line.style % len(DASHES)]
        handles += axes.plot(line.x, line.y, linestyle=dashes, linewidth=2, color=_colour(line.style))
        axes.plot(
            line.x, line.y, linestyle="", marker=marker, markersize=4, markeredgewidth=0, color=_colour(line.style)
        )
    ring: dict[str, Any] = {"linestyle": "", "marker": "o", "markerfacecolor": "none", "markeredgecolor": INK}
    for (x, y), siblings in marks:
        [handle] = axes.plot(
            x, y, markersize=10 if siblings <= 4 else 5, markeredgewidth=1.75, zorder=5, clip_on=False, **ring
        )
    canvas.legend(
        handles + ([handle] if marks else []), labels, loc="outside upper left", ncols=columns, handlelength=2.2,
        borderpad=0, borderaxespad=0, columnspacing=1.2, labelspacing=0.3,
    )  # fmt: skip
    return canvas


def _colour(style: int) -> str:
    return SERIES[style % len(SERIES)]


def _bars(figure: Bars) -> Canvas:
    rows = len(figure.names)
    canvas = _canvas(WIDTH, 30 + 16 * rows)
    axes = canvas.subplots()
    axes.barh(range(rows), figure.values, color=SERIES[0], height=0.7)
    for row, (value, count) in enumerate(zip(figure.values, figure.counts, strict=True)):
        text = f"{100 * value:.0f} % of {count:,}"
        axes.text(1.03, row, text, transform=axes.get_yaxis_transform(), va="center_baseline")
    axes.set_xlim(figure.axis.low, figure.axis.high)
    ticks = (0, 0.5, 1)
    axes.set_xticks(ticks, [figure.axis.tick_label(tick) for tick in ticks])
    axes.set_yticks(range(rows), [shorten(name, 19) for name in figure.names])
    axes.set_ylim(rows - 0.5, -0.6)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines.bottom.set_visible(False)
    axes.grid(axis="x")
    return canvas


def _reliability(figure: Reliability) -> Canvas:
    canvas = _canvas(WIDTH, 360)
    above, below = canvas.subplots(2, 1, height_ratios=(4, 1))
    _set_axes(above, Axis("confidence %", 0, 1, percent=True), Axis("accuracy %", 0, 1, percent=True))
    left, width = [b[0] for b in figure.bins], [b[1] - b[0] for b in figure.bins]
    confidence, accuracy = [b[3] for b in figure.bins], [b[4] for b in figure.bins]
    above.bar(left, accuracy, width, align="edge", color=SERIES[0], alpha=0.22)
    above.plot((0, 1), (0, 1), color=EDGE, linestyle=(0, (4, 3)), linewidth=1)
    above.plot(confidence, accuracy, color=SERIES[0], linewidth=2)
    above.plot(confidence, accuracy, "o", color=SERIES[0], markeredgecolor=PAGE, markersize=7.5, clip_on=False)
    counts = [b[2] for b in figure.bins]
    below.bar(left, counts, width, align="edge", color=SERIES[1], edgecolor=PAGE, linewidth=1.5)
    below.set_title(f"images per bin, at most {max(counts):,}", loc="left")
    below.set_xlim(0, 1)
    below.set_xticks([])
    below.set_yticks([])
    return canvas


def _level(share: float) -> int:
    return min(len(HEAT), max(1, math.ceil(len(HEAT) * share)))


def _shade(axes: Axes, cells: Iterable[tuple[float, float, int]], width: float, height: float) -> None:
    """Fill cells (left, bottom, level from 1), one path a level: thousands of cells in little space."""
    corners: dict[int, list[tuple[float, float]]] = {}
    for x, y, level in cells:
        outline = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
        corners.setdefault(level, []).extend(outline)
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    for level in sorted(corners):
        path = Path(corners[level], codes * (len(corners[level]) // 5))
        axes.add_patch(PathPatch(path, facecolor=HEAT[level - 1], linewidth=0))


def _matrix(figure: Matrix) -> Canvas:
    k = len(figure.names)
    size = 26 if k <= 10 else 15 if k <= 32 else 9
    font = 11 if size > 9 else 8
    labels = [shorten(name, 17) for name in figure.names]
    left = 14 + font * 0.62 * max(map(len, labels))
    top, side = left + 18, size * k
    width, height = max(left + side + 6, 260), top + side + 6
    canvas = _canvas(width, height, layout=None)
    axes = canvas.add_axes((left / width, 6 / height, side / width, side / height))
    axes.set_xlim(0, k)
    axes.set_ylim(k, 0)
    _shade(axes, ((predicted, true, _level(share)) for true, predicted, _, share in figure.cells), 1, 1)
    lines = [k, *range(0, k, 1 if size > 9 else 5)]
    grid = Path([(x, y) for at in lines for x, y in ((0, at), (k, at), (at, 0), (at, k))], [1, 2] * 2 * len(lines))
    axes.add_patch(PathPatch(grid, edgecolor=RULE, facecolor="none", linewidth=1, clip_on=False))
    for place, label in enumerate(labels):
        axes.text(-4 / size, place + 0.5, label, ha="right", va="center_baseline", fontsize=font)
        turned: dict[str, Any] = {"rotation": 90, "rotation_mode": "anchor", "va": "center_baseline"}
        axes.text(place + 0.5, -4 / size, label, fontsize=font, **turned)
    if size == 26:
        for true, predicted, n, share in figure.cells:
            colour = PAGE if _level(share) > LIGHT_HEAT else INK
            axes.text(predicted + 0.5, true + 0.5, str(n), ha="center", va="center_baseline", color=colour)
    axes.set_axis_off()
    if k > 3:
        canvas.text(0, 1 - 10 / height, "true class in rows, predicted class in columns", color=SOFT)
    return canvas


def _density(figure: Density) -> Canvas:
    canvas = _canvas(WIDTH, 330)
    axes = canvas.subplots()
    _set_axes(axes, figure.x, figure.y)
    columns, rows = figure.counts.shape
    width, height = (figure.x.high - figure.x.low) / columns, (figure.y.high - figure.y.low) / rows
    largest = int(figure.counts.max())
    cells = (
        (figure.x.low + i * width, figure.y.low + j * height, _level(math.log1p(n) / math.log1p(largest)))
        for (i, j), n in zip(zip(*figure.counts.nonzero(), strict=True), figure.counts[figure.counts > 0], strict=True)
    )
    _shade(axes, cells, width, height)
    ends = max(figure.x.low, figure.y.low), min(figure.x.high, figure.y.high)
    axes.plot(ends, ends, color=EDGE, linestyle=(0, (4, 3)), linewidth=1)
    axes.set_title(f"at most {largest:,} per cell", loc="right")
    return canvas


BOX_WIDTH, BOX_HEIGHT, GAP = 164, 42, 27


def _graph(figure: Graph) -> Canvas:
    """Draw files as boxes from left to right."""
    places = [(4 + layer * (BOX_WIDTH + GAP), 4 + row * (BOX_HEIGHT + 16)) for layer, row in figure.positions()]
    width = 8 + (max(figure.layers) + 1) * (BOX_WIDTH + GAP) - GAP
    height = max(y for _, y in places) + BOX_HEIGHT + 4
    canvas = _canvas(width, height, layout=None)
    axes = canvas.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    for source, place in figure.edges():
        start = places[source][0] + BOX_WIDTH, places[source][1] + BOX_HEIGHT / 2
        end = places[place][0], places[place][1] + BOX_HEIGHT / 2
        curve = Path([start, (start[0] + 16, start[1]), (end[0] - 16, end[1]), end], [1, 4, 4, 4])
        axes.add_patch(PathPatch(curve, edgecolor=EDGE, facecolor="none", linewidth=1.5))
    for (x, y), node in zip(places, figure.nodes, strict=True):
        axes.add_patch(Rectangle((x, y), BOX_WIDTH, BOX_HEIGHT, facecolor=BOX, edgecolor=EDGE, linewidth=1))
        axes.text(x + 8, y + 17, shorten(node.name, 24), color=SOFT)
        axes.text(x + 8, y + 33, f"{shorten(node.kind, 16)} {node.sha256[:8]}")
    return canvas


_DRAWERS: dict[type[Figure], Callable[[Any], Canvas]] = {
    Forest: _forest,
    Curves: _curves,
    Bars: _bars,
    Reliability: _reliability,
    Matrix: _matrix,
    Density: _density,
    Graph: _graph,
}
