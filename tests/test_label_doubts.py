"""`data doubts`: labels that look wrong, from probabilities that are computed without them."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression

from dlcv_cli.context import Reporter
from dlcv_cli.statistics.label_doubts import NO_CLASS, count_wrong, find_confident_classes, find_doubts, find_thresholds
from dlcv_cli.studies.images.label_doubts import assign_folds, predict_out_of_fold
from dlcv_cli.vision.linear import list_decays
from dlcv_cli.vision.splits import Example
from tests.conftest import Run, make_photos

OPTIONS = ("--arch", "vgg16_mini", "--threads", 1, "--precision", "float32")


def draw_probabilities(n: int, classes: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return probabilities (n, classes), and labels of which some are not the most probable class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += rng.choice([3.0, 0.5, -3.0], n, p=[0.7, 0.2, 0.1])
    exp = np.exp(logits)
    return exp / exp.sum(1, keepdims=True), labels


def prune_by_class(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> set[int]:
    """Return the doubted examples by the paper's equations, one example and one class at a time."""
    n, classes = probabilities.shape
    thresholds = [np.mean([probabilities[x, j] for x in range(n) if labels[x] == j]) for j in range(classes)]  # eq. 2
    joint = np.zeros((classes, classes))  # eq. 1
    for x in range(n):
        reached = [j for j in range(classes) if probabilities[x, j] >= thresholds[j]]
        if reached:
            joint[labels[x], max(reached, key=lambda j: probabilities[x, j])] += 1
    doubted: set[int] = set()
    for i in range(classes):
        own = [x for x in range(n) if labels[x] == i]
        calibrated = joint[i] / joint[i].sum() * len(own)  # eq. 3, times n
        count = round(sum(calibrated[j] for j in range(classes) if j != i))
        doubted |= {*sorted(own, key=lambda x: probabilities[x, i])[:count]}
    return {x for x in doubted if probabilities[x].argmax() != labels[x]}


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_doubts_are_those_of_the_papers_equations(classes: int) -> None:
    """Doubted are the labels that prune by class removes, computed from the equations with plain loops."""
    probabilities, labels = draw_probabilities(300, classes)
    doubts = find_doubts(probabilities, labels)
    expected = prune_by_class(probabilities, labels)
    assert 3 < len(expected) < 100
    assert {*np.flatnonzero(doubts.doubted).tolist()} == expected
    np.testing.assert_array_equal(doubts.scores, [row[label] for row, label in zip(probabilities, labels, strict=True)])


