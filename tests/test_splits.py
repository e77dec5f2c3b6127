"""Who is in train, val and test: exact counts, nobody twice, nobody lost, the same for the same seed."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from fractions import Fraction

import pytest

from dlcv_cli.config import SplitConfig
from dlcv_cli.errors import DlcvError, SettingError
from dlcv_cli.vision.splits import PARTS, Example, count_held_out, split_examples

Parts = dict[str, list[Example]]


def make_examples(sizes: list[int], copies: int = 1) -> list[Example]:
    """Return different images per class, each with `copies` paths."""
    return [
        Example(f"c{label}/{i}-{copy}.png", label, hashlib.sha256(f"{label}/{i}".encode()).hexdigest())
        for label, size in enumerate(sizes)
        for i in range(size)
        for copy in range(copies)
    ]


def divide(members: list[Example], **settings: object) -> Parts:
    classes = [f"class {label}" for label in range(max(e.label for e in members) + 1)]
    return split_examples(members, classes, SplitConfig(**settings))  # type: ignore[arg-type]


def counts(parts: Parts) -> tuple[int, int, int]:
    return len(parts["train"]), len(parts["val"]), len(parts["test"])


def by_class(parts: Parts) -> dict[str, Counter[int]]:
    return {part: Counter(e.label for e in parts[part]) for part in PARTS}


def draw_sizes() -> list[int]:
    """Return 101 class sizes from 31 to 800 that add up to 8,677, as in Caltech101."""
    sizes = [800, 798, 435, 435, *[32 + (i * 37) % 64 for i in range(96)], 31]
    for i in range(abs(8677 - sum(sizes))):
        sizes[4 + i % 96] += 1 if sum(sizes) < 8677 else -1
    return sizes


# Sizes and settings that press in different ways: tiny classes, huge ones, many, and large held-out shares.
SIZES = {
    "smallest": [3, 3, 3],
    "uneven": [3, 4, 5, 1000],
    "many small": [3] * 60 + [4] * 40,
    "photos": [10, 10, 15],
    "two": [50, 7],
}
FRACTIONS = [(0.2, 0.2), (0.1, 0.5), (0.5, 0.1), (0.9, 0.9), (0.6, 0.2), (0.01, 0.01)]
every_size = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
every_fraction = pytest.mark.parametrize(("test", "val"), FRACTIONS, ids=str)


@pytest.mark.parametrize("stratify", [True, False])
def test_published_counts(stratify: bool) -> None:
    """8,677 images in 101 classes are split into the published 5,552 / 1,389 / 1,736."""
    sizes = draw_sizes()
    assert (len(sizes), sum(sizes), min(sizes), max(sizes)) == (101, 8677, 31, 800)
    assert counts(divide(make_examples(sizes), stratify=stratify)) == (5552, 1389, 1736)


@pytest.mark.parametrize("fraction", ["0.2", "0.1", "0.3", "0.07", "0.14", "0.15", "0.28", "0.001", "0.55", "0.9"])
def test_held_out_is_the_exact_ceiling(fraction: str) -> None:
    """The number of held-out images is the ceiling of the exact product."""
    for count in [*range(1, 1200), 8677, 99_999, 100_000, 1_000_000]:
        assert count_held_out(count, float(fraction)) == math.ceil(count * Fraction(fraction)), count


@pytest.mark.parametrize(("count", "fraction", "expected"), [(35, 0.2, 7), (100, 0.07, 7), (25, 0.28, 7), (36, 0.2, 8)])
def test_count_held_out(count: int, fraction: float, expected: int) -> None:
    """A fifth of 35 is 7, 7 % of 100 is 7 despite binary rounding, and fractions are rounded up."""
    assert count_held_out(count, fraction) == expected


@pytest.mark.parametrize("stratify", [True, False])
@pytest.mark.parametrize("count", [3, 4, 5, 9, 35, 100, 101])
def test_part_counts_are_ceilings(count: int, stratify: bool) -> None:
    """Test has the ceiling of its fraction of all images, and val of the rest."""
    test = math.ceil(count * Fraction("0.2"))
    val = math.ceil((count - test) * Fraction("0.2"))
    assert counts(divide(make_examples([count]), stratify=stratify)) == (count - test - val, val, test)


@every_size
@every_fraction
@pytest.mark.parametrize("settings", [{}, {"stratify": False}, {"train_per_class": 1}, {"copies": 3}], ids=str)
def test_each_image_is_in_one_part(sizes: list[int], test: float, val: float, settings: dict[str, int]) -> None:
    """Each image is in exactly one part; with numbers per class, the rest is in none."""
    settings = dict(settings)
    members = make_examples(sizes, settings.pop("copies", 1))
    if "train_per_class" in settings:
        settings["val_per_class"] = 1
    parts = divide(members, test_fraction=test, val_fraction=val, **settings)
    assert Counter(e for part in PARTS for e in parts[part]) == Counter(members)


@every_size
@every_fraction
@pytest.mark.parametrize("copies", [1, 2])
def test_every_class_is_in_every_part(sizes: list[int], test: float, val: float, copies: int) -> None:
    """Stratified, each class has an image in every part, for any size and fractions."""
    parts = divide(make_examples(sizes, copies), test_fraction=test, val_fraction=val)
    absent = {part: sorted(set(range(len(sizes))) - set(actual)) for part, actual in by_class(parts).items()}
    assert absent == {part: [] for part in PARTS}


@every_fraction
def test_no_part_is_empty_without_stratification(test: float, val: float) -> None:
    """Three images fill three parts, for any fractions."""
    parts = divide(make_examples([3]), test_fraction=test, val_fraction=val, stratify=False)
    assert counts(parts) == (1, 1, 1)


@pytest.mark.parametrize("sizes", [SIZES["photos"], SIZES["two"], draw_sizes(), [40] * 30])
@pytest.mark.parametrize(("test", "val"), [(0.2, 0.2), (0.1, 0.5), (0.33, 0.33)], ids=str)
def test_each_class_has_its_share(sizes: list[int], test: float, val: float) -> None:
    """Stratified, each class's images in test and val are within one of its share."""
    actual = by_class(divide(make_examples(sizes), test_fraction=test, val_fraction=val))
    total = sum(actual["test"].values())
    rest = sum(sizes) - total
    for label, size in enumerate(sizes):
        assert abs(actual["test"][label] - total * size / sum(sizes)) < 1
        remaining = size - actual["test"][label]
        assert abs(actual["val"][label] - sum(actual["val"].values()) * remaining / rest) < 1


