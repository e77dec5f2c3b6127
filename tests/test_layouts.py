"""Layouts that people have: parts that are given, labels in a CSV, groups that stay together."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, assert_refused, load_json, make_photos
from typer.testing import Result

from dlcv_cli.config import SplitConfig
from dlcv_cli.errors import DlcvError, SettingError
from dlcv_cli.vision.groups import match_groups
from dlcv_cli.vision.splits import PARTS, Example, split_examples


def make_set(root: Path, parts: dict[str, dict[str, int]]) -> Path:
    """Write folders of class folders in which no image is there twice: the size differs between parts."""
    for number, (part, counts) in enumerate(parts.items()):
        make_photos(root / part, counts, size=(24 + number, 20))
    return root


def write_csv(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


def read_parts(split: Path) -> dict[str, list[str]]:
    """Return the paths of each part of a split file."""
    return {part: [e["path"] for e in own] for part, own in load_json(split)["parts"].items()}


def count_parts(split: Path) -> tuple[int, int, int]:
    train, val, test = (len(own) for own in read_parts(split).values())
    return train, val, test


def assert_contradiction(result: Result, *words: str) -> None:
    """Assert exit code 2 and one line with these words."""
    assert result.exit_code == 2
    assert result.stderr.startswith("dlcv: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return the name of a split file."""
    return tmp_path / "x.split.json"


TWO = {"train": {"a": 10, "b": 15}, "test": {"a": 3, "b": 2}}


# --- parts that are given -------------------------------------------------------------------------------------------


def test_given_parts_are_kept(run: Run, tmp_path: Path, out: Path) -> None:
    """Of three parts each keeps its images; labels follow the sorted names, and paths start from ROOT."""
    root = make_set(
        tmp_path / "set", {"Training": {"b": 4, "a": 3}, "valid": {"b": 1, "a": 2}, "test": {"a": 1, "b": 1}}
    )
    result = run("data", "split", root, "-o", out)
    assert result.exit_code == 0
    assert "parts that are given: train, val, test" in result.stderr
    actual, names = read_parts(out), {"train": "Training", "val": "valid", "test": "test"}
    for part, name in names.items():
        assert actual[part] == sorted(p.relative_to(root).as_posix() for p in (root / name).glob("*/*"))
    entries = [e for own in load_json(out)["parts"].values() for e in own]
    assert all("ab"[e["label"]] == e["path"].split("/")[1] for e in entries)


@pytest.mark.parametrize(
    ("missing", "expected"),
    # a fifth of train's 10 a and 15 b is 2 and 3; val and test from train alone: as an undivided folder's, 5 and 4
    [("val", {"val": [2, 3], "test": [3, 2]}), ("test", {"val": [3, 2], "test": [2, 3]})],
)
def test_missing_part_is_taken_from_train(
    run: Run, tmp_path: Path, out: Path, missing: str, expected: dict[str, list[int]]
) -> None:
    """A part that is missing is taken from train by its fraction of train, each class in proportion."""
    given = "test" if missing == "val" else "val"
    root = make_set(tmp_path / "set", {"train": TWO["train"], given: TWO["test"]})
    result = run("data", "split", root, "-o", out)
    assert f"parts that are given: {', '.join(p for p in PARTS if p in ('train', given))}" in result.stderr
    assert f"{missing} is taken from train" in result.stderr
    actual = read_parts(out)
    for part, counts in expected.items():
        assert [sum(path.split("/")[1] == name for path in actual[part]) for name in "ab"] == counts
    assert all(path.startswith("train/") for path in actual["train"] + actual[missing])
    assert sorted(path for own in actual.values() for path in own) == sorted(
        p.relative_to(root).as_posix() for p in root.glob("*/*/*")
    )


def test_fraction_of_a_missing_part_is_obeyed(run: Run, tmp_path: Path, out: Path) -> None:
    """--val-fraction says how much of train a missing val takes."""
    root = make_set(tmp_path / "set", TWO)
    assert run("data", "split", root, "-o", out, "--val-fraction", 0.4).exit_code == 0
    assert count_parts(out) == (15, 10, 5)