def test_example_by_hand() -> None:
    """Two classes of three: one label of the first class is confidently of the other, and is the doubt."""
    p = np.array([0.9, 0.8, 0.1, 0.2, 0.1, 0.3])
    probabilities, labels = np.stack([p, 1 - p], 1), np.array([0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(find_thresholds(probabilities, labels), [0.6, 0.8])
    confident = find_confident_classes(probabilities, np.array([0.6, 0.8]))
    assert confident.tolist() == [0, 0, 1, 1, 1, NO_CLASS]
    np.testing.assert_allclose(count_wrong(probabilities, labels), [1, 0])
    doubts = find_doubts(probabilities, labels)
    assert doubts.doubted.tolist() == [False, False, True, False, False, False]
    assert doubts.suggested.tolist() == [1, 1, 1, 0, 0, 0]


def test_most_probable_label_is_no_doubt() -> None:
    """The least probable label of a class with one wrong example is no doubt if no other class is as probable."""
    probabilities = np.array([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.05, 0.3, 0.65], [0.6, 0.3, 0.1]])
    labels = np.array([0, 0, 1, 1])
    np.testing.assert_allclose(find_thresholds(probabilities, labels), [0.7, 0.3, np.inf])
    np.testing.assert_allclose(count_wrong(probabilities, labels), [1, 0, 0])
    assert not find_doubts(probabilities, labels).doubted.any()


def test_class_without_examples_is_suggested_to_nobody_confidently() -> None:
    """A class that no label names has an infinite threshold, and no division by zero."""
    probabilities = np.array([[0.2, 0.1, 0.7], [0.1, 0.2, 0.7]])
    labels = np.array([0, 1])
    assert find_thresholds(probabilities, labels).tolist() == [0.2, 0.2, np.inf]
    assert not find_doubts(probabilities, labels).doubted.any()


def test_folds_are_even_in_each_class_and_keep_linked_images_together() -> None:
    """Images of a group, and copies, are in one fold, and no fold has more than its share of a class."""
    sizes = {0: 23, 1: 40, 2: 5}
    examples = [
        Example(f"{label}/{i}.png", label, f"{label:032d}{i:032d}") for label, n in sizes.items() for i in range(n)
    ]
    examples += [Example(f"9/copy{i}.png", 1, examples[i].sha256) for i in range(3)]  # of class 0, under another
    examples += [Example(f"8/{i}.png", 2, f"{8:032d}{i:032d}", f"patient {i % 5}") for i in range(20)]
    folds = dict(zip((e.path for e in examples), assign_folds(examples, 5, 0).tolist(), strict=True))
    for i in range(3):
        assert folds[f"9/copy{i}.png"] == folds[examples[i].path]
    for patient in range(5):
        assert len({folds[f"8/{i}.png"] for i in range(20) if i % 5 == patient}) == 1
    for label in sizes:
        counts = Counter(folds[e.path] for e in examples if e.label == label)
        assert len(counts) == 5
        assert max(counts.values()) - min(counts.values()) <= (4 if label == 2 else 1)
    assert assign_folds(examples, 5, 0).tolist() != assign_folds(examples, 5, 1).tolist()


def test_probabilities_are_those_of_heads_that_did_not_see_the_image() -> None:
    """Each fold has the probabilities of scikit-learn's regression on the others, with the weight decay that is said.

    That decay is the best for fold 0, of all that are tried.
    """
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(150, 6))).float()
    labels = torch.from_numpy((x.numpy() @ rng.normal(size=(6, 3)) + rng.normal(size=(150, 3)) / 2).argmax(1))
    folds = torch.from_numpy(rng.permutation(np.arange(150) % 3))
    result = predict_out_of_fold(x, labels, 3, folds, 2, Reporter())
    losses = {}
    for decay in list_decays(x, (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)):
        model = LogisticRegression(C=1 / (decay * int((folds != 0).sum())), tol=1e-10, max_iter=100_000)
        p = model.fit(x[folds != 0], labels[folds != 0]).predict_proba(x[folds == 0])
        losses[decay] = -np.log(p[np.arange(len(p)), labels[folds == 0]]).mean()
    tried = [decay for decay in losses if decay <= max(losses) / 90]  # 1e-3 and weaker
    assert result.weight_decay == min(tried, key=losses.__getitem__)
    for fold in range(3):
        own = folds == fold
        model = LogisticRegression(C=1 / (result.weight_decay * int((~own).sum())), tol=1e-10, max_iter=100_000)
        expected = model.fit(x[~own], labels[~own]).predict_proba(x[own])
        np.testing.assert_allclose(result.probabilities[own.numpy()], expected, atol=0.02)