@pytest.mark.parametrize("settings", [{}, {"stratify": False}, {"train_per_class": 5}], ids=str)
def test_order_of_the_input_does_not_matter(settings: dict[str, object]) -> None:
    """Another order of the images gives the same parts, even with an image in two classes."""
    members = make_examples([20, 30, 15])
    members += [
        Example(f"c{(e.label + 1) % 3}/twin-{i}.png", (e.label + 1) % 3, e.sha256) for i, e in enumerate(members[::4])
    ]
    shuffled = random.Random(1).sample(members, len(members))
    assert shuffled != members
    assert divide(shuffled, **settings) == divide(members, **settings)


@pytest.mark.parametrize("settings", [{}, {"stratify": False}, {"train_per_class": 5}], ids=str)
def test_split_follows_its_seed(settings: dict[str, object]) -> None:
    """The same seed gives the same parts; another seed gives others of the same sizes."""
    members = make_examples([20, 30, 15])
    one, again, other = (divide(members, seed=seed, **settings) for seed in (0, 0, 1))
    assert one == again
    assert counts(one) == counts(other)
    assert all(one[part] != other[part] for part in PARTS)


def test_parts_are_sorted_by_path() -> None:
    """Each part lists its images by path."""
    for part in divide(make_examples([20, 30])).values():
        assert [e.path for e in part] == sorted(e.path for e in part)


def test_another_image_moves_few() -> None:
    """Adding an image to a class moves almost no other image."""
    members = make_examples([100, 100])
    before, after = divide(members), divide([*members, Example("c0/new.png", 0, "f" * 64)])
    moved = [e for part in PARTS for e in before[part] if e not in after[part]]
    assert len(moved) <= 4