@pytest.mark.parametrize("options", [(), ("--train-per-class", 4)], ids=str)
def test_train_alone_is_divided_like_class_folders(
    run: Run, tmp_path: Path, out: Path, options: tuple[object, ...]
) -> None:
    """A folder with train alone gives the counts of the same class folders without it."""
    root = make_set(tmp_path / "set", {"train": {"a": 10, "b": 20}})
    assert run("data", "split", root, "-o", out, *options).exit_code == 0
    assert run("data", "split", root / "train", "-o", tmp_path / "y.split.json", *options).exit_code == 0
    assert load_json(out)["counts"] == load_json(tmp_path / "y.split.json")["counts"]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"train": {"cat": 1, "dog": 1}, "test": {"Cat": 1, "dog": 1}}, ["train has no 'Cat'", "test has no 'cat'"]),
        ({"train": {"cat": 1, "dog": 1}, "val": {"dog": 1}}, ["val has no 'cat'", "every class"]),
        ({"train": {"cat": 1, "dog": 1}, "test": {"cat": 1, "dog": 0}}, ["test has no 'dog'"]),
        ({"test": {"cat": 1, "dog": 1}}, ["are test", "train is missing"]),
        ({"val": {"cat": 1, "dog": 1}, "test": {"cat": 1, "dog": 1}}, ["val and test", "train is missing"]),
        ({"train": {"cat": 1}, "val": {"cat": 1}, "valid": {"cat": 1}}, ["val/ (cat)", "valid/ (cat)", "one folder"]),
        ({"train": {"cat": 1, "dog": 1}, "test": {".": 2}}, ["train/ (cat, dog)", "test/ (no folders)", "--labels"]),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_refused(
    run: Run, tmp_path: Path, out: Path, parts: dict[str, dict[str, int]], words: list[str]
) -> None:
    """Parts with other classes, without train, there twice or without class folders are refused in one line."""
    for part in parts:
        (tmp_path / "set" / part).mkdir(parents=True)
    for number, (part, counts) in enumerate(parts.items()):
        made = make_photos(tmp_path / f"{number}", {name.replace(".", "flat"): n for name, n in counts.items()})
        for name in counts:
            source = made / name.replace(".", "flat")
            shutil.copytree(source, tmp_path / "set" / part / name, dirs_exist_ok=True)
    assert_refused(run("data", "split", tmp_path / "set", "-o", out), tmp_path / "set", *words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("parts", "options"),
    [
        (TWO, ("--test-fraction", 0.3)),
        (TWO, ("--train-per-class", 2)),
        (TWO, ("--val-per-class", 2)),
        (TWO, ("--test-per-class", 2)),
        ({**TWO, "val": TWO["test"]}, ("--val-fraction", 0.3)),
    ],
    ids=str,
)
def test_settings_that_contradict_given_parts(
    run: Run, tmp_path: Path, out: Path, parts: dict[str, dict[str, int]], options: tuple[object, ...]
) -> None:
    """A setting that would decide what the folders decide already is refused by name."""
    root = make_set(tmp_path / "set", parts)
    assert_contradiction(run("data", "split", root, "-o", out, *options), str(options[0]), "parts that are given")


def test_leak_between_given_parts(run: Run, tmp_path: Path, out: Path) -> None:
    """The same image in two given parts is a warning with number and names; the parts stay, and data show counts."""
    root = make_set(tmp_path / "set", TWO)
    shutil.copy(root / "train/a/000.png", root / "test/a/twin.png")
    shutil.copy(root / "train/b/000.png", root / "train/b/copy.png")
    result = run("data", "split", root, "-o", out)
    [warning] = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert "leak: 1 images" in warning
    assert "test/a/twin.png = train/a/000.png" in warning
    [note] = [line for line in result.stderr.splitlines() if "stay in one part" in line]
    assert "train/b/000.png = train/b/copy.png" in note
    assert "twin" not in note
    assert "test/a/twin.png" in read_parts(out)["test"]
    assert "1 images in several parts" in run("data", "show", out).stdout


