"""Drawn figures: an unlimited set of labelled images for pretraining without a download.

A class is a random figure of two to four strokes. An image is this figure drawn by an unsteady hand: its points, slant,
size, pen, colours and sharpness vary.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from dlcv_cli.config import DrawConfig
from dlcv_cli.vision.datasets import encode_png

Points = NDArray[np.float64]  # (n, 2) in -1..1, x to the right and y down

SCALE = 3  # drawn three times as large and then reduced, for smooth edges


def draw_figures(config: DrawConfig) -> Iterator[tuple[str, bytes]]:
    """Yield (path, PNG of size x size RGB) of every image. It depends on the seed, its class and its number alone."""
    for label in range(config.classes):
        strokes = invent_figure(default_rng((config.seed, label)))
        for number in range(config.per_class):
            image = draw_by_hand(strokes, config.size, default_rng((config.seed, label, number)))
            yield f"figure-{label:03d}/{number:05d}.png", encode_png(image)


def invent_figure(rng: Generator) -> list[Points]:
    """Return the strokes of a class: lines, arcs, rings and waves. Half of them start where the last one ends."""
    kinds = ("line", "arc", "ring", "wave")
    strokes: list[Points] = []
    for _ in range(rng.integers(2, 5)):
        stroke = _invent_stroke(str(rng.choice(kinds)), rng)
        if strokes and rng.random() < 0.5:
            stroke = stroke + strokes[-1][-1] - stroke[0]
        strokes.append(stroke)
    points = np.concatenate(strokes)
    low, high = points.min(0), points.max(0)
    size = (high - low).max() / 1.8  # every figure fills its frame
    return [(stroke - (low + high) / 2) / size for stroke in strokes]


def _invent_stroke(kind: str, rng: Generator) -> Points:
    """Return 24 points along a random stroke of this kind, (24, 2)."""
    t = np.linspace(0, 1, 24)
    if kind in ("arc", "ring"):
        centre, radius = rng.uniform(-0.45, 0.45, 2), rng.uniform(0.25, 0.5)
        sweep = 2 * np.pi if kind == "ring" else rng.uniform(0.7, 1.6) * np.pi
        angle = rng.uniform(0, 2 * np.pi) + sweep * t
        return centre + radius * np.stack([np.cos(angle), rng.uniform(0.7, 1.3) * np.sin(angle)], 1)
    start, end = rng.uniform(-0.8, 0.8, (2, 2))
    while np.linalg.norm(end - start) < 0.7:
        start, end = rng.uniform(-0.8, 0.8, (2, 2))
    points = start + t[:, None] * (end - start)
    if kind == "wave":
        across = np.array([start[1] - end[1], end[0] - start[0]])
        points = points + 0.25 * np.sin(2 * np.pi * t * rng.integers(1, 3))[:, None] * across
    return np.asarray(points)


def draw_by_hand(strokes: list[Points], size: int, rng: Generator) -> Image.Image:
    """Return an unsteady drawing of a figure, size x size RGB."""
    turn, shear = rng.normal(0, 0.15), rng.normal(0, 0.15)
    stretch = rng.uniform(0.7, 1.15, 2)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [[1, shear], [0, 1]]
    shift = rng.uniform(-0.15, 0.15, 2)
    paper, ink = _choose_colours(rng)
    side = size * SCALE
    image = Image.new("RGB", (side, side), paper)
    pen = ImageDraw.Draw(image)
    width = rng.uniform(0.04, 0.16) * side
    for stroke in strokes:
        wobble = rng.normal(0, 0.07, (2, 2))  # moves both ends of a stroke, and the points between with them
        t = np.linspace(0, 1, len(stroke))[:, None]
        points = (stroke + (1 - t) * wobble[0] + t * wobble[1]) @ (matrix * stretch).T + shift
        pixels = [(float(x), float(y)) for x, y in (points * 0.85 + 1) / 2 * side]
        pen.line(pixels, fill=ink, width=max(1, round(width)), joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=ink)
    image = image.resize((size, size), Image.Resampling.BOX)
    if rng.random() < 0.5:  # coarse, as from a small picture
        coarse = round(np.exp(rng.uniform(np.log(6), np.log(size / 2))))
        image = image.resize((coarse, coarse), Image.Resampling.BOX).resize((size, size), Image.Resampling.BILINEAR)
    elif rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.0)))
    noise = rng.normal(0, rng.uniform(0, 12), (size, size, 3))
    return Image.fromarray((np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8))


def _choose_colours(rng: Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (paper, ink), far enough apart in brightness; half of the drawings are gray."""
    while True:
        paper, ink = rng.integers(0, 256, (2, 3))
        if rng.random() < 0.5:
            paper, ink = np.repeat(paper[:1], 3), np.repeat(ink[:1], 3)
        if abs(int(paper.sum()) - int(ink.sum())) > 240:
            return tuple(map(int, paper)), tuple(map(int, ink))
