"""Divide images several times: into folds, in which each image is tested once, or at random again and again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dlcv_cli.config import SplitConfig
from dlcv_cli.errors import DlcvError, SettingError, list_names
from dlcv_cli.vision.groups import TRIES, assign_groups
from dlcv_cli.vision.splits import (
    PARTS,
    Example,
    Group,
    divide,
    link_examples,
    list_lacking,
    require_groups,
    split_examples,
)

Parts = dict[str, list[Example]]
Links = Sequence[tuple[str, str]]


def fold_examples(
    examples: Sequence[Example],
    classes: Sequence[str],
    config: SplitConfig,
    given: Mapping[str, str] | None = None,
    links: Links = (),
) -> list[Parts]:
    """Return train, val and test of each fold, each sorted by path; the folds of one division follow each other.

    With `config.folds`, the test parts of one division are disjoint and cover all images: linked images are never
    divided, and the numbers of each class differ by no more than these links force. Each fold's val is taken from the
    images that it does not test. Without it, each fold is a random division of its own.

    Args:
        links: pairs of sha256 of images that also stay together.

    Raises:
        DlcvError: a class has too few images or groups; the error names it.
        SettingError: as `check_folds` and `split_examples`.
    """
    check_folds(config, given or {})
    folds: list[Parts] = []
    for seed in range(config.seed, config.seed + config.repeats):
        if not config.folds:
            folds.append(split_examples(examples, classes, replace(config, seed=seed), given, links))
            continue
        groups = link_examples(examples, seed, links)
        tested = _deal(groups, classes, config, bool(links))
        for own in range(config.folds):
            test = [e for group, fold in zip(groups, tested, strict=True) if fold == own for e in group.examples]
            others = [e for group, fold in zip(groups, tested, strict=True) if fold != own for e in group.examples]
            ordered = link_examples(others, f"{seed}:{own}", links)  # each fold draws its val in another order
            try:
                divided = divide(ordered, classes, config, ["val"], bool(links))
            except DlcvError as error:
                raise DlcvError(f"beside the test part of fold {own + 1}: {error}") from None
            parts = {part: [e for g in of for e in g.examples] for part, of in divided.items()} | {"test": test}
            folds.append({part: sorted(parts[part], key=lambda e: e.path) for part in PARTS})
    return folds


def check_folds(config: SplitConfig, given: Mapping[str, str]) -> None:
    """Raise SettingError if folds are to divide what parts that are given divide already."""
    parts = [part for part in PARTS if part in set(given.values())]
    if parts not in ([], ["train"]) and (config.folds or config.repeats > 1):
        option = "--folds" if config.folds else "--repeats"
        raise SettingError(f"{option} contradicts the parts that are given: {', '.join(parts)}")


def _deal(groups: Sequence[Group], classes: Sequence[str], config: SplitConfig, linked: bool) -> list[int]:
    """Return the number of the fold that tests each group, 0..folds-1."""
    count = config.folds or 1
    named = linked or any(e.group for group in groups for e in group.examples)
    labels = [{e.label for e in group.examples} if named else {group.label} for group in groups]
    counts = Counter(label for own in labels for label in own)
    needed = 4 if count == 2 else count  # train and val need a group each beside the test part
    noun = "groups" if named else "different images"
    require_groups(counts, classes, dict.fromkeys(range(len(classes)), needed if config.stratify else 1), noun)
    if len(groups) < needed:
        raise DlcvError(f"there are {len(groups)} {noun}, and {needed} are needed for {count} folds")
    if not named:
        return _deal_by_class(groups, config, count)
    sizes = [Counter(e.label if config.stratify else 0 for e in group.examples) for group in groups]
    tested = [int(name) for name in assign_groups(sizes, {str(fold): 1 / count for fold in range(count)})]
    parts = {
        f"test of fold {fold + 1}": [
            e for g, own in zip(groups, tested, strict=True) if own == fold for e in g.examples
        ]
        for fold in range(count)
    }
    if config.stratify and (lacking := list_lacking(classes, parts)):
        raise DlcvError(
            f"the groups cannot be divided so that every fold tests every class: {list_names(lacking)} in the best of "
            f"{TRIES} tries; add images of other groups, ask for fewer --folds, or try another --seed"
        )
    return tested


def _deal_by_class(groups: Sequence[Group], config: SplitConfig, count: int) -> list[int]:
    """Return the fold of each group: class by class, the largest first, each to where its class has fewest images.

    Of equal folds the one with fewest images takes it, so that the folds' sizes differ no more than those of a class.
    """
    pools: dict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        pools[group.label if config.stratify else 0].append(number)
    tested, totals = [0] * len(groups), [0] * count
    for _, pool in sorted(pools.items()):
        own = [0] * count
        for number in sorted(pool, key=lambda number: -len(groups[number].examples)):
            fold = min(range(count), key=lambda fold: (own[fold], totals[fold]))
            size = len(groups[number].examples)
            tested[number] = fold
            own[fold] += size
            totals[fold] += size
    return tested
