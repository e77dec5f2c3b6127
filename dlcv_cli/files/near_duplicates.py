"""The near-duplicates that a split file records: pairs of its images that are copies of one image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlcv_cli.errors import FileError
from dlcv_cli.files.disk import JSON
from dlcv_cli.files.splits import Split
from dlcv_cli.vision.splits import Example

KEY = "near_duplicates"


@dataclass(frozen=True)
class Copies:
    """Two images that are copies of one, and the parts that they are in; similarity is in 0..1."""

    first: Example
    second: Example
    parts: tuple[str, str]
    similarity: float

    @property
    def across_parts(self) -> bool:
        """Whether they are in two parts."""
        return self.parts[0] != self.parts[1]

    @property
    def across_classes(self) -> bool:
        """Whether they are in two classes."""
        return self.first.label != self.second.label

    def __str__(self) -> str:
        return f"{self.first.path} ~ {self.second.path}"


def place_copies(
    pairs: Iterable[tuple[Example, Example, float]], folds: Sequence[Mapping[str, Sequence[Example]]]
) -> list[Copies]:
    """Return the pairs of which both images are in a part: in two parts, if any of the folds has them so."""
    placed = []
    parts_of = [{e.path: part for part, own in parts.items() for e in own} for parts in folds]
    for first, second, similarity in pairs:
        both = [(own[first.path], own[second.path]) for own in parts_of if {first.path, second.path} <= own.keys()]
        if both:
            parts = next((pair for pair in both if pair[0] != pair[1]), both[0])
            placed.append(Copies(first, second, parts, similarity))
    return placed


def encode_copies(copies: Sequence[Copies]) -> JSON:
    """Return what a split's metadata record of them; nothing if there are none, as before they were looked for."""
    return {KEY: [[own.first.path, own.second.path, own.similarity] for own in copies]} if copies else {}


def read_copies(split: Split, *others: Split) -> list[Copies]:
    """Return the pairs that a split file records, as its folds place them. Raise FileError if they are damaged.

    Args:
        split, others: the folds that count.
    """
    folds = [split.parts, *(other.parts for other in others)]
    examples = {e.path: e for parts in folds for part in parts.values() for e in part}
    recorded = split.metadata.get(KEY, [])
    if not isinstance(recorded, list):
        raise FileError(split.path, f"damaged: {KEY} must be a list")
    for entry in recorded:
        # a fold need not have all images
        if not _is_pair(entry) or not (split.folds or examples.keys() >= {*entry[:2]}):
            raise FileError(split.path, f"damaged: {KEY} must hold pairs of its images, each with a similarity")
    known = (entry for entry in recorded if examples.keys() >= {*entry[:2]})
    return place_copies(((examples[a], examples[b], float(similarity)) for a, b, similarity in known), folds)


def _is_pair(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) != 3 or not all(isinstance(path, str) for path in entry[:2]):
        return False
    return type(entry[2]) in (int, float) and 0 <= entry[2] <= 1


def list_copied(split: Split, part: str) -> set[str]:
    """Return the sha256 of the images of a part that have a near-duplicate in the training part."""
    train, own = ({e.sha256 for e in split.parts[name]} for name in ("train", part))
    pairs = [(copies.first.sha256, copies.second.sha256) for copies in read_copies(split)]
    return {a for pair in pairs for a, b in (pair, pair[::-1]) if a in own and b in train}