@pytest.mark.parametrize("settings", [{}, {"stratify": False}, {"train_per_class": 3, "val_per_class": 2}], ids=str)
def test_identical_images_stay_in_one_part(settings: dict[str, object]) -> None:
    """Byte-identical images are never in two parts, within a class or across classes."""
    members = make_examples([10, 10, 10])
    twins = [Example(f"c{i % 3}/twin-{i}.png", i % 3, members[i].sha256) for i in range(0, 30, 2)]
    parts = divide([*members, *twins], **settings)
    where: dict[str, set[str]] = {}
    for part in PARTS:
        for e in parts[part]:
            where.setdefault(e.sha256, set()).add(part)
    assert all(len(actual) == 1 for actual in where.values())
    assert sum(map(len, parts.values())) == 45


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # train is given; val follows from val_fraction (0.2 of train + val), test is what is left
        ({"train_per_class": 15}, [(15, 4, size - 19) for size in (40, 60, 100)]),
        ({"train_per_class": 30}, [(30, 8, size - 38) for size in (40, 60, 100)]),
        ({"train_per_class": 15, "test_per_class": 20}, [(15, 4, 20)] * 3),
        ({"train_per_class": 15, "test_per_class": 50}, [(15, 4, 21), (15, 4, 41), (15, 4, 50)]),
        ({"train_per_class": 10, "val_per_class": 5}, [(10, 5, size - 15) for size in (40, 60, 100)]),
        ({"train_per_class": 10, "val_per_class": 5, "test_per_class": 7}, [(10, 5, 7)] * 3),
        ({"val_per_class": 5}, [(27, 5, 8), (43, 5, 12), (75, 5, 20)]),
        ({"test_per_class": 10}, [(24, 6, 10), (40, 10, 10), (72, 18, 10)]),
        ({"val_per_class": 5, "test_per_class": 10}, [(25, 5, 10), (45, 5, 10), (85, 5, 10)]),
    ],
    ids=str,
)
def test_per_class_protocols(settings: dict[str, int], expected: list[tuple[int, int, int]], copies: int) -> None:
    """Numbers per class are exact, and count different images."""
    parts = divide(make_examples([40, 60, 100], copies), **settings)
    different = {part: Counter(label for label, _ in {(e.label, e.sha256) for e in parts[part]}) for part in PARTS}
    assert [tuple(different[part][label] for part in PARTS) for label in range(3)] == expected


@pytest.mark.parametrize(
    ("sizes", "settings", "named"),
    [
        ([5, 2, 5], {}, r"'class 1' has 2, needs 3"),
        ([5, 2, 1], {}, r"'class 1' has 2, needs 3, 'class 2' has 1, needs 3"),
        ([40, 20, 40], {"train_per_class": 30}, r"'class 1' has 20, needs 39"),
        ([40, 11, 40], {"test_per_class": 10}, r"'class 1' has 11, needs 12"),
        ([40, 5, 40], {"val_per_class": 4}, r"'class 1' has 5, needs 6"),
    ],
    ids=str,
)
def test_too_small_class_is_named(sizes: list[int], settings: dict[str, int], named: str) -> None:
    """A class with too few images is refused by name, with its number and the required one."""
    with pytest.raises(DlcvError, match=named):
        divide(make_examples(sizes), **settings)


def test_copies_do_not_make_a_class_large_enough() -> None:
    """Three copies of one image count as one image."""
    members = [*make_examples([5]), *(Example(f"c1/{i}.png", 1, "0" * 64) for i in range(3))]
    with pytest.raises(DlcvError, match=r"'class 1' has 1, needs 3"):
        divide(members)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_images_are_refused(count: int) -> None:
    """Fewer than three images cannot be divided, stratified or not."""
    with pytest.raises(DlcvError, match="at least 3 different images"):
        split_examples(make_examples([count]), ["class 0"], SplitConfig(stratify=False))


def test_one_image_more_than_needed_is_enough() -> None:
    """A protocol that just fits is accepted."""
    assert counts(divide(make_examples([39]), train_per_class=30)) == (30, 8, 1)


@pytest.mark.parametrize("name", ["train_per_class", "val_per_class", "test_per_class"])
def test_protocols_are_stratified(name: str) -> None:
    """Numbers per class without stratification are a contradiction."""
    with pytest.raises(SettingError, match="contradicts"):
        SplitConfig(stratify=False, **{name: 3})