def test_other_folders_beside_parts_are_mentioned(run: Run, tmp_path: Path, out: Path) -> None:
    """A folder beside the parts, and a file in a part, are not divided, and are mentioned and recorded."""
    root = make_set(tmp_path / "set", TWO)
    make_photos(root, {"unlabelled": 2})
    (root / "train/list.txt").write_text("words")
    result = run("data", "split", root, "-o", out)
    assert "unlabelled, train/list.txt" in result.stderr
    assert load_json(out)["ignored"] == ["unlabelled", "train/list.txt"]
    assert sum(count_parts(out)) == 30


def test_bad_image_takes_a_class_from_a_part(run: Run, tmp_path: Path, out: Path) -> None:
    """With --skip-bad, a part whose only image of a class is skipped is refused by name."""
    root = make_set(tmp_path / "set", {"train": {"a": 5, "b": 5}, "test": {"a": 2, "b": 1}})
    image = root / "test/b/000.png"
    image.write_bytes(image.read_bytes()[:100])
    result = run("data", "split", root, "-o", out, "--skip-bad")
    assert (result.exit_code, out.exists()) == (1, False)
    assert "test has no 'b'" in result.stderr.splitlines()[-1]


# --- labels in a CSV ------------------------------------------------------------------------------------------------


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Return a folder of 12 images without classes: 000.png to 011.png."""
    return make_photos(tmp_path, {"flat": 12}) / "flat"


ROWS = [f"{i:03d}.png,{'cat' if i % 2 else 'ant'}" for i in range(12)]


def test_labels_of_a_csv(run: Run, flat: Path, tmp_path: Path, out: Path) -> None:
    """Each image has the class that the CSV says, sorted by name, and the CSV is an input with its sha256."""
    labels = write_csv(tmp_path / "labels.csv", "path,label", *reversed(ROWS))
    assert run("data", "split", flat, "--labels", labels, "-o", out).exit_code == 0
    document = load_json(out)
    assert document["classes"] == ["ant", "cat"]
    assert {e["path"]: e["label"] for own in document["parts"].values() for e in own} == {
        f"{i:03d}.png": i % 2 for i in range(12)
    }
    digest = hashlib.sha256(labels.read_bytes()).hexdigest()
    assert document["inputs"]["labels"] == {"path": "labels.csv", "sha256": digest}
    assert not {"group", "path_column", "label_column", "part_column", "group_column"} & set(document["config"])
    shown = run("show", out)
    assert shown.exit_code == 0
    [line] = [line for line in shown.stdout.splitlines() if "labels.csv" in line]
    assert line.endswith("unchanged")


def test_labels_decide_what_is_up_to_date(run: Run, flat: Path, tmp_path: Path, out: Path) -> None:
    """The same CSV is up to date, wherever it is; another one is refused by name."""
    labels = write_csv(tmp_path / "labels.csv", "path,label", *ROWS)
    command = ("data", "split", flat, "-o", out, "--labels")
    assert run(*command, labels).exit_code == 0
    moved = labels.rename(tmp_path / "moved.csv")
    assert "up to date" in run(*command, moved).stdout
    assert_refused(run(*command, write_csv(moved, "path,label", "", *ROWS)), "different labels", "--force")


def test_columns_of_a_csv_are_named(run: Run, flat: Path, tmp_path: Path, out: Path) -> None:
    """Columns may have any names and places; paths may be absolute, or have ./ before them."""
    rows = [f"{i % 2},x,{'./' if i % 3 else f'{flat}/'}{i:03d}.png" for i in range(12)]
    labels = write_csv(tmp_path / "labels.csv", "kind, more ,file name", *rows)
    options = ("--labels", labels, "--path-column", "file name", "--label-column", "kind")
    assert run("data", "split", flat, *options, "-o", out).exit_code == 0
    assert sorted(p for own in read_parts(out).values() for p in own) == [f"{i:03d}.png" for i in range(12)]
    assert load_json(out)["config"]["path_column"] == "file name"


def test_csv_of_other_programs(run: Run, flat: Path, tmp_path: Path, out: Path) -> None:
    """A byte order mark, CRLF, quotes and empty lines are read."""
    text = "\r\n".join(['"path","label"', *(f'"{row.split(",")[0]}","a, {row[-3:]}"' for row in ROWS), "", ""])
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert run("data", "split", flat, "--labels", tmp_path / "labels.csv", "-o", out).exit_code == 0
    assert load_json(out)["classes"] == ["a, ant", "a, cat"]


def test_parts_of_a_csv_are_kept(run: Run, flat: Path, tmp_path: Path, out: Path) -> None:
    """A column of parts is kept as it is, by any of the names of parts; a missing val is taken from train."""
    parts = ["Training"] * 8 + ["test"] * 4
    labels = write_csv(tmp_path / "labels.csv", "path,label,part", *map(",".join, zip(ROWS, parts, strict=True)))
    assert run("data", "split", flat, "--labels", labels, "-o", out).exit_code == 0
    assert read_parts(out)["test"] == [f"{i:03d}.png" for i in range(8, 12)]
    assert count_parts(out) == (6, 2, 4)
    assert_contradiction(
        run("data", "split", flat, "--labels", labels, "-o", out, "--test-fraction", 0.5), "--test-fraction"
    )


def test_empty_column_of_parts_gives_none(run: Run, flat: Path, tmp_path: Path, out: Path) -> None:
    """A column of parts without an entry is as none."""
    labels = write_csv(tmp_path / "labels.csv", "path,label,part", *(f"{row}," for row in ROWS))
    assert run("data", "split", flat, "--labels", labels, "-o", out).exit_code == 0
    assert count_parts(out) == (7, 2, 3)


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (["file,label", "000.png,a"], (), ["no column 'path'", "'file', 'label'", "--path-column"]),
        (["path;label", "000.png;a"], (), ["no column 'path'", "separated by ';'"]),
        (["path,class", "000.png,a"], (), ["no column 'label'", "'path', 'class'", "--label-column"]),
        (["path;label", "000.png;a"], (), ["'path;label'", "separated by commas"]),
        (["path,label,path", "000.png,a,b"], (), ["has 2 columns 'path'"]),
        (["path,label", "000.png,a"], ("--part-column", "set"), ["no column 'set'", "--part-column"]),
        (["path,label", "000.png,a"], ("--group-column", "who"), ["no column 'who'", "--group-column"]),
        (["path,label", "000.png,a", "9.png,a", "8.png,b"], (), ["2 of its 3", "row 4 '8.png', row 3 '9.png'", "flat"]),
        (["path,label", "000.png,a", ".,b"], (), ["row 3 '.'"]),
        (["path,label,part", "000.png,a,train", "001.png,a,dev"], (), ["row 3", "'dev'", "train, training, val"]),
        (["path,label,part", "000.png,a,train", "001.png,a,"], (), ["row 3 has no part", "every row"]),
        (["path,label", "000.png,a", "", "./000.png,b"], (), ["row 4", "'000.png'", "after row 2"]),
        (["path,label", "000.png,a", "001.png, "], (), ["row 3", "empty 'label'"]),
        (["path,label", "000.png,a", ",b"], (), ["row 3 has no path"]),
        (["path,label", "000.png"], (), ["row 2 has 1 cells", "2 are expected"]),
        (["path,label", "000.png,a", "001.png,a,b"], (), ["row 3 has 3 cells"]),
        (["path,label", "../flat/000.png,a"], (), ["row 2", "leads out of", "flat"]),
        (["path,label", "/etc/passwd,a"], (), ["row 2", "'/etc/passwd' leads out"]),
        (["path,label", "..\\x.png,a"], (), ["row 2", "leads out"]),
        (["path,label", "C:/x.png,a"], (), ["row 2", "leads out"]),
        (["path,label"], (), ["has 1 rows", "a header and a row"]),
        (["path,label", '"000.png,a'], (), ["is not the CSV that is expected"]),
        (["path,label", "000.png,only", "001.png,only"], (), ["only one class, 'only'"]),
        (
            ["path,label,part", "000.png,a,train", "001.png,b,train", "002.png,a,test"],
            (),
            ["labels.csv", "test has no 'b'"],
        ),
    ],
    ids=str,
)
def test_csv_that_does_not_fit_is_refused(
    run: Run, flat: Path, tmp_path: Path, out: Path, rows: list[str], options: tuple[str, ...], words: list[str]
) -> None:
    """What is wrong with a CSV is one line: the file, the row, what it has and what is expected."""
    labels = write_csv(tmp_path / "labels.csv", *rows)
    result = run("data", "split", flat, "--labels", labels, "-o", out, *options)
    assert_refused(result, *words)
    assert not out.exists()


@pytest.mark.parametrize("content", [None, b"", b"path,label\n\xff\xfe,a\n"], ids=repr)
def test_unreadable_csv_is_refused(run: Run, flat: Path, tmp_path: Path, out: Path, content: bytes | None) -> None:
    """A CSV that is missing, empty or not UTF-8 is refused by name."""
    if content is not None:
        (tmp_path / "labels.csv").write_bytes(content)
    assert_refused(run("data", "split", flat, "--labels", tmp_path / "labels.csv", "-o", out), "labels.csv")


def test_listed_file_that_is_no_image(run: Run, flat: Path, tmp_path: Path, out: Path) -> None:
    """A file in the CSV that is no image is listed as unreadable, and skipped with --skip-bad."""
    (flat / "notes.txt").write_text("words")
    labels = write_csv(tmp_path / "labels.csv", "path,label", *ROWS, "notes.txt,ant")
    result = run("data", "split", flat, "--labels", labels, "-o", out)
    assert (result.exit_code, "1 unreadable images" in result.stderr) == (1, True)
    assert run("data", "split", flat, "--labels", labels, "-o", out, "--skip-bad").exit_code == 0
    assert load_json(out)["skipped"][0]["path"] == "notes.txt"


@pytest.mark.parametrize("option", ["--path-column", "--label-column", "--part-column", "--group-column"])
def test_columns_need_labels(run: Run, photos: Path, out: Path, option: str) -> None:
    """A column without --labels is refused."""
    assert_contradiction(run("data", "split", photos, "-o", out, option, "x"), option, "--labels")


def test_labels_of_caltech101(run: Run, flat: Path, tmp_path: Path, out: Path) -> None:
    """--labels contradicts --dataset caltech101."""
    labels = write_csv(tmp_path / "labels.csv", "path,label", *ROWS)
    result = run("data", "split", flat, "--labels", labels, "--dataset", "caltech101", "-o", out)
    assert_contradiction(result, "--labels", "caltech101")


# --- groups ---------------------------------------------------------------------------------------------------------


def make_members(groups: list[dict[int, int]]) -> list[Example]:
    """Return different images with these numbers per label in each group."""
    return [
        Example(f"{g}/{label}-{i}.png", label, hashlib.sha256(f"{g}/{label}/{i}".encode()).hexdigest(), f"group {g}")
        for g, own in enumerate(groups)
        for label, size in own.items()
        for i in range(size)
    ]


def divide(members: list[Example], **settings: Any) -> dict[str, list[Example]]:
    classes = [f"class {label}" for label in range(max(e.label for e in members) + 1)]
    return split_examples(members, classes, SplitConfig(**settings))


def draw_groups(kind: str) -> list[dict[int, int]]:
    """Return groups as people have them: bursts within a class, patients with both classes, or few large ones."""
    rng = np.random.default_rng(7)
    if kind == "bursts":
        return [{int(rng.integers(8)): int(rng.integers(1, 12))} for _ in range(300)]
    if kind == "patients":
        return [{0: int(rng.integers(1, 9)), 1: int(rng.integers(1, 5))} for _ in range(60)]
    return [{label: size} for label in range(5) for size in (9, 9, 12, 12, 15, 15, 18)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["bursts", "patients", "few"])
def test_groups_stay_together(kind: str, seed: int) -> None:
    """No group is in two parts, no image is lost, and each part has every class and about its share of each."""
    members = make_members(draw_groups(kind))
    parts = divide(members, seed=seed)
    where = {e.path: part for part in PARTS for e in parts[part]}
    assert len(where) == len(members) == sum(map(len, parts.values()))
    assert all(len({where[e.path] for e in members if e.group == name}) == 1 for name in {e.group for e in members})
    totals = Counter(e.label for e in members)
    room = 0.02 if kind != "few" else 0.1  # a tenth of these classes is one group
    for part, share in {"train": 0.64, "val": 0.16, "test": 0.2}.items():
        assert len(parts[part]) / len(members) == pytest.approx(share, abs=room / 2)
        counts = Counter(e.label for e in parts[part])
        for label, total in totals.items():
            assert counts[label] / total == pytest.approx(share, abs=room)


def test_groups_follow_the_seed() -> None:
    """The same seed gives the same parts in any order of the images; another seed gives others."""
    members = make_members(draw_groups("patients"))
    assert divide(members[::-1]) == divide(members)
    assert divide(members, seed=1) != divide(members)


def test_groups_without_stratification() -> None:
    """Without stratification groups still stay together, in about the right shares."""
    members = make_members([{0: 3}] * 20 + [{1: 2}] * 20)
    parts = divide(members, stratify=False)
    names = [{e.group for e in parts[part]} for part in PARTS]
    assert sum(map(len, names)) == 40
    assert [len(parts[part]) for part in PARTS] == pytest.approx([64, 16, 20], abs=1)


def test_identical_images_link_groups() -> None:
    """Groups that share an image, directly or through a third, are in one part."""
    members = make_members([{i % 2: 3} for i in range(24)])
    chain = ["group 0", "group 7", "group 12", "group 21"]
    for number, (one, other) in enumerate(itertools.pairwise(chain)):
        digest = f"{number}" * 64
        members += [Example(f"twins/{number}-{g}.png", number % 2, digest, g) for g in (one, other)]
    for seed in range(5):
        parts = divide(members, seed=seed)
        assert sum(any(e.group in chain for e in parts[part]) for part in PARTS) == 1


def test_images_without_group_are_their_own() -> None:
    """Images without a group are divided one by one beside groups."""
    members = make_members([{0: 10}]) + [
        Example(f"single-{i}.png", i % 2, hashlib.sha256(str(i).encode()).hexdigest()) for i in range(90)
    ]
    parts = divide(members)
    assert [len(parts[part]) for part in PARTS] == pytest.approx([64, 16, 20], abs=2)


@pytest.mark.parametrize(
    ("groups", "settings", "message"),
    [
        ([{0: 9}, {0: 9}, {0: 9}, {1: 5}, {1: 5}], {}, "too few groups in a class: 'class 1' has 2, needs 3"),
        ([{0: 9, 1: 1}, {0: 9, 1: 2}], {"stratify": False}, "there are 2 groups, and 3 are needed"),
        ([{0: 1}] * 4 + [{1: 1}] * 4, {"train_per_class": 1}, "contradict groups"),
    ],
    ids=["of a class", "at all", "counted one by one"],
)
def test_too_few_groups_are_refused(groups: list[dict[int, int]], settings: dict[str, Any], message: str) -> None:
    """Too few groups are refused with their number and the required one, and groups with numbers per class."""
    with pytest.raises(DlcvError, match=message):
        divide(make_members(groups), **settings)


@pytest.mark.parametrize("case", [*range(20), 69, 180, 277])  # the last three take several tries
def test_groups_are_divided_if_they_can_be(case: int) -> None:
    """Eight groups of mixed classes are divided so that no part lacks a class where that is possible, else refused."""
    rng = np.random.default_rng(case)
    groups = [{int(label): 1 for label in rng.permutation(4)[: rng.integers(1, 4)]} for _ in range(8)]
    labels = set().union(*groups)
    possible = any(
        all(
            labels == set().union(*(own for own, at in zip(groups, places, strict=True) if at == part))
            for part in PARTS
        )
        for places in itertools.product(PARTS, repeat=8)
    )
    if possible:
        assert all({e.label for e in own} == labels for own in divide(make_members(groups)).values())
    else:
        with pytest.raises(DlcvError, match=r"too few groups|every part has every class: .* has no 'class \d'"):
            divide(make_members(groups))


def test_mixed_groups_that_cannot_be_divided() -> None:
    """Of four groups one holds all three classes and three hold two of them: no three parts can have every class."""
    groups = [{0: 1, 1: 1}, {0: 1, 2: 1}, {1: 1, 2: 1}, {0: 1, 1: 1, 2: 1}]
    with pytest.raises(DlcvError, match=r"cannot be divided so that every part has every class: .* has no 'class \d'"):
        divide(make_members(groups))


def test_group_of_the_path(run: Run, tmp_path: Path, out: Path) -> None:
    """--group REGEX takes group 1 of the match in the path; the file has it, and data show counts groups per part."""
    root = tmp_path / "set"
    make_photos(root, {"a": 30, "b": 30})
    for path in sorted(root.glob("*/*")):
        path.rename(path.with_name(f"p{int(path.stem) // 3}_{path.name}"))
    assert run("data", "split", root, "-o", out, "--group", r"(p\d+)_").exit_code == 0
    document = load_json(out)
    where: dict[str, set[str]] = {}
    for part, own in document["parts"].items():
        for e in own:
            assert e["group"] == e["path"].split("/")[1].split("_")[0]
            where.setdefault(e["group"], set()).add(part)
    assert {len(parts) for parts in where.values()} == {1}
    assert document["config"]["group"] == r"(p\d+)_"
    counts = Counter(part for [part] in where.values())
    assert (
        f"10 groups: train {counts['train']}, val {counts['val']}, test {counts['test']}"
        in run("data", "show", out).stdout
    )
    assert "up to date" in run("data", "split", root, "-o", out, "--group", r"(p\d+)_").stdout
    plain = run("data", "split", root, "-o", out)
    assert_refused(plain, "--group was (p\\d+)_, now not set", "different images", "--force")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [(r"\d+", "12"), (r"p(\d+)", "12"), (r"^[^_]+", "a/p12"), (r"(?:p)(\d)(\d)", "1")],
)
def test_match_groups(pattern: str, expected: str) -> None:
    """The group of a path is the expression's group 1, or the whole match if it has none."""
    assert match_groups(["a/p12_7.png"], pattern) == {"a/p12_7.png": expected}


