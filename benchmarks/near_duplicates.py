"""How many planted near-duplicates `data split` detects, what else it pairs in a folder of images, and what it costs.

Of some images of the folder changed copies are made. A copy should be paired with its original; a pair of a copy and
another image is false unless the two originals are a pair themselves.
"""

from __future__ import annotations

import argparse
import io
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps
from tabulate import tabulate

from dlcv_cli.context import Reporter, map_in_threads
from dlcv_cli.vision.datasets import list_images
from dlcv_cli.vision.images import load_image
from dlcv_cli.vision.near_duplicates import Signatures, find_pairs, make_signature


def save_again(image: Image.Image) -> Image.Image:
    """Return the image as a JPEG of quality 60 has it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB")


def scale(image: Image.Image, factor: float = 0.8) -> Image.Image:
    """Return the image with its sides multiplied by a factor."""
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)


def brighten(image: Image.Image) -> Image.Image:
    """Return the image 10 % brighter."""
    return ImageEnhance.Brightness(image).enhance(1.1)


def cut(image: Image.Image) -> Image.Image:
    """Return the image without 5 % of its width and height at each side."""
    x, y = image.width // 20, image.height // 20
    return image.crop((x, y, image.width - x, image.height - y))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 60": save_again,
    "resized to 80 %": scale,
    "mirrored": ImageOps.mirror,
    "brightness + 10 %": brighten,
    "all four": lambda image: save_again(brighten(ImageOps.mirror(scale(image)))),
    "cut by 5 % at each side": cut,
}


def measure(paths: list[Path], chosen: list[int], signatures: list[Signatures | None], longest: int) -> None:
    """Print a row for each change: copies, those that are detected, and false pairs."""
    originals = [load_image(paths[place]) for place in chosen]
    if longest:
        originals = [scale(image, longest / max(image.size)) for image in originals]
    rows = []
    for name, change in CHANGES.items():
        own = [make_signature(image) for image in originals] if longest else [signatures[place] for place in chosen]
        copies = [make_signature(change(image)) for image in originals]
        judged = [n for n in range(len(chosen)) if own[n] is not None and copies[n] is not None]
        known = [s for side in (own, copies) for n in judged if (s := side[n]) is not None]
        count = len(judged)
        pairs = {(pair.first, pair.second) for pair in find_pairs(known)}
        hits = sum((n, n + count) in pairs for n in range(count))
        links = [tuple(sorted((i % count, j % count))) for i, j in pairs if i % count != j % count]
        false = sum((i, j) not in pairs for i, j in links)
        rows.append([name, len(chosen), count, hits, f"{100 * hits / len(chosen):.1f}", false])
    print(tabulate(rows, headers=["change", "copies", "judged", "detected", "%", "false pairs"]))


def main() -> None:
    """Print what the planted copies give, the pairs in the folder itself by folder, and the seconds of each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--planted", type=int, default=300)
    parser.add_argument("--longest", type=int, default=0, help="first reduce images to this longest side, in pixels")
    options = parser.parse_args()
    paths = list(list_images([options.folder]))
    start = time.perf_counter()
    map_in_threads(lambda path: load_image(path).size, paths, "", Reporter())
    decoded = time.perf_counter()
    signatures = map_in_threads(lambda path: make_signature(load_image(path)), paths, "", Reporter())
    signed = time.perf_counter()
    known = [(path, own) for path, own in zip(paths, signatures, strict=True) if own is not None]
    pairs = find_pairs([own for _, own in known])
    searched = time.perf_counter()
    chosen = random.Random(0).sample(range(len(paths)), min(options.planted, len(paths)))
    measure(paths, chosen, signatures, options.longest)
    folders = [tuple(sorted({known[place][0].parent.name for place in (p.first, p.second)})) for p in pairs]
    print(f"\n{len(paths):,} images, {len(known):,} judged: {len(pairs):,} pairs")
    print(tabulate([[" ~ ".join(names), n] for names, n in Counter(folders).most_common(12)], headers=["in", "pairs"]))
    print(f"\nseconds: decode {decoded - start:.2f}, decode and sign {signed - decoded:.2f}, ", end="")
    print(f"search {searched - signed:.2f}")


if __name__ == "__main__":
    main()
