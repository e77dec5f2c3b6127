"""Draws cells and boxes: confusion matrices, densities, lineages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from dlcv_cli.report.canvas import WIDTH, make_canvas, set_axes, shorten
from dlcv_cli.report.kinds import Density, Graph, Matrix
from dlcv_cli.report.palette import BOX, EDGE, HEAT, INK, LESS, LIGHT_HEAT, PAGE, RULE, SOFT


def _level(share: float) -> int:
    level = min(len(HEAT), max(1, math.ceil(len(HEAT) * abs(share))))
    return level if share > 0 else -level


def _choose_heat(level: int) -> str:
    return HEAT[level - 1] if level > 0 else LESS[-level - 1]


def _shade(axes: Axes, cells: Iterable[tuple[float, float, int]], width: float, height: float) -> None:
    """Fill cells (left, bottom, level from 1; below 0: less), one path a level: thousands of cells in little space."""
    corners: dict[int, list[tuple[float, float]]] = {}
    for x, y, level in cells:
        outline = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
        corners.setdefault(level, []).extend(outline)
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    for level in sorted(corners):
        path = Path(corners[level], codes * (len(corners[level]) // 5))
        axes.add_patch(PathPatch(path, facecolor=_choose_heat(level), linewidth=0))


def draw_matrix(figure: Matrix) -> Canvas:
    """Draw true classes in rows and predicted ones in columns, a square for each cell."""
    k = len(figure.names)
    size = 26 if k <= 10 else 15 if k <= 32 else 9
    font = 11 if size > 9 else 8
    labels = [shorten(name, 17) for name in figure.names]
    margin = 14 + font * 0.62 * max(map(len, labels))
    top, side = margin + 18, size * k
    width, height = max(margin + side + 6, 260), top + side + 6
    canvas = make_canvas(width, height, layout=None)
    axes = canvas.add_axes((margin / width, 6 / height, side / width, side / height))
    axes.set_xlim(0, k)
    axes.set_ylim(k, 0)
    levels = [_level(share / figure.full) for *_, share in figure.cells]
    _shade(axes, ((cell[1], cell[0], level) for cell, level in zip(figure.cells, levels, strict=True)), 1, 1)
    lines = [k, *range(0, k, 1 if size > 9 else 5)]
    grid = Path([(x, y) for at in lines for x, y in ((0, at), (k, at), (at, 0), (at, k))], [1, 2] * 2 * len(lines))
    axes.add_patch(PathPatch(grid, edgecolor=RULE, facecolor="none", linewidth=1, clip_on=False))
    for place, label in enumerate(labels):
        axes.text(-4 / size, place + 0.5, label, ha="right", va="center_baseline", fontsize=font)
        turned: dict[str, Any] = {"rotation": 90, "rotation_mode": "anchor", "va": "center_baseline"}
        axes.text(place + 0.5, -4 / size, label, fontsize=font, **turned)
    if size == 26:
        for (true, predicted, n, share), level in zip(figure.cells, levels, strict=True):
            colour = PAGE if abs(level) > LIGHT_HEAT else INK
            text = f"{100 * share:+.0f}" if figure.signed else str(n)
            axes.text(predicted + 0.5, true + 0.5, text, ha="center", va="center_baseline", color=colour)
    axes.set_axis_off()
    if k > 3:
        canvas.text(0, 1 - 10 / height, "true class in rows, predicted class in columns", color=SOFT)
    return canvas


def draw_density(figure: Density) -> Canvas:
    """Draw a square for each cell that has predictions; colours follow the logarithm of their number."""
    canvas = make_canvas(WIDTH, 330)
    axes = canvas.subplots()
    set_axes(axes, figure.x, figure.y)
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


def draw_graph(figure: Graph) -> Canvas:
    """Draw files as boxes from left to right."""
    places = [(4 + layer * (BOX_WIDTH + GAP), 4 + row * (BOX_HEIGHT + 16)) for layer, row in figure.positions()]
    width = 8 + (max(figure.layers) + 1) * (BOX_WIDTH + GAP) - GAP
    height = max(y for _, y in places) + BOX_HEIGHT + 4
    canvas = make_canvas(width, height, layout=None)
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