@pytest.mark.parametrize("pattern", ["q", "(?:a/)(q)?", "q*$|q"])
def test_path_without_group_is_refused(pattern: str) -> None:
    """An image in whose path nothing matches, or nothing but an empty text, is refused by name."""
    with pytest.raises(DlcvError, match=r"2 images: a/x\.png, a/y\.png; it must match"):
        match_groups(["a/q.png", "a/x.png", "a/y.png"], pattern)


def test_no_regular_expression(run: Run, photos: Path, out: Path) -> None:
    """What is no regular expression is refused with the reason."""
    assert_contradiction(run("data", "split", photos, "-o", out, "--group", "p(1"), "'p(1'", "unterminated subpattern")


GROUPED = [f"{row},{'' if i > 9 else f'who {i % 5}'}" for i, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("column", "options"),
    [("group", ()), ("who", ("--group", "who")), ("who", ("--group-column", "who"))],
    ids=str,
)
def test_groups_of_a_column(
    run: Run, flat: Path, tmp_path: Path, out: Path, column: str, options: tuple[str, ...]
) -> None:
    """A column gives the groups: by its name group, or named by --group or --group-column. An empty cell is none."""
    labels = write_csv(tmp_path / "labels.csv", f"path,label,{column}", *GROUPED)
    assert run("data", "split", flat, "--labels", labels, "-o", out, *options).exit_code == 0
    groups = {e["path"]: e.get("group") for own in load_json(out)["parts"].values() for e in own}
    assert groups == {f"{i:03d}.png": None if i > 9 else f"who {i % 5}" for i in range(12)}


