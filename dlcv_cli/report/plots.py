"""Draws values on axes: forests, curves, dots by category, calibration."""

from __future__ import annotations

import itertools
import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from dlcv_cli.report.axes import Axis
from dlcv_cli.report.canvas import DASHES, LETTER, WIDTH, choose_colour, make_canvas, set_axes, shorten
from dlcv_cli.report.kinds import Bin, Curves, Dots, Forest, Panel, Reliability
from dlcv_cli.report.palette import EDGE, INK, PAGE, RULE, SERIES

MARKERS = ("o", "s", "D", "^", "v", "P")  # of rows, beside their colours


def draw_forest(figure: Forest) -> Canvas:
    """Draw a panel below the other: each row's interval with its value, and under it a dot for each run."""
    rows = len(figure.names)
    canvas = make_canvas(WIDTH, (38 * rows + 44) * len(figure.panels))
    for axes, panel in zip(canvas.subplots(len(figure.panels), 1, squeeze=False)[:, 0], figure.panels, strict=True):
        set_axes(axes, panel.axis)
        axes.set_yticks([])
        axes.set_ylim(rows - 0.4, -0.5)
        if panel.zero:
            axes.axvline(0, color=EDGE, linestyle=(0, (3, 3)), linewidth=1)
        for row, name in enumerate(figure.names):
            box = {"facecolor": PAGE, "edgecolor": "none", "pad": 1}
            axes.text(0, row - 0.2, shorten(name, 44), transform=axes.get_yaxis_transform(), va="center", bbox=box)
            _plot_estimate(axes, panel, row)
    return canvas


def _plot_estimate(axes: Axes, panel: Panel, row: int) -> None:
    if (estimate := panel.values[row]) is None:
        return
    (value, interval), (low, high) = estimate, (panel.axis.low, panel.axis.high)
    axes.plot((low, high), (row + 0.15,) * 2, color=RULE, linewidth=1)
    if interval:
        ends = [min(max(end, low), high) for end in interval]
        axes.plot(ends, (row + 0.15,) * 2, color=SERIES[0], linewidth=4, solid_capstyle="butt")
    runs = [run for run in (panel.runs[row] if panel.runs else ()) if low <= run <= high]
    if runs:  # without a point, an artist that is not clipped confuses the layout
        dots: dict[str, Any] = {"color": SERIES[1], "markersize": 3.5, "markeredgewidth": 0, "clip_on": False}
        axes.plot(runs, (row + 0.36,) * len(runs), "o", **dots)
    marker = "<" if value < low else ">" if value > high else "o"
    place = min(max(value, low), high)
    axes.plot(place, row + 0.15, marker, color=SERIES[0], markeredgecolor=PAGE, markersize=7.5, clip_on=False)


def draw_curves(figure: Curves) -> Canvas:
    """Draw lines with their bands, the legend above them."""
    marks = [(mark, len(line.marks)) for line in figure.lines for mark in line.marks]
    names = [shorten(line.name, 44) for line in figure.lines]
    labels = [*names, figure.mark] if marks else names
    columns = max(1, min(len(labels), int(WIDTH / (36 + LETTER * max(map(len, labels))))))
    canvas = make_canvas(WIDTH, 250 + 17 * math.ceil(len(labels) / columns))
    axes = canvas.subplots()
    set_axes(axes, figure.x, figure.y)
    for line in figure.lines:
        if line.band:
            low, high = zip(*line.band, strict=True)
            axes.fill_between(line.x, low, high, color=choose_colour(line.style), alpha=0.22, linewidth=0)
    handles = []
    for line in figure.lines:
        marker = "o" if len(line.x) <= 12 else ""
        dashes: Any = DASHES[line.style % len(DASHES)]
        handles += axes.plot(line.x, line.y, linestyle=dashes, linewidth=2, color=choose_colour(line.style))
        axes.plot(
            line.x,
            line.y,
            linestyle="",
            marker=marker,
            markersize=4,
            markeredgewidth=0,
            color=choose_colour(line.style),
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


def draw_dots(figure: Dots) -> Canvas:
    """Draw a line for each category, and a marker of each series on it."""
    rows, names = len(figure.names), [shorten(name, 44) for name, _ in figure.series]
    columns = max(1, min(len(names), int(WIDTH / (28 + LETTER * max(map(len, names))))))
    legend = 17 * math.ceil(len(names) / columns) if len(names) > 1 else 0
    canvas = make_canvas(WIDTH, 48 + 15 * rows + legend)
    axes = canvas.subplots()
    for row in range(rows):
        values = [value for _, own in figure.series if (value := own[row]) is not None]
        axes.plot((min(values), max(values)) if len(names) > 1 else (0, *values), (row,) * 2, color=RULE, linewidth=3)
    handles = []
    for style, (_, own) in enumerate(figure.series):
        places = [(value, row) for row, value in enumerate(own) if value is not None]
        handles += axes.plot(
            *zip(*places, strict=True), MARKERS[style % len(MARKERS)], color=choose_colour(style),
            markersize=max(4.5, 8.5 - style),  # so that equal values do not hide each other
            markeredgecolor=PAGE, markeredgewidth=0.75, clip_on=False,
        )  # fmt: skip
    set_axes(axes, figure.axis)
    axes.set_yticks(range(rows), [shorten(name, 19 if figure.category == "class" else 30) for name in figure.names])
    axes.set_ylim(rows - 0.5, -0.6)
    axes.tick_params(length=0)
    axes.grid(axis="x")
    if len(names) > 1:
        canvas.legend(
            handles, names, loc="outside upper left", ncols=columns, handlelength=1, borderpad=0, borderaxespad=0,
            columnspacing=1.2, labelspacing=0.3,
        )  # fmt: skip
    return canvas


def draw_reliability(figure: Reliability) -> Canvas:
    """Draw accuracy against confidence with intervals, and below it the number of images in each bin."""
    canvas = make_canvas(WIDTH, 360)
    above, below = canvas.subplots(2, 1, height_ratios=(4, 1))
    set_axes(above, Axis("confidence %", 0, 1, percent=True), Axis("accuracy %", 0, 1, percent=True))
    above.plot((0, 1), (0, 1), color=EDGE, linestyle=(0, (4, 3)), linewidth=1)
    for thin, group in itertools.groupby(figure.bins, lambda b: b.is_thin):
        _plot_bins(above, list(group), thin)
    counts = [b.n for b in figure.bins]
    lefts, widths = [b.low for b in figure.bins], [b.high - b.low for b in figure.bins]
    below.bar(lefts, counts, widths, align="edge", color=SERIES[1], edgecolor=PAGE, linewidth=1.5)
    below.set_title(f"predictions per bin, at most {max(counts):,}", loc="left")
    below.set_xlim(0, 1)
    below.set_xticks([])
    below.set_yticks([])
    return canvas


def _plot_bins(axes: Axes, bins: list[Bin], thin: bool) -> None:
    """Draw neighbouring bins: of thin ones faint points alone."""
    x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
    if thin:
        axes.plot(x, y, "o", color=RULE, markersize=6, clip_on=False)
        return
    for b in bins:
        axes.plot((b.confidence,) * 2, b.interval, color=SERIES[0], linewidth=3, alpha=0.35)
    axes.plot(x, y, color=SERIES[0], linewidth=2)
    axes.plot(x, y, "o", color=SERIES[0], markeredgecolor=PAGE, markersize=7.5, clip_on=False)
