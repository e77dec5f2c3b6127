"""Figures as SVG for the page: text is text, colours are the page's classes, so that light and dark fit.

A figure is as wide as a phone; only a matrix of many classes and a long line of files are wider.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

from dlcv_cli.report.axes import Axis
from dlcv_cli.report.kinds import (
    AnyFigure,
    Bars,
    Curves,
    Density,
    Figure,
    Forest,
    Graph,
    Line,
    Matrix,
    Panel,
    Reliability,
)
from dlcv_cli.report.markup import safe, short

WIDTH = 340
LETTER = 6.3  # width of a character at the figures' 11 pixels, on the large side
DASHES = ("", "6 3", "2 2", "8 3 2 3")
LEVELS = 9  # shades of a heat map; those above half carry light text
SHADED = 5


def draw(figure: AnyFigure, ident: str) -> str:
    """The figure as an <svg> element with title and description; `ident` begins every id in it."""
    body, width, height = _DRAWN[type(figure)](figure)
    return (
        f'<svg role="img" aria-labelledby="{ident}-t {ident}-d" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}"><title id="{ident}-t">{safe(figure.title)}</title>'
        f'<desc id="{ident}-d">{safe(figure.text)}</desc>{"".join(body)}</svg>'
    )


def interval_bar(panel: Panel, row: int) -> str:
    """A row's interval on its panel's scale, to stand under its number, which says the same."""
    if panel.values[row] is None:
        return ""
    body = "".join(_whisker(panel, row, 2, 118, 7))
    return f'<svg class="bar" aria-hidden="true" viewBox="0 0 120 14" width="120" height="14">{body}</svg>'


Drawn = tuple[list[str], float, float]


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(x: float, y: float, text: str, anchor: str = "", kind: str = "", more: str = "") -> str:
    attributes = (f' text-anchor="{anchor}"' if anchor else "") + (f' class="{kind}"' if kind else "") + more
    return f'<text x="{_n(x)}" y="{_n(y)}"{attributes}>{escape(text)}</text>'


def _path(d: str, kind: str, more: str = "") -> str:
    return f'<path class="{kind}" d="{d}"{more}/>'


def _whisker(panel: Panel, row: int, left: float, right: float, y: float) -> list[str]:
    """A value and its interval between two x; arrows where it goes beyond the axis."""
    found = panel.values[row]
    if found is None:
        return []
    axis, (value, interval) = panel.axis, found

    def at(v: float) -> float:
        return left + (right - left) * axis.place(v)

    body = [_path(f"M{_n(left)} {_n(y)}H{_n(right)}", "rule")]
    if value < axis.low or value > axis.high:
        x, way = (left, 5) if value < axis.low else (right, -5)
        return [*body, _path(f"M{_n(x)} {_n(y)}l{way} -4v8z", "f0")]
    if interval:
        body.append(_path(f"M{_n(at(interval[0]))} {_n(y)}H{_n(at(interval[1]))}", "s0 thick"))
    return [*body, f'<circle class="f0 ring" cx="{_n(at(value))}" cy="{_n(y)}" r="3.5"/>']


def _forest(figure: Forest) -> Drawn:
    body, y = [], 12.0
    left, right = 8.0, WIDTH - 8.0
    for panel in figure.panels:
        end = y + 34 * len(figure.names) - 16
        if panel.zero:
            x = left + (right - left) * panel.axis.place(0)
            body.append(_path(f"M{_n(x)} {_n(y)}V{_n(end)}", "axis", ' stroke-dasharray="3 3"'))
        for row, name in enumerate(figure.names):
            body.append(_text(left, y, short(name, 44), "", "halo"))
            body += _whisker(panel, row, left, right, y + 11)
            y += 34
        body += _ticks_below(panel.axis, panel.axis.ticks(), left, right, end)
        y += 40
    return body, WIDTH, y - 14


def _ticks_below(axis: Axis, ticks: Iterable[float], left: float, right: float, y: float) -> list[str]:
    """Tick labels and title of an x axis at height y."""
    body = [_path(f"M{_n(left)} {_n(y)}H{_n(right)}", "axis")]
    shown = -math.inf
    for tick in ticks:
        x, text = left + (right - left) * axis.place(tick), axis.tick_label(tick)
        half = LETTER * len(text) / 2
        middle = min(max(x, half), right + 8 - half)  # of the text, inside the picture
        body.append(_path(f"M{_n(x)} {_n(y)}v4", "axis"))
        if middle - half > shown:
            body.append(_text(middle, y + 15, text, "middle"))
            shown = middle + half + 6
    return [*body, _text((left + right) / 2, y + 30, axis.title, "middle", "name")]


class _Plot:
    """A frame with two axes: where values lie in it, and its ticks and titles."""

    def __init__(self, x: Axis, y: Axis, top: float = 24, height: float = 190) -> None:
        labels = [y.tick_label(tick) for tick in y.ticks()]
        self.left = max(34, 12 + LETTER * max(map(len, labels)))
        self.x, self.y, self.top, self.bottom, self.right = x, y, top, top + height, WIDTH - 10
        self.frame = [_text(0, top - 10, y.title, "", "name")]
        for tick, label in zip(y.ticks(), labels, strict=True):
            at = self.down(tick)
            self.frame.append(_path(f"M{_n(self.left)} {_n(at)}H{_n(self.right)}", "rule"))
            self.frame.append(_text(self.left - 6, at + 4, label, "end"))
        self.frame += _ticks_below(x, x.ticks(), self.left, self.right, self.bottom)

    def across(self, value: float) -> float:
        return self.left + (self.right - self.left) * self.x.place(value)

    def down(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * self.y.place(value)

    def points(self, xs: Iterable[float], ys: Iterable[float]) -> str:
        return "L".join(f"{_n(self.across(x))} {_n(self.down(y))}" for x, y in zip(xs, ys, strict=True))


def _curves(figure: Curves) -> Drawn:
    legend, top = _legend(figure)
    plot = _Plot(figure.x, figure.y, top + 30)
    body = legend + plot.frame
    for line in figure.lines:
        if line.band:
            outline = plot.points(line.x, (high for _, high in line.band))
            back = plot.points(line.x[::-1], (low for low, _ in line.band[::-1]))
            body.append(_path(f"M{outline}L{back}z", f"f{line.style % 6} band"))
    for line in figure.lines:
        body.append(_path(f"M{plot.points(line.x, line.y)}", f"s{line.style % 6}", _dashes(line)))
        if len(line.x) <= 12:
            body += [
                f'<circle class="f{line.style % 6}" cx="{_n(plot.across(x))}" cy="{_n(plot.down(y))}" r="2"/>'
                for x, y in zip(line.x, line.y, strict=True)
            ]
    for line in figure.lines:
        body += [_star(plot.across(x), plot.down(y), len(line.marks)) for x, y in line.marks]
    return body, WIDTH, plot.bottom + 36


def _dashes(line: Line) -> str:
    dashes = DASHES[line.style % len(DASHES)]
    return f' stroke-dasharray="{dashes}"' if dashes else ""


def _star(x: float, y: float, many: int = 1) -> str:
    """The mark of the best record: a ring that is seen on any line, smaller where there are many."""
    return f'<circle class="best" cx="{_n(x)}" cy="{_n(y)}" r="{5 if many <= 4 else 2.5}"/>'


def _legend(figure: Curves) -> tuple[list[str], float]:
    """Names of the lines and of the marks from the top on, in as many rows as they need; and where it ends."""
    body, x, y = [], 0.0, 12.0
    marks = [figure.mark] if figure.mark and any(line.marks for line in figure.lines) else []
    entries: list[Line | str] = [*figure.lines, *marks]
    for line in entries:
        name = short(line if isinstance(line, str) else line.name, 44)
        width = 34 + LETTER * len(name)
        if x and x + width > WIDTH:
            x, y = 0.0, y + 17
        if isinstance(line, str):
            body.append(_star(x + 12, y - 4))
        else:
            body.append(_path(f"M{_n(x)} {_n(y - 4)}h24", f"s{line.style % 6}", _dashes(line)))
        body.append(_text(x + 30, y, name))
        x += width + 8
    return body, y


def _bars(figure: Bars) -> Drawn:
    labels = [short(name, 19) for name in figure.names]
    left = 8 + LETTER * max(map(len, labels))
    right, row = WIDTH - 92, 16
    body = []
    for tick in (0, 0.5, 1):
        x = left + (right - left) * figure.axis.place(tick)
        body.append(_path(f"M{_n(x)} 18V{_n(22 + row * len(labels))}", "rule"))
        body.append(_text(x, 12, figure.axis.tick_label(tick), "middle"))
    for place, (label, value, count) in enumerate(zip(labels, figure.values, figure.counts, strict=True)):
        y = 22 + row * place
        wide = (right - left) * figure.axis.place(value)
        body.append(_text(left - 6, y + 11, label, "end"))
        body.append(f'<rect class="f0" x="{_n(left)}" y="{y + 2}" width="{_n(wide)}" height="11"/>')
        body.append(_text(right + 5, y + 11, f"{100 * value:.0f} % of {count:,}"))
    return body, WIDTH, 26 + row * len(labels)


def _reliability(figure: Reliability) -> Drawn:
    plot = _Plot(Axis("confidence %", 0, 1, percent=True), Axis("accuracy %", 0, 1, percent=True), 24, 220)
    body = plot.frame
    for low, high, _, _, accuracy in figure.bins:
        x, wide, y = plot.across(low), plot.across(high) - plot.across(low), plot.down(accuracy)
        body.append(
            f'<rect class="f0 band" x="{_n(x)}" y="{_n(y)}" width="{_n(wide)}" height="{_n(plot.bottom - y)}"/>'
        )
    body.append(_path(f"M{plot.points((0, 1), (0, 1))}", "axis", ' stroke-dasharray="4 3"'))
    body.append(_path(f"M{plot.points((b[3] for b in figure.bins), (b[4] for b in figure.bins))}", "s0"))
    for *_, confidence, accuracy in figure.bins:
        x, y = plot.across(confidence), plot.down(accuracy)
        body.append(f'<circle class="f0 ring" cx="{_n(x)}" cy="{_n(y)}" r="3.5"/>')
    most, base, tall = max(b[2] for b in figure.bins), plot.bottom + 108, 50
    body.append(_text(0, base - tall - 8, f"images a bin, at most {most:,}", "", "name"))
    body.append(_path(f"M{_n(plot.left)} {_n(base)}H{_n(plot.right)}", "axis"))
    for low, high, n, _, _ in figure.bins:
        x, wide, high_ = plot.across(low), plot.across(high) - plot.across(low), max(1, tall * n / most)
        body.append(
            f'<rect class="f1" x="{_n(x + 1)}" y="{_n(base - high_)}" width="{_n(wide - 2)}" height="{_n(high_)}"/>'
        )
    return body, WIDTH, base + 6


def _shades(cells: Iterable[tuple[float, float, int]], size: tuple[float, float]) -> list[str]:
    """Cells (x, y, level 1..LEVELS), one path a level: thousands of them in little space."""
    paths: dict[int, list[str]] = {}
    for x, y, level in cells:
        paths.setdefault(level, []).append(f"M{_n(x)} {_n(y)}h{_n(size[0])}v{_n(size[1])}h-{_n(size[0])}z")
    return [_path("".join(paths[level]), f"h{level}") for level in sorted(paths)]


def _level(share: float) -> int:
    return min(LEVELS, max(1, math.ceil(LEVELS * share)))


def _matrix(figure: Matrix) -> Drawn:
    k = len(figure.names)
    size = 26 if k <= 10 else 15 if k <= 32 else 9
    font = 11 if size > 9 else 8
    labels = [short(name, 17) for name in figure.names]
    left = 14 + font * 0.58 * max(map(len, labels))
    top = left + 16
    side, small = size * k, f' font-size="{font}"'
    body = [_text(0, 10, "true class in rows, answer in columns", "", "name")] if k > 3 else []
    body += _shades(((left + a * size, top + t * size, _level(share)) for t, a, _, share in figure.cells), (size, size))
    step = 1 if size > 9 else 5
    lines = [k, *range(0, k, step)]
    d = "".join(f"M{_n(left)} {_n(top + at * size)}h{side}M{_n(left + at * size)} {_n(top)}v{side}" for at in lines)
    body.append(_path(d, "rule"))
    for place, label in enumerate(labels):
        at = place * size + size / 2 + font * 0.35
        body.append(_text(left - 4, top + at, label, "end", more=small))
        turn = f'{small} transform="translate({_n(left + at)} {_n(top - 4)}) rotate(-90)"'
        body.append(_text(0, 0, label, more=turn))
    if size == 26:
        body += [
            _text(left + a * size + 13, top + t * size + 17, str(n), "middle", "on" if _level(s) > SHADED else "")
            for t, a, n, s in figure.cells
        ]
    return body, max(left + side + 6, 260), top + side + 6


def _density(figure: Density) -> Drawn:
    plot = _Plot(figure.x, figure.y, 24, 270)
    wide, high = figure.counts.shape
    size = (plot.right - plot.left) / wide, (plot.bottom - plot.top) / high
    most = math.log1p(int(figure.counts.max()))
    cells = (
        (plot.left + i * size[0], plot.bottom - (j + 1) * size[1], _level(math.log1p(int(figure.counts[i, j])) / most))
        for i, j in zip(*figure.counts.nonzero(), strict=True)
    )
    ends = (max(figure.x.low, figure.y.low), min(figure.x.high, figure.y.high))
    diagonal = _path(f"M{plot.points(ends, ends)}", "axis", ' stroke-dasharray="4 3"')
    legend = _text(WIDTH - 10, 14, f"strongest: {int(figure.counts.max()):,} answers", "end")
    return [*plot.frame, *_shades(cells, size), diagonal, legend], WIDTH, plot.bottom + 36


BOX, GAP = (164, 42), 27


def _graph(figure: Graph) -> Drawn:
    """Files from left to right."""
    places = [(4 + layer * (BOX[0] + GAP), 4 + row * (BOX[1] + 16)) for layer, row in figure.places()]
    body = []
    for source, place in figure.edges():
        (x, y), (to_x, to_y) = places[source], places[place]
        x, y, to_y = x + BOX[0], y + BOX[1] / 2, to_y + BOX[1] / 2
        turns = f"C{_n(x + 16)} {_n(y)} {_n(to_x - 16)} {_n(to_y)} {to_x} {_n(to_y)}"
        body.append(_path(f"M{_n(x)} {_n(y)}{turns}", "edge"))
    box = f'width="{BOX[0]}" height="{BOX[1]}" rx="5"'
    for (x, y), node in zip(places, figure.nodes, strict=True):
        title = f"<title>{safe(node.name)} sha256 {safe(node.sha256)}</title>"
        body.append(f'<g>{title}<rect class="box" x="{x}" y="{_n(y)}" {box}/>')
        body.append(_text(x + 8, y + 17, short(node.name, 24), "", "name"))
        body.append(_text(x + 8, y + 33, f"{short(node.kind, 16)} {node.sha256[:8]}") + "</g>")
    width = 8 + (max(figure.layers) + 1) * (BOX[0] + GAP) - GAP
    return body, width, max(y for _, y in places) + BOX[1] + 4


_DRAWN: dict[type[Figure], Callable[[Any], Drawn]] = {
    Forest: _forest,
    Curves: _curves,
    Bars: _bars,
    Reliability: _reliability,
    Matrix: _matrix,
    Density: _density,
    Graph: _graph,
}
