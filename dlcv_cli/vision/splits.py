"""Who is in train, val and test. Pure functions of paths, labels, hashes and a seed."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from dlcv_cli.config import SplitConfig
from dlcv_cli.errors import DlcvError, list_names

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Example:
    """One image: its path under the root (with /), label and the sha256 of its bytes."""

    path: str
    label: int
    sha256: str


@dataclass(frozen=True)
class Group:
    """Byte-identical images, which stay in one part; counted under the first one's label."""

    examples: tuple[Example, ...]

    @property
    def label(self) -> int:
        return self.examples[0].label


def count_held_out(count: int, fraction: float) -> int:
    """The held-out part of `count`, rounded up (100 x 0.07 is 7, whatever floating point says)."""
    return math.ceil(round(count * fraction, 9))


def group_identical(examples: Sequence[Example], seed: int) -> list[Group]:
    """Groups by content, in an order that depends on the seed and the paths alone."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda e: e.path):
        groups[example.sha256].append(example)

    def rank(group: Group) -> bytes:
        return hashlib.sha256(f"{seed}:{group.examples[0].path}".encode("utf-8", "surrogateescape")).digest()

    return sorted((Group(tuple(members)) for members in groups.values()), key=rank)


def split(examples: Sequence[Example], classes: Sequence[str], config: SplitConfig) -> dict[str, list[Example]]:
    """Divides examples into train, val and test (each sorted by path).

    Raises:
        DlcvError: a class has too few images, by name.
    """
    groups = group_identical(examples, config.seed)
    if config.per_class:
        parts = _per_class(groups, classes, config)
    else:
        if len(groups) < 3:
            raise DlcvError("at least 3 different images are needed, one each for train, val and test")
        _require(groups, classes, dict.fromkeys(range(len(classes)), 3 if config.stratify else 1))
        test, rest = _take(groups, count_held_out(len(examples), config.test_fraction), config.stratify, keep=2)
        count = sum(len(group.examples) for group in rest)
        val, train = _take(rest, count_held_out(count, config.val_fraction), config.stratify, keep=1)
        parts = {"train": train, "val": val, "test": test}
    return {part: sorted((e for group in parts[part] for e in group.examples), key=lambda e: e.path) for part in PARTS}


def _require(groups: Sequence[Group], classes: Sequence[str], least: dict[int, int]) -> None:
    have = Counter(group.label for group in groups)
    short = [
        f"{classes[label]!r} has {have[label]}, needs {needs}" for label, needs in least.items() if have[label] < needs
    ]
    if short:
        raise DlcvError(
            f"too few different images in a class: {list_names(short)}; add images, remove the class, or ask for fewer"
        )


def _take(groups: Sequence[Group], count: int, stratify: bool, keep: int) -> tuple[list[Group], list[Group]]:
    """(taken, rest): groups that hold `count` images in all, from each class its share.

    Of each class at least one group is taken and `keep` groups are left, so that no part lacks a class.
    """
    pools: dict[int, list[Group]] = defaultdict(list)
    for group in groups:
        pools[group.label if stratify else 0].append(group)
    sizes = {label: sum(len(group.examples) for group in pool) for label, pool in pools.items()}
    quotas = _shares(sizes, count)
    taken, rest, owed = [], [], 0
    for label, pool in sorted(pools.items()):
        want = quotas[label] + owed
        chosen: list[Group] = []
        for group in pool:
            if len(group.examples) <= want and len(chosen) < len(pool) - keep:
                chosen.append(group)
                want -= len(group.examples)
        if not chosen:
            chosen = [min(pool, key=lambda group: len(group.examples))]
            want -= len(chosen[0].examples)
        owed = want  # what this class's groups could not fill, or had too much of, passes to the next
        taken += chosen
        rest += [group for group in pool if group not in chosen]
    return taken, rest


def _shares(sizes: dict[int, int], count: int) -> dict[int, int]:
    """`count` divided in proportion to sizes by largest remainders, at least 1 each (then it may exceed count)."""
    total = sum(sizes.values())
    exact = {label: count * size / total for label, size in sizes.items()}
    shares = {label: max(1, math.floor(quota)) for label, quota in exact.items()}
    by_remainder = sorted(sizes, key=lambda label: (math.floor(exact[label]) - exact[label], label))
    for label in by_remainder:
        if sum(shares.values()) >= count:
            break
        if exact[label] >= 1:
            shares[label] += 1
    return shares


def _per_class(groups: Sequence[Group], classes: Sequence[str], config: SplitConfig) -> dict[str, list[Group]]:
    """The protocols of the literature: so many groups a class, whatever the class's size.

    What is not given follows: val keeps val_fraction of what is not test, train takes what is left, and test takes
    what is left when the training images are given.
    """
    pools: dict[int, list[Group]] = defaultdict(list)
    for group in groups:
        pools[group.label].append(group)
    fraction = config.val_fraction
    parts: dict[str, list[Group]] = {part: [] for part in PARTS}
    least = {}
    for label in range(len(classes)):
        pool = pools[label]
        if config.train_per_class:
            train = config.train_per_class
            val = config.val_per_class or count_held_out(train, fraction / (1 - fraction))
            test = min(config.test_per_class or len(pool), max(1, len(pool) - train - val))
        else:
            test = config.test_per_class or count_held_out(len(pool), config.test_fraction)
            val = config.val_per_class or count_held_out(max(0, len(pool) - test), fraction)
            train = max(1, len(pool) - test - val)
        least[label] = train + val + test
        parts["test"] += pool[:test]
        parts["val"] += pool[test : test + val]
        parts["train"] += pool[test + val : test + val + train]
    _require(groups, classes, least)
    return parts
