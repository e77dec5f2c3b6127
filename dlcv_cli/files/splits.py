"""`*.split.json`, schema dlcv.split/1: the images of train, val and test, by path and sha256."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlcv_cli.errors import FileError
from dlcv_cli.files.disk import JSON, hash_json, make_relative, read_json, write_json
from dlcv_cli.vision.splits import PARTS, Example, leads_out

SCHEMA = "dlcv.split/1"
ENDING = ".split.json"


@dataclass(frozen=True)
class Split:
    """A split file in memory."""

    path: Path
    root: Path
    classes: list[str]
    parts: dict[str, list[Example]]
    metadata: JSON


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


def read(path: Path, root: Path | None = None) -> Split:
    """Return the content of a split file; `root` replaces the root that it names. Raise FileError if it is damaged."""
    metadata = read_json(path, SCHEMA)
    classes, parts = metadata.get("classes"), metadata.get("parts")
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes) or len(classes) < 1:
        raise FileError(path, "damaged: classes must be a list of names")
    if len(set(classes)) != len(classes):
        raise FileError(path, "damaged: a class is listed twice")
    if not isinstance(parts, dict) or set(parts) != set(PARTS) or not all(isinstance(p, list) for p in parts.values()):
        raise FileError(path, "damaged: parts must be lists train, val and test")
    checked = {part: [_parse_example(path, entry, len(classes)) for entry in parts[part]] for part in PARTS}
    paths = [e.path for part in PARTS for e in checked[part]]
    if len(set(paths)) != len(paths):
        raise FileError(path, "damaged: an image is listed twice")
    if metadata.get("fingerprint") != _hash_parts(classes, checked):
        raise FileError(
            path, "damaged: its fingerprint does not match its content; create it again with dlcv data split --force"
        )
    if not isinstance(metadata.get("root"), str):
        raise FileError(path, "damaged: root must be a path")
    for key in ("skipped", "identical", "label_conflicts"):
        if not isinstance(metadata.get(key, []), list):
            raise FileError(path, f"damaged: {key} must be a list")
    return Split(path, root or path.parent / metadata["root"], classes, checked, metadata)


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
