"""Splits with folds: they partition the images, their file, and that a checkpoint is evaluated on its own fold."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import QUICK, THREADS, Run, assert_refused, load_json, make_photos, read_files, run_dlcv
from sklearn.model_selection import StratifiedKFold

from dlcv_cli.config import SplitConfig
from dlcv_cli.errors import DlcvError, FileError, SettingError
from dlcv_cli.files import splits, tensors
from dlcv_cli.vision.folds import fold_examples
from dlcv_cli.vision.splits import PARTS, Example, split_examples

Parts = dict[str, list[Example]]


def make_examples(counts: list[int], copies: int = 1, group: int = 0) -> list[Example]:
    """Return images of so many per class, each content under some names, in groups of so many that cross classes."""
    examples = []
    for label, count in enumerate(counts):
        for number in range(count):
            content = hashlib.sha256(f"{label} {number // copies}".encode()).hexdigest()
            name = f"g{number // group}" if group else None
            examples.append(Example(f"{label}/{number:03d}.png", label, content, name))
    return examples


def divide(examples: list[Example], **settings: Any) -> list[Parts]:
    """Return the folds of images of as many classes as they have labels."""
    classes = [f"class {label}" for label in range(1 + max(e.label for e in examples))]
    return fold_examples(examples, classes, SplitConfig(**settings))


def assert_partitions(folds: list[Parts], examples: list[Example], count: int) -> None:
    """Assert that each fold has each image once, and each division tests each image once."""
    for parts in folds:
        assert sorted(e.path for part in PARTS for e in parts[part]) == sorted(e.path for e in examples)
        assert all(own == sorted(own, key=lambda e: e.path) for own in parts.values())
    for first in range(0, len(folds), count):
        tested = [e.path for parts in folds[first : first + count] for e in parts["test"]]
        assert sorted(tested) == sorted(e.path for e in examples)


@pytest.mark.parametrize("counts", [[10, 10, 10], [7, 23, 5, 12], [101, 6, 33], [5, 5]])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_sizes_are_those_of_scikit_learn(counts: list[int], count: int) -> None:
    """The test parts of each class, and all together, have the sizes that StratifiedKFold gives."""
    examples = make_examples(counts)
    labels = np.array([e.label for e in examples])
    expected = [labels[test] for _, test in StratifiedKFold(count).split(labels, labels)]
    folds = divide(examples, folds=count, repeats=2)
    assert len(folds) == 2 * count
    assert_partitions(folds, examples, count)
    for first in (0, count):
        own = [np.array([e.label for e in parts["test"]]) for parts in folds[first : first + count]]
        for label in range(len(counts)):
            assert sorted((o == label).sum() for o in own) == sorted((e == label).sum() for e in expected)
        assert sorted(map(len, own)) == sorted(map(len, expected))


def test_val_is_the_share_of_what_is_not_tested() -> None:
    """Each fold holds out --val-fraction of the others, stratified; two folds draw different images."""
    folds = divide(make_examples([40, 80]), folds=4, val_fraction=0.1)
    for parts in folds:
        assert Counter(e.label for e in parts["val"]) == {0: 3, 1: 6}
        assert Counter(e.label for e in parts["train"]) == {0: 27, 1: 54}
    common = [{e.path for e in a["val"]} & {e.path for e in b["val"]} for a, b in pairwise(folds)]
    assert sum(map(len, common)) < 9, "by chance a tenth is common"


def test_large_links_are_dealt_first() -> None:
    """One image under three names and six others fill three folds evenly, whatever the seed."""
    copies = [Example(f"0/copy{number}.png", 0, "f" * 64) for number in range(3)]
    for parts in divide([*make_examples([6]), *copies], folds=3, repeats=10):
        assert len(parts["test"]) == 3


@pytest.mark.parametrize(("copies", "group"), [(3, 0), (1, 4), (2, 4)])
def test_linked_images_are_never_divided(copies: int, group: int) -> None:
    """Copies, and the images of a group, are in one part of each fold; no size is off by more than a link."""
    examples = make_examples([36, 60], copies, group)
    folds = divide(examples, folds=3, repeats=2)
    assert_partitions(folds, examples, 3)
    for parts in folds:
        of_link: dict[str, set[str]] = {}
        for part, own in parts.items():
            for e in own:
                of_link.setdefault(e.group or e.sha256, set()).add(part)
        assert all(len(own) == 1 for own in of_link.values())
    for label, count in ((0, 36), (1, 60)):
        sizes = [sum(e.label == label for e in parts["test"]) for parts in folds]
        assert all(abs(size - count / 3) <= max(copies, group) for size in sizes)


def test_repeats_are_single_divisions() -> None:
    """Without --folds, each repeat is what data split gives with that seed, also with numbers per class."""
    examples, classes = make_examples([20, 30]), ["class 0", "class 1"]
    for settings in ({}, {"train_per_class": 5, "test_per_class": 3}):
        folds = divide(examples, repeats=3, seed=7, **settings)
        alone = [split_examples(examples, classes, SplitConfig(seed=seed, **settings)) for seed in (7, 8, 9)]
        assert folds == alone
        assert folds[0] != folds[1]


@pytest.mark.parametrize(
    ("counts", "settings", "words"),
    [
        ([10, 4], {"folds": 5}, "too few different images in a class: 'class 1' has 4, needs 5"),
        ([10, 3], {"folds": 2}, "'class 1' has 3, needs 4"),
        ([10, 4], {"folds": 4, "val_fraction": 0.5}, None),
        ([3, 3], {"folds": 3}, None),
    ],
)
def test_small_classes(counts: list[int], settings: dict[str, Any], words: str | None) -> None:
    """A class that cannot be in every part of every fold is named; one image for each part is enough."""
    if words:
        with pytest.raises(DlcvError, match=words):
            divide(make_examples(counts), **settings)
        return
    for parts in divide(make_examples(counts), **settings):
        assert all({e.label for e in own} == {0, 1} for own in parts.values())


def test_too_few_groups_are_refused() -> None:
    """A class in fewer groups than folds is named as such."""
    with pytest.raises(DlcvError, match="too few groups in a class: 'class 0' has 2, needs 3"):
        divide(make_examples([8, 16], group=4), folds=3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"folds": 3, "test_fraction": 0.3}, "--folds contradicts --test-fraction"),
        ({"folds": 3, "train_per_class": 3}, "--folds contradicts --train-per-class"),
        ({"folds": 1}, "--folds is 1: it must be >= 2"),
        ({"repeats": 101}, "--repeats is 101: it must be <= 100"),
        ({"repeats": 2, "seed": 2**32 - 1}, "the last seed would exceed"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], words: str) -> None:
    """Settings that contradict folds are refused in one line."""
    with pytest.raises(SettingError, match=words):
        SplitConfig(**settings)


@pytest.mark.parametrize("option", [("--folds", 3), ("--repeats", 2)])
def test_given_parts_are_refused(run: Run, tmp_path: Path, option: tuple[str, int]) -> None:
    """A folder that is divided already has no folds; the message names its parts."""
    for part in PARTS:
        make_photos(tmp_path / "photos" / part, {"cat": 4, "dog": 4})
    result = run("data", "split", tmp_path / "photos", *option, "-o", tmp_path / "x.split.json")
    assert result.exit_code == 2
    assert f"{option[0]} contradicts the parts that are given: train, val, test" in result.stderr
    assert not (tmp_path / "x.split.json").exists()


# ------------------------------------------------------------------------------------------------------------- the file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, a split of them with 3 folds, and heads of folds 1 and 2. Not to be changed."""
    folder = tmp_path_factory.mktemp("folds")
    make_photos(folder / "photos", {"a": 12, "b": 15})
    run_dlcv("data", "split", folder / "photos", "--folds", 3, "-o", folder / "folds.split.json")
    for fold in (1, 2):
        output = folder / f"head{fold}.safetensors"
        run_dlcv("image", "scratch", folder / "folds.split.json", *QUICK, "--fold", fold, "-o", output)
    return folder


