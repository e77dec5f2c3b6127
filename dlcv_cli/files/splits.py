"""`*.split.json`: the images of train, val and test, by path and sha256.

Schema dlcv.split/1 has one division, dlcv.split/2 several folds: each image has a letter for each.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlcv_cli.errors import FileError
from dlcv_cli.files.disk import JSON, hash_json, make_relative, read_json, write_json
from dlcv_cli.vision.splits import PARTS, Example, leads_out

SCHEMA, FOLDS_SCHEMA = "dlcv.split/1", "dlcv.split/2"
ENDING = ".split.json"
LETTERS = {"train": "t", "val": "v", "test": "e"}
IN_NONE = "-"


@dataclass(frozen=True)
class Split:
    """A split file in memory; of one that has folds, one of them."""

    path: Path
    root: Path
    classes: list[str]
    parts: dict[str, list[Example]]
    metadata: JSON
    folds: int = 0  # that the file has; 0: it is one division
    fold: int | None = None  # the one that `parts` are of, 1..folds


def hash_part(classes: Sequence[str], part: Sequence[Example]) -> str:
    """Return the fingerprint of a part: the hex sha256 of the classes and of each example's content and label."""
    return hash_json([list(classes), [[e.sha256, e.label] for e in part]])


def _hash_parts(classes: Sequence[str], parts: Mapping[str, Sequence[Example]]) -> str:
    return hash_json([list(classes), *([list(_encode_example(e).values()) for e in parts[part]] for part in PARTS)])


def _encode_example(example: Example) -> JSON:
    """Return an image's entry. One without a group has none, as before there were groups."""
    group = {"group": example.group} if example.group else {}
    return {"path": example.path, "label": example.label, "sha256": example.sha256, **group}


def write(
    path: Path, root: Path, classes: Sequence[str], parts: Mapping[str, Sequence[Example]], metadata: JSON
) -> None:
    """Write a split file. `metadata` holds the recipe, skipped files and duplicates."""
    document = {
        "schema": SCHEMA,
        **metadata,
        "root": make_relative(root, path.parent),
        "classes": list(classes),
        "counts": {part: len(parts[part]) for part in PARTS},
        "fingerprint": _hash_parts(classes, parts),
        "parts": {part: [_encode_example(e) for e in parts[part]] for part in PARTS},
    }
    write_json(path, document)


def write_folds(
    path: Path,
    root: Path,
    classes: Sequence[str],
    folds: Sequence[Mapping[str, Sequence[Example]]],
    per_repeat: int | None,
    metadata: JSON,
) -> None:
    """Write a split file with folds. `per_repeat`: the number of folds of one division; None: each is its own."""
    letters: dict[Example, list[str]] = {}
    for number, parts in enumerate(folds):
        for part in PARTS:
            for example in parts[part]:
                letters.setdefault(example, [IN_NONE] * len(folds))[number] = LETTERS[part]
    members = [(example, "".join(letters[example])) for example in sorted(letters, key=lambda e: e.path)]
    document = {
        "schema": FOLDS_SCHEMA,
        **metadata,
        "root": make_relative(root, path.parent),
        "classes": list(classes),
        "folds": len(folds),
        "folds_per_repeat": per_repeat,
        "fingerprint": _hash_folds(classes, len(folds), per_repeat, members),
        "images": [{**_encode_example(example), "parts": own} for example, own in members],
    }
    write_json(path, document)


def _hash_folds(classes: Sequence[str], folds: int, per_repeat: Any, members: Sequence[tuple[Example, str]]) -> str:
    images = [[e.path, e.label, e.sha256, e.group, own] for e, own in members]
    return hash_json([list(classes), folds, per_repeat, images])


def read_metadata(path: Path) -> JSON:
    """Return the document of a split file of either schema, unchecked. FileError: it is of another."""
    try:
        return read_json(path, SCHEMA)
    except FileError as error:
        with contextlib.suppress(FileError):
            return read_json(path, FOLDS_SCHEMA)
        raise error from None


def read(path: Path, root: Path | None = None, fold: int | None = None) -> Split:
    """Return the content of a split file.

    Args:
        root: replaces the root that it names.
        fold: which one of a file that has folds, from 1.

    Raises:
        FileError: it is damaged, or has folds and none of them is chosen, or has no such fold.
    """
    file = _read_all(path)
    if fold and not file.folds:
        raise FileError(path, "has no folds: leave out --fold, or make them with dlcv data split --folds")
    return file.select(root, fold)


def read_for(path: Path, root: Path | None, fold: int | None) -> Split:
    """Return the split on which a checkpoint of a fold is evaluated; one without folds is other data, taken whole.

    Raises:
        FileError: as `read`.
    """
    file = _read_all(path)
    return file.select(root, fold if file.folds else None)


def read_each(path: Path, root: Path | None = None) -> list[Split]:
    """Return each fold of a split file, or its one division. FileError: it is damaged."""
    file = _read_all(path)
    return [file.select(root, fold) for fold in (range(1, file.folds + 1) if file.folds else (None,))]