def test_group_of_the_path_with_labels(run: Run, flat: Path, tmp_path: Path, out: Path) -> None:
    """With --labels, a --group that is no column is matched in the paths, in place of the column group."""
    labels = write_csv(tmp_path / "labels.csv", "path,label,group", *GROUPED)
    command = ("data", "split", flat, "--labels", labels, "-o", out, "--group")
    assert run(*command, r"\d\d\d").exit_code == 0
    assert all(e["group"] == e["path"][:3] for own in load_json(out)["parts"].values() for e in own)
    result = run(*command, "grup", "--force")
    assert_refused(result, "'grup' (no column of labels.csv, which has 'path', 'label', 'group')", "12 images")


def test_group_and_column_contradict() -> None:
    """--group and --group-column together are a contradiction."""
    with pytest.raises(SettingError, match="--group and --group-column"):
        SplitConfig(group="x", group_column="y")


def test_group_in_two_given_parts_is_refused(run: Run, tmp_path: Path, out: Path) -> None:
    """A group in two of the parts that are given is refused with its name, the parts and an image of each."""
    root = make_set(tmp_path / "set", TWO)
    (root / "train/a/000.png").rename(root / "train/a/p7_0.png")
    (root / "test/b/000.png").rename(root / "test/b/p7_1.png")
    result = run("data", "split", root, "-o", out, "--group", r"p\d|\w+/\w/\d+")
    assert_refused(result, root, "'p7'", "train (train/a/p7_0.png)", "test (test/b/p7_1.png)", "one part")


