"""What all drawings share: style, size, axes and texts. Units are pixels of the page, which are points on paper."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from dlcv_cli.errors import escape_controls
from dlcv_cli.report.axes import Axis
from dlcv_cli.report.palette import EDGE, INK, RULE, SERIES, SOFT

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
WIDTH = 340
LETTER = 6.3  # width of a character at 11 pixels, on the large side


def shorten(text: object, length: int) -> str:
    """Return the text with its control characters as escapes, cut to a length with an ellipsis."""
    shown = escape_controls(str(text))
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def make_canvas(width: float, height: float, layout: str | None = "constrained") -> Canvas:
    return Canvas(figsize=(width / 72, height / 72), layout=layout)  # type: ignore[arg-type]


def set_axes(axes: Axes, x: Axis | None = None, y: Axis | None = None) -> None:
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
        axes.set_title(y.title, loc="left", pad=9)
        axes.grid(axis="y")


def choose_colour(style: int) -> str:
    """Return the colour of a line or row."""
    return SERIES[style % len(SERIES)]
