"""Sources of images: folders of class folders, divided into parts or not; Caltech101; the handwritten digits."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
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
# name of a folder, or in a CSV, in lower case: the part that it means
PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
DIGITS = 1797


@dataclass(frozen=True)
class Listing:
    """The images of a data set. All paths are relative to the root, with /."""

    classes: list[str]
    images: list[tuple[str, int]]  # path, label
    bad: list[tuple[str, str]]  # path of a file that has an image's ending but is no image, reason
    ignored: list[str]  # hidden files, files and folders outside class folders, files of other kinds
    parts: dict[str, str] = field(default_factory=dict)  # path of each image: its part; empty if none are given
    groups: dict[str, str] = field(default_factory=dict)  # path: its group, of those that have one


def list_folder(root: Path, exclude: tuple[str, ...] = ()) -> Listing:
    """Return every class folder of `root` except those in `exclude`, sorted by name, and all images below it.

    If `root` holds folders named after parts instead, the class folders are in these: `train/cat`, `test/cat`.

    Raises:
        DlcvError: `root` is no folder, has no class folders, some parts but not others hold class folders, or a class
            has no images.
    """
    if not root.is_dir():
        raise DlcvError(f"{root}: no such folder; give a folder that has one folder of images per class")
    folders = _list_folders(root, exclude)
    if not folders:
        raise DlcvError(f"{root}: has no class folders; it needs one folder of images per class")
    parts = _find_parts(root, folders)
    places = [f"{folder}/{name}" for folder in parts for name in _list_folders(root / folder)] or folders
    classes = sorted({place.rpartition("/")[2] for place in places})
    stray = [e for e in sorted(os.listdir(root)) if e not in (*(parts or folders), *exclude, MANIFEST)]
    stray += [path for part in parts for e in sorted(os.listdir(root / part)) if (path := f"{part}/{e}") not in places]
    listing = Listing(classes, [], [], stray)
    for place in places:
        label = classes.index(place.rpartition("/")[2])
        for path in _list_files(root / place, place, {os.path.realpath(root), os.path.realpath((root / place).parent)}):
            _classify_file(listing, root, path, label)
    labels = {label for _, label in listing.images}
    empty = [name for label, name in enumerate(classes) if label not in labels]
    if empty:
        raise DlcvError(
            f"{root}: class folders without a readable image: {list_names(map(repr, empty))}; fill or remove"
        )
    listing.parts.update((path, parts[path.partition("/")[0]]) for path, _ in listing.images if parts)
    return listing


def _list_folders(folder: Path, exclude: tuple[str, ...] = ()) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones."""
    return [e for e in sorted(os.listdir(folder)) if (folder / e).is_dir() and e[0] != "." and e not in exclude]


def _find_parts(root: Path, folders: list[str]) -> dict[str, str]:
    """Return the part that each folder stands for, of those that are named after parts; empty if these are classes.

    They are parts if they hold class folders. One alone, beside other folders, is a class, such as trains.
    """
    parts = {name: PART_NAMES[name.lower()] for name in folders if name.lower() in PART_NAMES}
    classes = {name: _list_folders(root / name) for name in parts}
    if not any(classes.values()) or len(parts) == 1 < len(folders):
        return {}
    shown = [f"{name}/ ({list_names(own, 3) if own else 'no folders'})" for name, own in classes.items()]
    if not all(classes.values()):
        raise DlcvError(
            f"{root}: its folders {' and '.join(shown)} look like parts of a data set, and each is expected to hold "
            "one folder per class; give one of them alone, or a CSV of all images with --labels"
        )
    if len(set(parts.values())) < len(parts):
        raise DlcvError(f"{root}: has {' and '.join(shown)}; one folder for each of train, val and test is expected")
    return parts


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
