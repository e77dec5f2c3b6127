"""Divide images into train, val and test: pure functions of paths, labels, hashes and a seed."""

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
    """Byte-identical images, which stay in one part. They count as images of the class of the first."""

    examples: tuple[Example, ...]

    @property
    def label(self) -> int:
        return self.examples[0].label


def count_held_out(count: int, fraction: float) -> int:
    """Return `fraction` of `count`, rounded up, free of floating-point error (100 x 0.07 is 7)."""
    return math.ceil(round(count * fraction, 9))


def group_identical(examples: Sequence[Example], seed: int) -> list[Group]:
    """Return the examples in groups of equal content, in an order that depends on the seed and the paths alone."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda e: e.path):
        groups[example.sha256].append(example)

    def rank(group: Group) -> bytes:
        return hashlib.sha256(f"{seed}:{group.examples[0].path}".encode("utf-8", "surrogateescape")).digest()

    return sorted((Group(tuple(members)) for members in groups.values()), key=rank)


def split_examples(
    examples: Sequence[Example], classes: Sequence[str], config: SplitConfig
) -> dict[str, list[Example]]:
    """Return the examples of train, val and test, each sorted by path.

    Raises:
        DlcvError: a class has too few images; the error names it.
    """
    groups = group_identical(examples, config.seed)
    if config.per_class:
        parts = _split_per_class(groups, classes, config)
    else:
        if len(groups) < 3:
            raise DlcvError("at least 3 different images are needed, one each for train, val and test")
        _require_groups(groups, classes, dict.fromkeys(range(len(classes)), 3 if config.stratify else 1))
        test, others = _hold_out(groups, count_held_out(len(examples), config.test_fraction), config.stratify, keep=2)
        count = sum(len(group.examples) for group in others)
        val, train = _hold_out(others, count_held_out(count, config.val_fraction), config.stratify, keep=1)
        parts = {"train": train, "val": val, "test": test}
    return {part: sorted((e for group in parts[part] for e in group.examples), key=lambda e: e.path) for part in PARTS}


def _require_groups(groups: Sequence[Group], classes: Sequence[str], minimum: dict[int, int]) -> None:
    """Raise DlcvError if a class has fewer groups than the minimum for its label."""
    counts = Counter(group.label for group in groups)
    short = [
        f"{classes[label]!r} has {counts[label]}, needs {count}"
        for label, count in minimum.items()
        if counts[label] < count
    ]
    if short:
        raise DlcvError(
            f"too few different images in a class: {list_names(short)}; add images, remove the class, or ask for fewer"
        )


def _hold_out(groups: Sequence[Group], count: int, stratify: bool, keep: int) -> tuple[list[Group], list[Group]]:
    """Return (held out, others): the held-out groups have about `count` images, each class in proportion.

    Each class has at least one held-out group and at least `keep` others, so that no part lacks a class.
    """
    pools: dict[int, list[Group]] = defaultdict(list)
    for group in groups:
        pools[group.label if stratify else 0].append(group)
    sizes = {label: sum(len(group.examples) for group in pool) for label, pool in pools.items()}
    quotas = _distribute(sizes, count)
    held_out, others, carry = [], [], 0
    for label, pool in sorted(pools.items()):
        quota = quotas[label] + carry
        chosen: list[Group] = []
        for group in pool:
            if len(group.examples) <= quota and len(chosen) < len(pool) - keep:
                chosen.append(group)
                quota -= len(group.examples)
        if not chosen:
            chosen = [min(pool, key=lambda group: len(group.examples))]
            quota -= len(chosen[0].examples)
        carry = quota  # the next class gets what the groups of this class cannot fill exactly
        held_out += chosen
        others += [group for group in pool if group not in chosen]
    return held_out, others


def _distribute(sizes: dict[int, int], count: int) -> dict[int, int]:
    """Return shares of `count` in proportion to the sizes, by largest remainders; at least 1 each, so maybe more."""
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


def _split_per_class(groups: Sequence[Group], classes: Sequence[str], config: SplitConfig) -> dict[str, list[Group]]:
    """Return parts by the protocols of the literature: a fixed number of groups per class, whatever its size.

    Numbers that are not set follow from the others: val has val_fraction of what is not test, and train has the rest;
    test has the rest if the number of training images is set.
    """
    pools: dict[int, list[Group]] = defaultdict(list)
    for group in groups:
        pools[group.label].append(group)
    fraction = config.val_fraction
    parts: dict[str, list[Group]] = {part: [] for part in PARTS}
    minimum = {}
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
        minimum[label] = train + val + test
        parts["test"] += pool[:test]
        parts["val"] += pool[test : test + val]
        parts["train"] += pool[test + val : test + val + train]
    _require_groups(groups, classes, minimum)
    return parts
