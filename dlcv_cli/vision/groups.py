"""Groups of images that must not be torn apart: named by a pattern, and divided over parts."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from dlcv_cli.errors import DlcvError, SettingError, list_names

ALL = -1  # stands for all classes together, beside the labels
TRIES, PASSES = 10, 20

Counts = Mapping[int, int]  # label: number of images


def match_groups(paths: Iterable[str], pattern: str, hint: str = "") -> dict[str, str]:
    """Return the group of each path: what the regular expression's group 1 matches in it, or else all that it matches.

    Args:
        hint: more about the pattern, for the error's message.

    Raises:
        DlcvError: a path has no match, or an empty one. SettingError: `pattern` is no regular expression.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SettingError(f"--group '{pattern}'{hint} is no regular expression: {error}") from None
    groups, unmatched = {}, []
    for path in paths:
        match = expression.search(path)
        if group := match and match[1 if expression.groups else 0]:
            groups[path] = group
        else:
            unmatched.append(path)
    if unmatched:
        raise DlcvError(
            f"--group '{pattern}'{hint} matches nothing in the paths of {len(unmatched)} images: "
            f"{list_names(unmatched, 3)}; it must match in the path of every image"
        )
    return groups


def assign_groups(sizes: Sequence[Counts], shares: Mapping[str, float]) -> list[str]:
    """Return the part of each group, so that each part has about its share of all images and of each class.

    Of several tries the one is kept in which the fewest classes are missing in a part, and of those the one whose
    numbers are closest to the shares. A class may still be missing in a part, where groups are too few or too mixed.

    Args:
        sizes: the number of images of each label in each group. Another order of the groups gives other parts.
        shares: part: its share of the images; they add up to 1.
    """
    tries = (_Assignment(sizes, shares, number) for number in range(TRIES))
    best = next(tries)
    for other in tries:
        if best.is_close:
            break
        best = min(best, other, key=lambda one: one.cost)
    return best.parts


class _Assignment:
    """One try: groups in random order go where images are wanted most, and then move while that makes it better.

    How far a part is from what it should have is a chi-square: the sum of (actual - wanted)^2 / wanted, over classes
    and all images together. One image counts more in a small class.
    """

    def __init__(self, sizes: Sequence[Counts], shares: Mapping[str, float], number: int) -> None:
        self.sizes = [{**own, ALL: sum(own.values())} for own in sizes]
        totals: Counter[int] = Counter()
        for own in self.sizes:
            totals.update(own)
        self.wanted = {
            part: {label: total * share for label, total in totals.items()} for part, share in shares.items()
        }
        self.actual = {part: dict.fromkeys(totals, 0) for part in shares}
        self.parts = [""] * len(sizes)
        order = sorted(range(len(sizes)), key=lambda i: hashlib.sha256(f"{number}:{i}".encode()).digest())
        for i in order:
            self._move(i, min(shares, key=lambda part: self._change(i, part, 1)[1]))
        for _ in range(PASSES):
            if not sum(self._improve(i) for i in order):  # of all: any() would stop at the first
                break

    @property
    def cost(self) -> tuple[int, float]:
        """The number of classes that are missing in a part, over all parts, and the chi-square."""
        cells = self._list_cells()
        return sum(not count for count, _ in cells), sum((count - wanted) ** 2 / wanted for count, wanted in cells)

    @property
    def is_close(self) -> bool:
        """Whether no class is missing in a part, and all numbers are as wanted when rounded up or down."""
        return all(count and abs(count - wanted) < 1 for count, wanted in self._list_cells())

    def _list_cells(self) -> list[tuple[int, float]]:
        """Return the actual and the wanted number of images, for each part and class."""
        return [(self.actual[part][label], count) for part, own in self.wanted.items() for label, count in own.items()]

    def _change(self, i: int, part: str, sign: int) -> tuple[int, float]:
        """Return by how much the cost grows if a group enters a part (sign 1) or leaves it (sign -1)."""
        missing, distance = 0, 0.0
        actual, wanted = self.actual[part], self.wanted[part]
        for label, size in self.sizes[i].items():
            before, after = actual[label], actual[label] + sign * size
            missing += (not after) - (not before)
            distance += sign * size * (before + after - 2 * wanted[label]) / wanted[label]
        return missing, distance

    def _move(self, i: int, part: str) -> None:
        for place, sign in ((self.parts[i], -1), (part, 1)):
            for label, size in self.sizes[i].items() if place else ():
                self.actual[place][label] += sign * size
        self.parts[i] = part

    def _improve(self, i: int) -> bool:
        """Move a group to the part where that lowers the cost most; return whether there is one."""
        own = self._change(i, self.parts[i], -1)
        best, where = (0, -1e-9), ""
        for part in self.actual:
            if part != self.parts[i]:
                missing, distance = self._change(i, part, 1)
                if (change := (own[0] + missing, own[1] + distance)) < best:
                    best, where = change, part
        if where:
            self._move(i, where)
        return bool(where)
