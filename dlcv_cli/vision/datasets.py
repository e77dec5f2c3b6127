"""Sources of images: a folder of class folders, Caltech101, the built-in digits, drawn figures."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
from PIL import Image

from dlcv_cli.errors import DlcvError, list_names
from dlcv_cli.vision.images import SUFFIXES, looks_like_image

BACKGROUND = "BACKGROUND_Google"
CALTECH101_PAGE = "https://data.caltech.edu/records/mzrjq-6wc02"


@dataclass(frozen=True)
class Listing:
    """What a folder holds; all paths are under the root, with /."""

    classes: list[str]
    images: list[tuple[str, int]]  # path, label
    bad: list[tuple[str, str]]  # named like an image but not one: path, why
    ignored: list[str]  # hidden files, stray files, other kinds of file


def list_folder(root: Path, without: tuple[str, ...] = ()) -> Listing:
    """Every class folder of `root` but those in `without`, sorted by name, with all images below it.

    Raises:
        DlcvError: no folder, no class folder, or a class folder without images, by name.
    """
    if not root.is_dir():
        raise DlcvError(f"{root}: no such folder; give a folder that has one folder of images per class")
    entries = sorted(os.listdir(root))
    folders = [e for e in entries if (root / e).is_dir() and not e.startswith(".") and e not in without]
    listing = Listing(folders, [], [], [e for e in entries if e not in folders and e not in (*without, MANIFEST)])
    if not folders:
        raise DlcvError(f"{root}: has no class folders; it needs one folder of images per class")
    for label, folder in enumerate(folders):
        for path in _files(root / folder, folder, {os.path.realpath(root)}):
            _sort_in(listing, root, path, label)
    filled = {label for _, label in listing.images}
    empty = [c for i, c in enumerate(folders) if i not in filled]
    if empty:
        raise DlcvError(
            f"{root}: class folders without a readable image: {list_names(map(repr, empty))}; fill or remove"
        )
    return listing


MANIFEST = ".dlcv.json"  # what data digits and data draw leave in the folders they make


def _files(folder: Path, prefix: str, above: set[str]) -> Iterator[str]:
    """Paths of all files below, depth first and sorted; a link back to a folder above is not followed."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for name in sorted(os.listdir(folder)):
        path = f"{prefix}/{name}"
        if (folder / name).is_dir() and not name.startswith("."):
            yield from _files(folder / name, path, above | {real})
        else:
            yield path


def _sort_in(listing: Listing, root: Path, path: str, label: int) -> None:
    file = root / path
    if file.name.startswith(".") or (file.exists() and not file.is_file()):
        listing.ignored.append(path)
        return
    try:
        with file.open("rb") as stream:
            head = stream.read(32)
    except OSError as error:
        listing.bad.append((path, error.strerror or str(error)))
        return
    if looks_like_image(head):
        listing.images.append((path, label))
    elif file.suffix.lower() in SUFFIXES:
        listing.bad.append((path, "empty file" if not head else "not an image, whatever its name says"))
    else:
        listing.ignored.append(path)


def find_caltech101(root: Path, download: bool) -> Path:
    """The folder `101_ObjectCategories` at or below `root`; with `download`, fetched there by torchvision.

    Raises:
        DlcvError: not there, or the download failed, with the manual way.
    """
    name = "101_ObjectCategories"
    places = [root, root / name, root / "caltech101" / name, root / "caltech-101" / name]
    manual = f"download caltech-101.zip from {CALTECH101_PAGE}, unpack it and its inner archive, and give that folder"

    def found() -> Path | None:
        return next((p for p in places if (p / "accordion").is_dir() and (p / "airplanes").is_dir()), None)

    if place := found():
        return place
    if not download:
        raise DlcvError(f"{root}: no Caltech101 here (no {name}): add --download, or {manual}")
    from torchvision.datasets import Caltech101

    try:
        Caltech101(root, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        raise DlcvError(f"Caltech101 could not be downloaded ({error}): {manual}") from None
    if place := found():
        return place
    raise DlcvError(f"{root}: the download holds no {name}: {manual}")


def png(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def digits() -> Iterator[tuple[str, bytes]]:
    """Yields (path, PNG) of the 1,797 optical handwritten digits, 8 x 8 gray.

    Source: scikit-learn's load_digits, the test set of UCI ML 80 (Alpaydin & Kaynak 1998). Values 0..16.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    for number, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
        gray = (pixels * (255 / 16)).round().astype(np.uint8)
        yield f"{label}/{number:04d}.png", png(Image.fromarray(gray))
