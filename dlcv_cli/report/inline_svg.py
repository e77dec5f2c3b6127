"""Turns matplotlib's SVG into compact SVG for the page: no ids, no addresses, colours as the page's CSS variables."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

from markupsafe import Markup

from dlcv_cli.report.palette import INK, VARIABLES

SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
Shape = tuple[str, str]  # path data, and style with the transform
# Said once for all figures, by the page's style sheet.
SHARED = {"stroke-linecap": "butt", "stroke-linejoin": "round"}
TEXT = {"fill": INK, "font-size": "11px", "text-anchor": "start"}


def compact(svg: bytes) -> Markup:
    """Return the content of a figure's <svg> element, about a quarter as long.

    Groups, ids and clip paths are dropped, markers are drawn in place, coordinates are rounded to a tenth of a pixel,
    and neighbouring paths of one style become one path.
    """
    root = ElementTree.fromstring(svg)
    markers = {f"#{path.get('id')}": path for path in root.iter(f"{SVG}path") if path.get("id")}
    content: list[str] = []
    pending: Shape | None = None
    for element in _visible(root):
        shape = None if element.tag == f"{SVG}text" else _shape(element, markers)
        if shape and pending and shape[1] == pending[1]:
            pending = (pending[0] + shape[0], pending[1])
            continue
        if pending:
            content.append(f'<path d="{pending[0]}"{pending[1]}/>')
        pending = shape
        if shape is None:
            content.append(_text(element))
    if pending:
        content.append(f'<path d="{pending[0]}"{pending[1]}/>')
    return Markup("".join(content))  # all of it is built here; text from data is escaped by _text


def _visible(element: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """Yield paths, markers and texts in drawing order, without those that paint nothing."""
    for child in element:
        if child.tag in (f"{SVG}defs", f"{SVG}metadata"):
            continue
        if child.tag in (f"{SVG}path", f"{SVG}use"):
            style = _style(child)
            if style.get("fill") != "none" or "stroke" in style:
                yield child
        elif child.tag == f"{SVG}text":
            yield child
        else:
            yield from _visible(child)


def _style(element: ElementTree.Element) -> dict[str, str]:
    pairs = (entry.split(":", 1) for entry in (element.get("style") or "").split(";") if ":" in entry)
    return {key.strip(): value.strip() for key, value in pairs}


def _declare(style: dict[str, str], text: bool = False) -> str:
    """Return a style attribute in the page's colours, without what is the default."""
    known = TEXT if text else SHARED
    entries = [
        f"{key}:{f'var({VARIABLES[value]})' if value in VARIABLES else _round(value)}"
        for key, value in style.items()
        if known.get(key) != value and key != "font-family"
    ]
    return f' style="{";".join(entries)}"' if entries else ""


def _shape(element: ElementTree.Element, markers: dict[str, ElementTree.Element]) -> Shape:
    if element.tag == f"{SVG}path":
        return _round(element.get("d") or ""), _declare(_style(element))
    marker = markers[element.get(LINK) or ""]
    x, y = float(element.get("x") or 0), float(element.get("y") or 0)
    return _move(marker.get("d") or "", x, y), _declare(_style(marker) | _style(element))


def _move(d: str, x: float, y: float) -> str:
    """Return path data moved by (x, y); matplotlib writes absolute coordinates alone."""
    offsets = (x, y)
    numbers = iter(range(10**6))
    return _round(re.sub(r"-?\d+(\.\d+)?", lambda match: str(float(match[0]) + offsets[next(numbers) % 2]), d))


def _text(element: ElementTree.Element) -> str:
    # matplotlib positions a text either by x, y (and turns it around that point) or by one transform
    text = f"{element.text or ''}"
    escaped = str(Markup.escape(text))
    attributes = "".join(f' {key}="{_round(element.get(key) or "")}"' for key in ("x", "y") if element.get(key))
    turn = element.get("transform") or ""
    if turn and not turn.startswith("rotate(-0 "):
        attributes += f' transform="{_round(turn)}"'
    return f"<text{attributes}{_declare(_style(element), text=True)}>{escaped}</text>"


def _round(text: str) -> str:
    """Return text with its decimals rounded to tenths, and without spaces around a path's letters."""
    text = re.sub(r"-?\d+\.\d+(e-\d+)?", lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), text)
    return re.sub(r"\s*([MLQCz])\s*", r"\1", re.sub(r"\s+", " ", text)).strip()