@pytest.fixture
def mislabeled(run: Run, tmp_path: Path) -> Path:
    """Return a split of three classes that patterns tell apart, with two images under the wrong class."""
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(48), np.arange(48))
    for name, pattern in {"a": x // 6 % 2, "b": y // 6 % 2, "c & <d>": (x - 24) ** 2 + (y - 24) ** 2 < 300}.items():
        (photos / name).mkdir(parents=True)
        for number in range(20):
            pixels = 150 * np.roll(pattern, number, 1)[..., None] + rng.integers(0, 100, (48, 48, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(photos / name / f"{number:03d}.png")
    shutil.move(photos / "a" / "003.png", photos / "b" / "wrong1.png")
    shutil.move(photos / "b" / "004.png", photos / "c & <d>" / "wrong2.png")
    path = tmp_path / "photos.split.json"
    assert run("data", "split", photos, "-o", path).exit_code == 0
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def find(run: Run, split: Path, *options: object) -> dict[str, Any]:
    """Run the command on a split; return its JSON document."""
    result = run("data", "doubts", split, "-o", split.parent / "doubts.csv", *OPTIONS, "--json", *options)
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_wrong_labels_come_first(run: Run, mislabeled: Path) -> None:
    """The two images under wrong classes are the first of all images, are doubts, and their own class is suggested."""
    document = find(run, mislabeled)
    rows = read_rows(mislabeled.parent / "doubts.csv")
    assert document["images"] == len(rows) == 60
    assert {row["part"] for row in rows} == {"train", "val", "test"}
    assert {row["file"]: row["suggested"] for row in rows[:2]} == {"b/wrong1.png": "a", "c & <d>/wrong2.png": "b"}
    assert [row["doubt"] for row in rows[:2]] == ["1", "1"]
    probabilities = [float(row["class_probability"]) for row in rows]
    assert probabilities == sorted(probabilities)
    assert document["doubts"] == sum(row["doubt"] == "1" for row in rows)
    assert sum(pair["images"] for pair in document["pairs"]) == document["doubts"]
    assert {"class": "b", "suggested": "a", "images": 1} in document["pairs"]


def test_page_shows_each_doubt_and_loads_nothing(run: Run, mislabeled: Path) -> None:
    """The page has a thumbnail of each doubt in the order of the CSV, names escaped, and no address outside itself."""
    page = mislabeled.parent / "doubts.html"
    document = find(run, mislabeled, "--page", page)
    text = page.read_text("utf-8")
    rows = [row for row in read_rows(mislabeled.parent / "doubts.csv") if row["doubt"] == "1"]
    assert document["page"] == str(page)
    assert text.count("<img ") == len(rows) == document["doubts"] >= 2
    places = [
        text.index(f"{row['file']}".replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")) for row in rows
    ]
    assert places == sorted(places)
    assert "<d>" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "script" not in text


def test_screen_names_the_pairs_of_classes(run: Run, mislabeled: Path) -> None:
    """Without --json, stdout has the file, the numbers, the pairs and the page; a second run is up to date."""
    output, page = mislabeled.parent / "doubts.csv", mislabeled.parent / "doubts.html"
    arguments = ("data", "doubts", mislabeled, "-o", output, "--page", page, *OPTIONS)
    first = run(*arguments)
    assert first.stdout.startswith(f"wrote {output} (")
    assert "of 60 labels in doubt" in first.stdout
    assert "1  b that look like a\n" in first.stdout
    assert first.stdout.endswith(f"page: {page}\n")
    assert run(*arguments).stdout.startswith(f"{output}: up to date")


def test_other_content_is_not_replaced(run: Run, mislabeled: Path) -> None:
    """A file with other content stays, and with it the page is not written; --force replaces it."""
    output, page = mislabeled.parent / "doubts.csv", mislabeled.parent / "doubts.html"
    output.write_text("mine\n")
    result = run("data", "doubts", mislabeled, "-o", output, "--page", page, *OPTIONS)
    assert result.exit_code == 1
    assert "other content" in result.stderr
    assert output.read_text() == "mine\n"
    assert not page.exists()
    page.write_text("mine\n")
    output.unlink()
    assert run("data", "doubts", mislabeled, "-o", output, "--page", page, *OPTIONS).exit_code == 1
    assert not output.exists()
    assert run("data", "doubts", mislabeled, "-o", output, "--page", page, *OPTIONS, "--force").exit_code == 0
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")


def test_one_part_alone(run: Run, mislabeled: Path) -> None:
    """With --part, its images are judged and no others."""
    find(run, mislabeled, "--part", "train")
    split = json.loads(mislabeled.read_text("utf-8"))
    rows = read_rows(mislabeled.parent / "doubts.csv")
    assert {row["file"] for row in rows} == {e["path"] for e in split["parts"]["train"]}


def test_cache_and_threads_do_not_change_the_result(run: Run, mislabeled: Path) -> None:
    """With the feature cache, warm or cold, and without it, and with more threads, the file is the same."""
    find(run, mislabeled)
    assert find(run, mislabeled, "--threads", 3)["status"] == "up to date"
    assert find(run, mislabeled)["status"] == "up to date"
    assert find(run, mislabeled, "--no-cache")["status"] == "up to date"


def test_class_of_one_image_is_not_judged(run: Run, tmp_path: Path) -> None:
    """Nothing is said of an image that no other is like: a warning names its class."""
    photos = make_photos(tmp_path / "photos", {"a": 12, "b": 12, "lonely": 3})
    for name in ("001.png", "002.png"):
        shutil.copy(photos / "lonely" / "000.png", photos / "lonely" / name)
    split = tmp_path / "photos.split.json"
    assert run("data", "split", photos, "-o", split, "--no-stratify").exit_code == 0
    result = run("data", "doubts", split, "-o", tmp_path / "doubts.csv", *OPTIONS)
    assert result.exit_code == 0, result.stderr
    assert "warning: 3 images are not judged" in result.stderr
    assert "'lonely'" in result.stderr
    assert {row["class"] for row in read_rows(tmp_path / "doubts.csv")} == {"a", "b"}


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        (("-o", "doubts.txt"), "must end in .csv", 1),
        (("--page", "page.pdf"), "must end in .html", 1),
        (("--folds", 1), "it must be >= 2", 2),
        (("--weights", "nowhere.pth"), "no such file of weights", 1),
    ],
)
def test_wrong_options(run: Run, mislabeled: Path, options: tuple[object, ...], message: str, code: int) -> None:
    """A wrong option is one line on stderr, and no file is written."""
    result = run("data", "doubts", mislabeled, *OPTIONS, "-o", mislabeled.parent / "doubts.csv", *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in " ".join(result.stderr.split())
    assert not (mislabeled.parent / "doubts.csv").exists()