@pytest.fixture
def place(folder: Path, tmp_path: Path) -> Path:
    """Return a copy of `folder` that a test may change."""
    return Path(shutil.copytree(folder, tmp_path / "folder"))


def test_file_names_each_image_once(folder: Path, run: Run) -> None:
    """Each image has a letter for each fold; the folds that are read are those that were made."""
    path = folder / "folds.split.json"
    document = load_json(path)
    assert (document["schema"], document["folds"], document["folds_per_repeat"]) == ("dlcv.split/2", 3, 3)
    assert "parts" not in document
    assert [list(entry) for entry in document["images"][:1]] == [["path", "label", "sha256", "parts"]]
    assert all(sorted(entry["parts"]).count("e") == 1 for entry in document["images"])
    letters = {"t": "train", "v": "val", "e": "test"}
    for number, split in enumerate(splits.read_each(path), 1):
        assert (split.folds, split.fold) == (3, number)
        for part in PARTS:
            expected = [e["path"] for e in document["images"] if letters[e["parts"][number - 1]] == part]
            assert [e.path for e in split.parts[part]] == expected
        assert splits.read(path, None, number) == split


def test_split_and_show_say_the_folds(folder: Path, tmp_path: Path, run: Run) -> None:
    """Both commands say how many folds there are, and how large; a second run is up to date."""
    result = run("data", "split", folder / "photos", "--folds", 3, "-o", tmp_path / "x.split.json", "--json")
    summary = json.loads(result.stdout)
    assert (summary["folds"], summary["folds_per_repeat"], summary["images"]) == (3, 3, 27)
    assert summary["classes"] == {"a": 12, "b": 15}
    assert summary["counts"] == [{"train": 14, "val": 4, "test": 9}] * 3
    text = run("data", "split", folder / "photos", "--folds", 3, "-o", tmp_path / "x.split.json").stdout
    assert text == (
        f"{tmp_path / 'x.split.json'}: up to date (3 folds of 27 images in 2 classes: train 14, val 4, test 9)\n"
    )
    shown = run("data", "show", tmp_path / "x.split.json").stdout.splitlines()
    assert "3 folds: every image is a test image in one of them" in shown
    assert [line.split() for line in shown[-3:]] == [[str(fold), "14", "4", "9"] for fold in (1, 2, 3)]