@dataclass(frozen=True)
class _File:
    """A split file, checked: its images with their letters."""

    path: Path
    classes: list[str]
    members: list[tuple[Example, str]]
    metadata: JSON
    folds: int = 0

    def select(self, root: Path | None, fold: int | None) -> Split:
        if self.folds and fold is None:
            choice = f"choose one with --fold 1 to {self.folds}, or --fold all"
            raise FileError(self.path, f"has {self.folds} folds: {choice}")
        if fold and not 1 <= fold <= self.folds:
            raise FileError(self.path, f"has {self.folds} folds: there is no fold {fold}")
        at = (fold or 1) - 1
        parts: dict[str, list[Example]] = {part: [] for part in PARTS}
        names = {letter: part for part, letter in LETTERS.items()}
        for example, letters in self.members:
            if letters[at] != IN_NONE:
                parts[names[letters[at]]].append(example)
        root = root or self.path.parent / self.metadata["root"]
        return Split(self.path, root, self.classes, parts, self.metadata, self.folds, fold)


def _read_all(path: Path) -> _File:
    metadata = read_metadata(path)
    classes = metadata.get("classes")
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes) or len(classes) < 1:
        raise FileError(path, "damaged: classes must be a list of names")
    if len(set(classes)) != len(classes):
        raise FileError(path, "damaged: a class is listed twice")
    has_folds = metadata["schema"] == FOLDS_SCHEMA
    read_members = _read_folds if has_folds else _read_parts
    members, fingerprint = read_members(path, metadata, classes)
    if len({example.path for example, _ in members}) != len(members):
        raise FileError(path, "damaged: an image is listed twice")
    if metadata.get("fingerprint") != fingerprint:
        raise FileError(
            path, "damaged: its fingerprint does not match its content; create it again with dlcv data split --force"
        )
    if not isinstance(metadata.get("root"), str):
        raise FileError(path, "damaged: root must be a path")
    for key in ("skipped", "identical", "label_conflicts"):
        if not isinstance(metadata.get(key, []), list):
            raise FileError(path, f"damaged: {key} must be a list")
    return _File(path, classes, members, metadata, metadata["folds"] if has_folds else 0)


def _read_parts(path: Path, metadata: JSON, classes: list[str]) -> tuple[list[tuple[Example, str]], str]:
    """Return the images of a file of one division with a letter each, and their fingerprint."""
    parts = metadata.get("parts")
    if not isinstance(parts, dict) or set(parts) != set(PARTS) or not all(isinstance(p, list) for p in parts.values()):
        raise FileError(path, "damaged: parts must be lists train, val and test")
    checked = {part: [_parse_example(path, entry, len(classes)) for entry in parts[part]] for part in PARTS}
    return [(e, LETTERS[part]) for part in PARTS for e in checked[part]], _hash_parts(classes, checked)


def _read_folds(path: Path, metadata: JSON, classes: list[str]) -> tuple[list[tuple[Example, str]], str]:
    """Return the images of a file with folds, with a letter for each fold, and their fingerprint."""
    folds, per_repeat, images = (metadata.get(key) for key in ("folds", "folds_per_repeat", "images"))
    if type(folds) is not int or folds < 2:
        raise FileError(path, "damaged: folds must be a number from 2")
    if per_repeat is not None and (type(per_repeat) is not int or per_repeat < 2 or folds % per_repeat):
        raise FileError(path, f"damaged: folds_per_repeat must be null, or a number from 2 that divides {folds}")
    if not isinstance(images, list) or not images:
        raise FileError(path, "damaged: images must be a list")
    allowed, members = {*LETTERS.values(), IN_NONE}, []
    for entry in images:
        example = _parse_example(path, entry, len(classes))
        own = entry.get("parts")
        if not isinstance(own, str) or len(own) != folds or not {*own} <= allowed or {*own} == {IN_NONE}:
            raise FileError(path, f"damaged: {example.path} needs a letter t, v, e or - for each of {folds} folds")
        members.append((example, own))
    return members, _hash_folds(classes, folds, per_repeat, members)


def _parse_example(path: Path, entry: Any, classes: int) -> Example:
    if not isinstance(entry, dict):
        raise FileError(path, "damaged: each image needs path, label and sha256")
    name, label, digest = entry.get("path"), entry.get("label"), entry.get("sha256")
    if not isinstance(name, str) or not name or "\0" in name:
        raise FileError(path, "damaged: an image's path must be text")
    if leads_out(name):
        raise FileError(path, f"the image path {name!r} leads out of the root; refused")
    if type(label) is not int or not 0 <= label < classes:
        raise FileError(path, f"damaged: label {label!r} of {name} is not one of its {classes} classes")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise FileError(path, f"damaged: {name} has no sha256")
    if "group" in entry and (not isinstance(entry["group"], str) or not entry["group"]):
        raise FileError(path, f"damaged: the group of {name} must be text")
    return Example(name, label, digest, entry.get("group"))