def test_missing_val_is_taken_in_groups(run: Run, tmp_path: Path, out: Path) -> None:
    """A val that is taken from train takes whole groups, beside a test that is given."""
    root = make_set(tmp_path / "set", {"train": {"a": 20, "b": 20}, "test": {"a": 3, "b": 3}})
    assert run("data", "split", root, "-o", out, "--group", r"\w+/\w/\d\d").exit_code == 0
    where: dict[str, set[str]] = {}
    for part, own in load_json(out)["parts"].items():
        for e in own:
            where.setdefault(e["group"], set()).add(part)
    assert {name: parts for name, parts in where.items() if len(parts) > 1} == {}
    assert set().union(*where.values()) == set(PARTS)


def test_changed_group_is_damage(run: Run, flat: Path, tmp_path: Path, out: Path) -> None:
    """A group that was changed by hand does not match the fingerprint; one that is no text is refused by name."""
    labels = write_csv(tmp_path / "labels.csv", "path,label,group", *GROUPED)
    assert run("data", "split", flat, "--labels", labels, "-o", out).exit_code == 0
    document = load_json(out)
    for value, word in (("who 9", "fingerprint"), (7, "must be text"), ("", "must be text")):
        document["parts"]["train"][0]["group"] = value
        out.write_text(json.dumps(document), "utf-8")
        assert_refused(run("data", "show", out), word)


def test_split_file_without_groups_is_as_before(run: Run, photos: Path, out: Path) -> None:
    """Class folders give the fingerprint and the keys of files from before there were groups."""
    assert run("data", "split", photos, "-o", out).exit_code == 0
    document = load_json(out)
    rows = [[[e["path"], e["label"], e["sha256"]] for e in document["parts"][part]] for part in PARTS]
    text = json.dumps([document["classes"], *rows], separators=(",", ":"), ensure_ascii=False)
    assert document["fingerprint"] == hashlib.sha256(text.encode()).hexdigest()
    assert {key for own in document["parts"].values() for e in own for key in e} == {"path", "label", "sha256"}
    assert "groups" not in run("data", "show", out).stdout
    assert [*document["config"]] == [
        *("dataset", "background", "test_fraction", "val_fraction", "stratify"),
        *("train_per_class", "val_per_class", "test_per_class", "seed", "skip_bad"),
    ]
    assert [*document["inputs"]] == ["images"]
