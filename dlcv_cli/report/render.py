"""The one renderer of figures, by matplotlib: inline SVG for the page, and SVG, PDF and PNG for papers.

Both are the same drawing. A figure is as wide as a phone; only a matrix of many classes and a long lineage are wider.
The same figure gives the same bytes. Units are pixels of the page, which are points on paper.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure as Canvas

from dlcv_cli.errors import escape_controls
from dlcv_cli.report.canvas import STYLE
from dlcv_cli.report.inline_svg import compact
from dlcv_cli.report.kinds import AnyFigure, Curves, Density, Dots, Figure, Forest, Graph, Matrix, Reliability
from dlcv_cli.report.maps import draw_density, draw_graph, draw_matrix
from dlcv_cli.report.palette import PAGE
from dlcv_cli.report.plots import draw_curves, draw_dots, draw_forest, draw_reliability

UNDATED = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}


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


_DRAWERS: dict[type[Figure], Callable[[Any], Canvas]] = {
    Forest: draw_forest,
    Curves: draw_curves,
    Dots: draw_dots,
    Reliability: draw_reliability,
    Matrix: draw_matrix,
    Density: draw_density,
    Graph: draw_graph,
}
