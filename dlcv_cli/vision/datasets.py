"""Sources of images: a folder of class folders, Caltech101, the handwritten digits."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from dlcv_cli.errors import DlcvError, list_names
from dlcv_cli.vision.images import SUFFIXES, has_image_signature

BACKGROUND = "BACKGROUND_Google"
CALTECH101_PAGE = "https://data.caltech.edu/records/mzrjq-6wc02"
CALTECH101_FOLDER = "101_ObjectCategories"
MANIFEST = ".dlcv.json"  # written by data digits and data draw into the folders that they fill
PART_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
DIGITS = 1797


@dataclass(frozen=True)
class Listing:
    """The content of a folder of class folders. All paths are relative to the root, with /."""

    classes: list[str]
    images: list[tuple[str, int]]  # path, label
    bad: list[tuple[str, str]]  # path of a file that has an image's ending but is no image, reason
    ignored: list[str]  # hidden files, files outside class folders, files of other kinds


def list_folder(root: Path, exclude: tuple[str, ...] = ()) -> Listing:
    """Return every class folder of `root` except those in `exclude`, sorted by name, and all images below it.

    Raises:
        DlcvError: `root` is no folder, has no class folders, is divided into parts, or has a class without images.
    """
    if not root.is_dir():
        raise DlcvError(f"{root}: no such folder; give a folder that has one folder of images per class")
    entries = sorted(os.listdir(root))
    classes = [e for e in entries if (root / e).is_dir() and not e.startswith(".") and e not in exclude]
    if not classes:
        raise DlcvError(f"{root}: has no class folders; it needs one folder of images per class")
    _refuse_divided(root, classes)
    listing = Listing(classes, [], [], [e for e in entries if e not in classes and e not in (*exclude, MANIFEST)])
    for label, name in enumerate(classes):
        for path in _list_files(root / name, name, {os.path.realpath(root)}):
            _classify_file(listing, root, path, label)
    labels = {label for _, label in listing.images}
    empty = [name for label, name in enumerate(classes) if label not in labels]
    if empty:
        raise DlcvError(
            f"{root}: class folders without a readable image: {list_names(map(repr, empty))}; fill or remove"
        )
    return listing


def _refuse_divided(root: Path, folders: list[str]) -> None:
    """Raise DlcvError if the folders are parts of a data set that is divided already: each holds class folders."""
    parts = {}
    for name in folders:
        if name.lower() in PART_NAMES:
            parts[name] = sorted(entry.name for entry in os.scandir(root / name) if entry.is_dir())
    if len(parts) < 2 or not all(parts.values()):
        return
    names = " and ".join(f"{name}/ ({list_names(classes, 3)})" for name, classes in parts.items())
    raise DlcvError(
        f"{root}: is divided already: its folders {names} hold class folders. data split divides the images itself and "
        f"expects one folder per class: give {root / next(iter(parts))}, or merge the parts into one set of classes"
    )


def _list_files(folder: Path, prefix: str, parents: set[str]) -> Iterator[str]:
    """Yield the paths of all files below a folder, depth first and sorted. Do not follow links to a parent folder."""
    real = os.path.realpath(folder)
    if real in parents:
        return
    for name in sorted(os.listdir(folder)):
        path = f"{prefix}/{name}"
        if (folder / name).is_dir() and not name.startswith("."):
            yield from _list_files(folder / name, path, parents | {real})
        else:
            yield path


def list_images(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield each file, and in place of each folder the images below it, sorted, as their content says."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for name in _list_files(path, ".", set()):
            file = path / name
            if not file.name.startswith(".") and file.is_file() and _is_image(file):
                yield file


def _is_image(file: Path) -> bool:
    """Return whether a file is an image, or has an image's ending and cannot be read as one."""
    try:
        with file.open("rb") as stream:
            return has_image_signature(stream.read(32)) or file.suffix.lower() in SUFFIXES
    except OSError:
        return file.suffix.lower() in SUFFIXES


def _classify_file(listing: Listing, root: Path, path: str, label: int) -> None:
    """Append a file to the listing's images, bad files or ignored files."""
    file = root / path
    if file.name.startswith(".") or (file.exists() and not file.is_file()):
        listing.ignored.append(path)
        return
    try:
        with file.open("rb") as stream:
            signature = stream.read(32)
    except OSError as error:
        listing.bad.append((path, error.strerror or str(error)))
        return
    if has_image_signature(signature):
        listing.images.append((path, label))
    elif file.suffix.lower() in SUFFIXES:
        listing.bad.append((path, "empty file" if not signature else "not an image, whatever its name says"))
    else:
        listing.ignored.append(path)


def find_caltech101(root: Path, download: bool) -> Path:
    """Return the folder `101_ObjectCategories` at or below `root`. If `download` is set, download it if necessary.

    Raises:
        DlcvError: the folder is missing, or the download failed; the message says how to do it by hand.
    """
    manual = f"download caltech-101.zip from {CALTECH101_PAGE}, unpack it and its inner archive, and give that folder"
    if folder := _locate_caltech101(root):
        return folder
    if not download:
        raise DlcvError(f"{root}: no Caltech101 here (no {CALTECH101_FOLDER}): add --download, or {manual}")
    from torchvision.datasets import Caltech101

    try:
        Caltech101(root, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        raise DlcvError(f"Caltech101 could not be downloaded ({error}): {manual}") from None
    if folder := _locate_caltech101(root):
        return folder
    raise DlcvError(f"{root}: the download holds no {CALTECH101_FOLDER}: {manual}")


def _locate_caltech101(root: Path) -> Path | None:
    parents = (root, root / "caltech101", root / "caltech-101")
    folders = [root, *(parent / CALTECH101_FOLDER for parent in parents)]
    return next((f for f in folders if (f / "accordion").is_dir() and (f / "airplanes").is_dir()), None)


def encode_png(image: Image.Image) -> bytes:
    """Return an image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def read_digits() -> Iterator[tuple[str, bytes]]:
    """Yield (path, PNG) of each of the 1,797 handwritten digits, 8 x 8 gray, values scaled from 0..16 to 0..255.

    Source: UCI Machine Learning Repository, data set 80; see data/digits.md.
    """
    with (resources.files("dlcv_cli") / "data" / "digits.npz").open("rb") as file, np.load(file) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        gray = (pixels * (255 / 16)).round().astype(np.uint8)
        yield f"{label}/{number:04d}.png", encode_png(Image.fromarray(gray))
