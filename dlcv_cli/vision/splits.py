"""Divide images into train, val and test: pure functions of paths, labels, hashes and a seed."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dlcv_cli.config import SplitConfig
from dlcv_cli.errors import DlcvError, SettingError, list_names
from dlcv_cli.settings import option_name
from dlcv_cli.vision.groups import TRIES, assign_groups

PARTS = ("train", "val", "test")
HELD_OUT = ("test", "val")  # in the order in which they are taken from train


@dataclass(frozen=True)
class Example:
    """One image: its path under the root (with /), label, the sha256 of its bytes, and its group if it has one."""

    path: str
    label: int
    sha256: str
    group: str | None = None


def leads_out(path: str) -> bool:
    """Return whether a path, on any system, may lead out of the root that it should start from."""
    return bool(re.match(r"[/\\]|[A-Za-z]:[/\\]", path)) or ".." in re.split(r"[/\\]", path)


@dataclass(frozen=True)
class Group:
    """Linked images, which stay in one part. They count as images of the class of the first, unless it has a name."""

    examples: tuple[Example, ...]

    @property
    def label(self) -> int:
        return self.examples[0].label


def count_held_out(count: int, fraction: float) -> int:
    """Return `fraction` of `count`, rounded up, free of floating-point error (100 x 0.07 is 7)."""
    return math.ceil(round(count * fraction, 9))


def link_examples(examples: Sequence[Example], seed: int | str, links: Iterable[tuple[str, str]] = ()) -> list[Group]:
    """Return the examples that are linked by equal content or equal group, directly or through others.

    Their order depends on the seed and the paths alone.

    Args:
        links: pairs of sha256 that are linked too.
    """
    parents: dict[tuple[str, str], tuple[str, str]] = {}

    def root_of(key: tuple[str, str]) -> tuple[str, str]:
        while parents.setdefault(key, key) != key:
            parents[key] = key = parents[parents[key]]
        return key

    for example in examples:
        if example.group:
            parents[root_of(("group", example.group))] = root_of(("sha256", example.sha256))
    for first, second in links:
        parents[root_of(("sha256", first))] = root_of(("sha256", second))
    linked: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda e: e.path):
        linked[root_of(("sha256", example.sha256))].append(example)

    def rank(group: Group) -> bytes:
        return hashlib.sha256(f"{seed}:{group.examples[0].path}".encode("utf-8", "surrogateescape")).digest()

    return sorted((Group(tuple(members)) for members in linked.values()), key=rank)


def check_examples(
    examples: Sequence[Example], classes: Sequence[str], config: SplitConfig, given: Mapping[str, str]
) -> None:
    """Raise DlcvError if parts that are given lack train or a class, or share a group.

    Args:
        given: path of every image: its part; empty if no parts are given.

    Raises:
        SettingError: a setting is to decide what is given, or to count images one by one that stay in groups.
    """
    if config.per_class and any(e.group for e in examples):
        raise SettingError(
            "--train-per-class, --val-per-class and --test-per-class contradict groups, which stay together"
        )
    parts = [part for part in PARTS if part in set(given.values())]
    if parts in ([], ["train"]):  # train alone is divided as if it were not given
        return
    typed = ["train_per_class", "val_per_class", "test_per_class", *(f"{part}_fraction" for part in parts[1:])]
    for name in typed:
        if getattr(config, name) != getattr(SplitConfig, name):
            raise SettingError(f"{option_name(name)} contradicts the parts that are given: {', '.join(parts)}")
    if "train" not in parts:
        raise DlcvError(f"the parts that are given are {' and '.join(parts)}; train is missing, and is expected too")
    seen: dict[str, Example] = {}
    for example in examples:
        first = seen.setdefault(example.group, example) if example.group else example
        if given[first.path] != given[example.path]:
            raise DlcvError(
                f"group {example.group!r} is in two of the parts that are given: {given[first.path]} "
                f"({first.path}) and {given[example.path]} ({example.path}); each group is expected in one part"
            )
    if lacking := list_lacking(classes, {part: [e for e in examples if given[e.path] == part] for part in parts}):
        raise DlcvError(
            f"the parts that are given differ in their classes: {list_names(lacking)}; each part is expected to have "
            "images of every class, under the same name"
        )


def list_lacking(classes: Sequence[str], parts: Mapping[str, Sequence[Example]]) -> list[str]:
    """Return clauses about the parts that lack a class."""
    lacking = {part: set(range(len(classes))) - {e.label for e in own} for part, own in parts.items()}
    return [
        f"{part} has no {list_names(repr(classes[label]) for label in sorted(labels))}"
        for part, labels in lacking.items()
        if labels
    ]


def split_examples(
    examples: Sequence[Example],
    classes: Sequence[str],
    config: SplitConfig,
    given: Mapping[str, str] | None = None,
    links: Sequence[tuple[str, str]] = (),
) -> dict[str, list[Example]]:
    """Return the examples of train, val and test, each sorted by path.

    Args:
        given: path of every image: its part, which it keeps, unless it is train and a part is missing. That part is
            taken from train. If empty, all images are divided.
        links: pairs of sha256 of images that stay in one part.

    Raises:
        DlcvError: a class has too few images or groups, or is missing in a part; the error names it.
        SettingError: as `check_examples`.
    """
    given = given or {}
    check_examples(examples, classes, config, given)
    staying = {part: [e for e in examples if given.get(e.path) == part] for part in PARTS[1:]}
    others = [e for e in examples if given.get(e.path, "train") == "train"]
    groups, missing = link_examples(others, config.seed, links), [part for part in HELD_OUT if not staying[part]]
    if config.per_class:
        parts = _split_per_class(groups, classes, config)
    else:
        parts = divide(groups, classes, config, missing, bool(links))
    divided = {part: [e for group in own for e in group.examples] for part, own in parts.items()}
    return {part: sorted(divided.get(part) or staying.get(part, []), key=lambda e: e.path) for part in PARTS}


def divide(
    groups: Sequence[Group], classes: Sequence[str], config: SplitConfig, missing: Sequence[str], linked: bool = False
) -> dict[str, list[Group]]:
    """Return train and the missing parts, each with its fraction.

    Args:
        linked: images of several classes may be linked, also without groups.

    Raises:
        DlcvError: a class has too few images or groups.
    """
    if linked or any(e.group for group in groups for e in group.examples):
        return _divide_groups(groups, classes, config, missing)
    return _divide(groups, classes, config, missing)


def _divide(
    groups: Sequence[Group], classes: Sequence[str], config: SplitConfig, missing: Sequence[str]
) -> dict[str, list[Group]]:
    """Return train and the missing parts; each of these has its fraction of what the ones before it leave."""
    needed = len(missing) + 1
    if len(groups) < needed:
        raise DlcvError(f"at least {needed} different images are needed, one each for {_list_parts(missing)}")
    counts = Counter(group.label for group in groups)
    require_groups(counts, classes, dict.fromkeys(range(len(classes)), needed if config.stratify else 1))
    parts, others = {}, list(groups)
    for keep, part in zip(range(len(missing), 0, -1), missing, strict=True):
        count = count_held_out(sum(len(group.examples) for group in others), _fraction_of(part, config))
        parts[part], others = _hold_out(others, count, config.stratify, keep)
    return {**parts, "train": others}


def _divide_groups(
    groups: Sequence[Group], classes: Sequence[str], config: SplitConfig, missing: Sequence[str]
) -> dict[str, list[Group]]:
    """Return train and the missing parts, over groups of several images, which may have several classes."""
    needed = len(missing) + 1
    if len(groups) < needed:
        raise DlcvError(f"there are {len(groups)} groups, and {needed} are needed, one each for {_list_parts(missing)}")
    counts = Counter(label for group in groups for label in {e.label for e in group.examples})
    require_groups(counts, classes, dict.fromkeys(range(len(classes)), needed if config.stratify else 1), "groups")
    shares, rest = {}, 1.0
    for part in missing:
        shares[part] = rest * _fraction_of(part, config)
        rest -= shares[part]
    sizes = [Counter(e.label if config.stratify else 0 for e in group.examples) for group in groups]
    assigned = assign_groups(sizes, {"train": rest, **shares})
    parts = {part: [g for g, own in zip(groups, assigned, strict=True) if own == part] for part in ("train", *missing)}
    examples = {part: [e for group in own for e in group.examples] for part, own in parts.items()}
    if config.stratify and (lacking := list_lacking(classes, examples)):
        raise DlcvError(
            f"the groups cannot be divided so that every part has every class: {list_names(lacking)} in the best of "
            f"{TRIES} tries; add images of other groups, choose smaller groups, or try another --seed"
        )
    return parts


def _fraction_of(part: str, config: SplitConfig) -> float:
    return {"val": config.val_fraction, "test": config.test_fraction}[part]


def _list_parts(missing: Sequence[str]) -> str:
    """Return the names of train and the missing parts as words: train, val and test."""
    *first, last = [part for part in PARTS if part == "train" or part in missing]
    return f"{', '.join(first)} and {last}"


def require_groups(
    counts: Mapping[int, int], classes: Sequence[str], minimum: Mapping[int, int], noun: str = "different images"
) -> None:
    """Raise DlcvError if the number of groups with a label is below the minimum for it."""
    short = [
        f"{classes[label]!r} has {counts.get(label, 0)}, needs {count}"
        for label, count in minimum.items()
        if counts.get(label, 0) < count
    ]
    if short:
        raise DlcvError(
            f"too few {noun} in a class: {list_names(short)}; add images, remove the class, or ask for fewer"
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
    require_groups(Counter(group.label for group in groups), classes, minimum)
    return parts