@pytest.mark.parametrize(
    ("fold", "words"),
    [
        (None, "has 3 folds: choose one with --fold 1 to 3, or --fold all"),
        (4, "has 3 folds: there is no fold 4"),
    ],
)
def test_a_fold_must_be_chosen(folder: Path, fold: int | None, words: str) -> None:
    """A file with folds is read with one of them."""
    with pytest.raises(FileError, match=words):
        splits.read(folder / "folds.split.json", None, fold)


def test_a_file_without_folds_has_no_fold(run: Run, split_file: Path) -> None:
    """Without folds the file is what it was, and --fold is refused."""
    document = load_json(split_file)
    assert document["schema"] == "dlcv.split/1"
    assert "folds" not in document["config"]
    assert_refused(run("image", "scratch", split_file, *QUICK, "--fold", 1), "has no folds: leave out --fold")
    assert_refused(run("image", "scratch", split_file, *QUICK, "--fold", "all"), "has no folds: leave out --fold")


def _letters(change: Callable[[str], object]) -> Callable[[Any], None]:
    return lambda document: document["images"][1].update(parts=change(document["images"][1]["parts"]))


DAMAGE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another letter": (_letters(lambda own: "x" + own[1:]), "needs a letter t, v, e or - for each of 3 folds"),
    "a letter too few": (_letters(lambda own: own[1:]), "needs a letter t, v, e or - for each of 3 folds"),
    "in no fold": (_letters(lambda _: "---"), "needs a letter t, v, e or - for each of 3 folds"),
    "letters are numbers": (_letters(lambda _: 123), "needs a letter t, v, e or - for each of 3 folds"),
    "another part": (_letters(lambda own: {"e": "t"}.get(own[0], "e") + own[1:]), "its fingerprint does not match"),
    "another number of folds": (lambda d: d.update(folds=6), "needs a letter"),
    "folds is a text": (lambda d: d.update(folds="3"), "folds must be a number from 2"),
    "other repeats": (lambda d: d.update(folds_per_repeat=2), "folds_per_repeat must be null, or a number from 2"),
    "no repeats": (lambda d: d.update(folds_per_repeat=None), "its fingerprint does not match"),
    "no images": (lambda d: d.update(images=[]), "images must be a list"),
    "an image twice": (lambda d: d["images"].append(d["images"][0]), "an image is listed twice"),
    "an image less": (lambda d: d["images"].pop(), "its fingerprint does not match"),
    "another class": (lambda d: d["images"][0].update(label=7), "label 7"),
    "out of the root": (lambda d: d["images"][0].update(path="../x.png"), "leads out of the root"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(place: Path, name: str) -> None:
    """Whatever is changed in a file with folds is noticed."""
    damage, words = DAMAGE[name]
    path = place / "folds.split.json"
    document = load_json(path)
    damage(document)
    path.write_text(json.dumps(document))
    with pytest.raises(FileError, match=words):
        splits.read(path, None, 1)


# --------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_evaluated_on_its_fold(place: Path, run: Run) -> None:
    """Evaluations have the test images of the checkpoint's own fold, without any leak; so have rows and a report."""
    each = splits.read_each(place / "folds.split.json")
    for fold in (1, 2):
        checkpoint = place / f"head{fold}.safetensors"
        assert tensors.read_metadata(checkpoint, tensors.CHECKPOINT)["config"]["fold"] == str(fold)
        rows = place / f"{fold}.csv"
        assert run("eval", checkpoint, "--per-image", rows).exit_code == 0
        evaluation = load_json(place / f"head{fold}.test.eval.json")
        test = each[fold - 1].parts["test"]
        assert evaluation["data"]["fingerprint"] == splits.hash_part(each[0].classes, test)
        assert evaluation["contamination"]["examples"] == evaluation["contamination"]["chosen"] == 0
        predictions = tensors.read(place / f"head{fold}.test.predictions.safetensors", tensors.PREDICTIONS)
        assert [own.tobytes().hex() for own in predictions.arrays["examples"]] == [e.sha256 for e in test]
        assert [line.split(",")[0] for line in rows.read_text().splitlines()[1:]] == [e.path for e in test]
        assert run("eval", checkpoint, "--root", place / "photos").exit_code == 0
    assert run("report", place / "head1.safetensors", "-o", place / "report.html").exit_code == 0


def test_a_calibrated_checkpoint_keeps_its_fold(place: Path, run: Run) -> None:
    """calibrate, card and export work on a fold's checkpoint; what calibrate writes is evaluated on the same fold."""
    assert run("calibrate", place / "head2.safetensors").exit_code == 0
    assert run("eval", place / "head2.calibrated.safetensors").exit_code == 0
    document = load_json(place / "head2.calibrated.test.eval.json")
    split = splits.read(place / "folds.split.json", None, 2)
    assert document["data"]["fingerprint"] == splits.hash_part(split.classes, split.parts["test"])
    assert run("card", place / "head2.calibrated.safetensors").exit_code == 0
    result = run("export", place / "head2.safetensors", "--format", "torchscript")
    assert "4 validation images" in result.stdout


def test_another_fold_is_contaminated(place: Path, run: Run) -> None:
    """Evaluated on the same fold of another division, a checkpoint has seen test images, and is refused."""
    other = place / "other.split.json"
    run_dlcv("data", "split", place / "photos", "--folds", 3, "--seed", 1, "-o", other)
    trained = {e.sha256 for e in splits.read(place / "folds.split.json", None, 1).parts["train"]}
    leaks = sum(e.sha256 in trained for e in splits.read(other, None, 1).parts["test"])
    result = run("eval", place / "head1.safetensors", "--data", other)
    assert result.exit_code == 1
    assert f"{leaks} of the 9 test examples were trained on" in result.stderr.splitlines()[-1]


def test_ancestors_count_with_their_own_folds(place: Path, run: Run) -> None:
    """A head on weights of another fold is refused, since those were trained on images that it is tested on."""
    output = place / "mixed.safetensors"
    weights = ("--weights", place / "head1.safetensors")
    run_dlcv("image", "head", place / "folds.split.json", *QUICK, *weights, "--fold", 2, "-o", output)
    first, second = splits.read_each(place / "folds.split.json")[:2]
    leaks = {e.sha256 for e in first.parts["train"]} & {e.sha256 for e in second.parts["test"]}
    result = run("eval", output)
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert f"{len(leaks)} of the 9 test examples were trained on" in last
    assert "(data: folds.split.json (fold 1), folds.split.json (fold 2))" in last


def test_finetune_from_another_fold_is_refused(place: Path, run: Run) -> None:
    """Fine-tuning starts from a checkpoint of the same fold."""
    settings = ("--epochs", 1, *THREADS, "-o", place / "new.safetensors")
    start = ("image", "finetune", place / "folds.split.json", "--from", place / "head1.safetensors")
    before = read_files(place)
    result = run(*start, "--fold", 2, *settings)
    assert_refused(result, "head1.safetensors was trained on fold 1, and may have seen the test images of fold 2")
    assert read_files(place) == before
    assert run(*start, "--fold", 1, *settings).exit_code == 0
    assert run("eval", place / "new.safetensors").exit_code == 0


def test_data_without_folds_is_taken_whole(place: Path, run: Run) -> None:
    """A fold's checkpoint can be evaluated on other data, which has no folds."""
    make_photos(place / "others", {"a": 10, "b": 10}, size=(22, 26))
    run_dlcv("data", "split", place / "others", "-o", place / "others.split.json")
    assert run("eval", place / "head1.safetensors", "--data", place / "others.split.json").exit_code == 0
