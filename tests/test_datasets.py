"""Where images come from: folders as people keep them, Caltech101, the built-in digits, drawn figures."""

from __future__ import annotations

import http.client
import io
import os
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from conftest import make_photos
from PIL import Image
from sklearn.datasets import load_digits

from dlcv_cli.config import DrawConfig
from dlcv_cli.errors import DlcvError
from dlcv_cli.vision import datasets, drawing
from dlcv_cli.vision.datasets import list_folder


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    """Return a folder with two classes of two images."""
    return make_photos(tmp_path / "two", {"a": 2, "b": 2})


GOOD = [("a/000.png", 0), ("a/001.png", 0), ("b/000.png", 1), ("b/001.png", 1)]


def copy_image(root: Path, name: str) -> None:
    """Copy an image of class a to another name."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes((root / "a/000.png").read_bytes())


def test_list_folder_sorts_classes_and_images(two_classes: Path) -> None:
    """Classes are the folders by name and images are sorted; none is bad or ignored."""
    listing = list_folder(two_classes)
    assert listing.classes == ["a", "b"]
    assert listing.images == GOOD
    assert (listing.bad, listing.ignored) == ([], [])


def test_hidden_and_stray_files_are_ignored(two_classes: Path) -> None:
    """Hidden files, files outside classes and files of other kinds are listed as ignored."""
    for name in ("a/.hidden.png", "a/.thumbs/x.png", ".git/x.png", "stray.png"):
        copy_image(two_classes, name)
    for name in ("b/notes.txt", "b/Thumbs.db", "README"):
        (two_classes / name).write_text("words")
    (two_classes / "b/empty").touch()
    listing = list_folder(two_classes)
    assert listing.classes == ["a", "b"]
    assert listing.images == GOOD
    assert listing.bad == []
    assert sorted(listing.ignored) == sorted(
        [".git", "README", "stray.png", "a/.hidden.png", "a/.thumbs", "b/Thumbs.db", "b/empty", "b/notes.txt"]
    )


def test_own_manifest_is_not_mentioned(two_classes: Path) -> None:
    """The manifest of data digits and data draw is not listed as ignored."""
    (two_classes / datasets.MANIFEST).write_text("{}")
    assert list_folder(two_classes).ignored == []


@pytest.mark.parametrize(
    "name", ["a/x.JPG", "a/x.Jpeg", "a/x.txt", "a/x", "a/x.tiff", "a/deep/er/x.png", "a/x y/ö.png"]
)
def test_content_decides_what_is_an_image(two_classes: Path, name: str) -> None:
    """Images count with any ending and at any depth, and belong to their class folder."""
    copy_image(two_classes, name)
    listing = list_folder(two_classes)
    assert sorted(listing.images) == sorted([*GOOD, (name, 0)])
    assert (listing.bad, listing.ignored) == ([], [])


@pytest.mark.parametrize("ending", [".jpg", ".JPG", ".Jpeg", ".png", ".PNG", ".gif", ".bmp", ".webp"])
@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"<html>404</html>", "not an image")])
def test_bad_image_file_is_listed(two_classes: Path, ending: str, content: bytes, reason: str) -> None:
    """A file with an image's ending, in any case, that is no image is bad, with the reason."""
    (two_classes / f"a/x{ending}").write_bytes(content)
    listing = list_folder(two_classes)
    assert listing.images == GOOD
    [(path, problem)] = listing.bad
    assert path == f"a/x{ending}"
    assert reason in problem


def test_broken_link_is_bad(two_classes: Path) -> None:
    """A broken link is bad; directly below the root it is ignored."""
    (two_classes / "a/x.png").symlink_to(two_classes / "gone.png")
    (two_classes / "c").symlink_to(two_classes / "gone")
    listing = list_folder(two_classes)
    assert listing.images == GOOD
    assert [path for path, _ in listing.bad] == ["a/x.png"]
    assert listing.ignored == ["c"]


def test_links_to_images_and_folders_are_followed(two_classes: Path, tmp_path: Path) -> None:
    """Links to files and folders count like files and folders."""
    elsewhere = make_photos(tmp_path / "elsewhere", {"more": 1})
    (two_classes / "a/x.png").symlink_to(elsewhere / "more/000.png")
    (two_classes / "b/more").symlink_to(elsewhere / "more")
    (two_classes / "c").symlink_to(elsewhere / "more")
    listing = list_folder(two_classes)
    assert listing.classes == ["a", "b", "c"]
    extra = [("a/x.png", 0), ("b/more/000.png", 1), ("c/000.png", 2)]
    assert sorted(listing.images) == sorted(GOOD + extra)


@pytest.mark.parametrize("target", ["a", "."], ids=["to the class", "to the root"])
@pytest.mark.parametrize("link", ["a/up", "a/deep/up"])
def test_link_loop_ends(two_classes: Path, link: str, target: str) -> None:
    """A link to a parent folder is not followed: each image is listed once, in its own class."""
    copy_image(two_classes, "a/deep/x.png")
    (two_classes / link).symlink_to(two_classes / target, target_is_directory=True)
    assert sorted(list_folder(two_classes).images) == sorted([*GOOD, ("a/deep/x.png", 0)])


def test_link_cycle_between_classes_ends(two_classes: Path) -> None:
    """Two folders that link to each other are listed once."""
    (two_classes / "a/b").symlink_to(two_classes / "b", target_is_directory=True)
    (two_classes / "b/a").symlink_to(two_classes / "a", target_is_directory=True)
    assert set(GOOD) <= set(list_folder(two_classes).images)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_is_ignored(two_classes: Path) -> None:
    """A named pipe among the images is ignored and not opened, which would block."""
    os.mkfifo(two_classes / "a/x.png")
    listing = list_folder(two_classes)
    assert listing.images == GOOD
    assert listing.ignored == ["a/x.png"]


def test_root_without_classes_is_refused(tmp_path: Path) -> None:
    """A root that is missing, a file, or without class folders is refused by name."""
    (tmp_path / "file").touch()
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/x.png").touch()
    for name, message in [("none", "no such folder"), ("file", "no such folder"), ("flat", "no class folders")]:
        with pytest.raises(DlcvError, match=f"{name}: .*{message}"):
            list_folder(tmp_path / name)


def test_empty_class_is_named(two_classes: Path) -> None:
    """A class folder without an image is refused by its name."""
    (two_classes / "empty class").mkdir()
    (two_classes / "text").mkdir()
    (two_classes / "text/x.txt").write_text("words")
    with pytest.raises(DlcvError, match=r"'empty class', 'text'"):
        list_folder(two_classes)


@pytest.mark.parametrize(
    "parts", [("train", "test"), ("Train", "VAL", "Test"), ("training", "validation"), ("test", "valid")]
)
def test_divided_data_set_is_recognised(tmp_path: Path, parts: tuple[str, ...]) -> None:
    """Folders named after parts that hold class folders are parts: one set of classes, and a part for each image."""
    meant = {"train": "train", "val": "val", "test": "test", "training": "train", "validation": "val", "valid": "val"}
    for part in parts:
        make_photos(tmp_path / part, {"dog": 2, "cat": 1})
    listing = list_folder(tmp_path)
    assert listing.classes == ["cat", "dog"]
    expected = [(f"{p}/{c}/{n:03d}.png", label) for p in parts for c, label, n in [("cat", 0, 0), *DOGS]]
    assert sorted(listing.images) == sorted(expected)
    assert listing.parts == {path: meant[path.split("/")[0].lower()] for path, _ in expected}
    assert listing.ignored == []


DOGS = [("dog", 1, 0), ("dog", 1, 1)]


@pytest.mark.parametrize("classes", [("train", "bus"), ("test", "train")])
def test_classes_may_be_named_like_parts(tmp_path: Path, classes: tuple[str, ...]) -> None:
    """Folders named after parts that hold images are classes like others."""
    make_photos(tmp_path / "photos", dict.fromkeys(classes, 2))
    listing = list_folder(tmp_path / "photos")
    assert (listing.classes, listing.parts) == (sorted(classes), {})


def test_class_left_out(two_classes: Path) -> None:
    """An excluded class is neither a class nor ignored, and labels have no gap."""
    listing = list_folder(two_classes, exclude=("a",))
    assert listing.classes == ["b"]
    assert listing.images == [("b/000.png", 0), ("b/001.png", 0)]
    assert listing.ignored == []


# --- Caltech101 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "101_ObjectCategories", "caltech101/101_ObjectCategories"])
def test_caltech101_is_found(tmp_path: Path, below: str) -> None:
    """The unpacked folder, its parent, and torchvision's folder are all located."""
    place = tmp_path / below
    make_photos(place, {"accordion": 1, "airplanes": 1})
    assert datasets.find_caltech101(tmp_path, download=False) == place


@pytest.mark.parametrize("root", ["", "not made yet"])
def test_missing_caltech101(tmp_path: Path, root: str) -> None:
    """If Caltech101 is missing, the message names the folder, --download and the manual way."""
    with pytest.raises(DlcvError) as caught:
        datasets.find_caltech101(tmp_path / root, download=False)
    for text in (str(tmp_path / root), "101_ObjectCategories", "--download", datasets.CALTECH101_PAGE):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no route to host"),
        RuntimeError("File not found or corrupted: no route to host"),
        http.client.IncompleteRead(b"", 7),
    ],
    ids=lambda error: type(error).__name__,
)
def test_failed_caltech101_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A download that fails for any reason is reported with the manual way."""

    def fail(self: object) -> None:
        raise error

    monkeypatch.setattr(torchvision.datasets.Caltech101, "download", fail)
    with pytest.raises(DlcvError, match="could not be downloaded") as caught:
        datasets.find_caltech101(tmp_path, download=True)
    assert str(error) in str(caught.value)
    assert datasets.CALTECH101_PAGE in str(caught.value)


def test_caltech101_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download is located in torchvision's folder and not repeated."""
    calls = []

    def download(self: torchvision.datasets.Caltech101) -> None:
        calls.append(self.root)
        names = {"BACKGROUND_Google": 1, "accordion": 1, "airplanes": 1}
        make_photos(Path(self.root, "101_ObjectCategories"), names)
        Path(self.root, "Annotations").mkdir()

    monkeypatch.setattr(torchvision.datasets.Caltech101, "download", download)
    for _ in range(2):
        place = datasets.find_caltech101(tmp_path, download=True)
        assert (place / "accordion/000.png").is_file()
    assert len(calls) == 1


# --- built in -------------------------------------------------------------------------------------------------------


def test_digits_match_scikit_learn() -> None:
    """1,797 gray PNGs of 8 x 8 in class folders have scikit-learn's values, scaled to 0..255."""
    data = load_digits()
    files = list(datasets.read_digits())
    assert len({name for name, _ in files}) == len(files) == len(data.images) == 1797
    for (name, png), pixels, label in zip(files, data.images, data.target, strict=True):
        image = Image.open(io.BytesIO(png))
        assert name.split("/")[0] == str(label)
        assert image.mode == "L"
        assert (np.asarray(image) == np.round(pixels / 16 * 255)).all()


def draw(**settings: int) -> dict[str, bytes]:
    return dict(drawing.draw_figures(DrawConfig(**{"classes": 3, "per_class": 3, "size": 32, "seed": 0} | settings)))


def test_drawing_depends_on_seed_class_and_number_alone() -> None:
    """A figure has the same bytes with any number of classes and images."""
    assert draw() == draw()
    more = draw(classes=4, per_class=5)
    assert len(more) == 20
    assert draw().items() <= more.items()


def test_drawings_differ() -> None:
    """No two drawings are the same, within a set and between seeds."""
    drawings = [*draw().values(), *draw(seed=1).values()]
    assert len(set(drawings)) == len(drawings) == 18
    corners = [Image.open(io.BytesIO(png)).crop((0, 0, 2, 2)).tobytes() for png in drawings]
    assert len(set(corners)) == 18  # paper and noise as well, not the figure alone


@pytest.mark.parametrize("size", [16, 33, 64])
def test_drawing_size(size: int) -> None:
    """Drawings are RGB squares of the requested size in one folder per class."""
    files = draw(size=size, classes=2, per_class=2)
    assert {name.split("/")[0] for name in files} == {"figure-000", "figure-001"}
    for png in files.values():
        image = Image.open(io.BytesIO(png))
        assert (image.size, image.mode) == ((size, size), "RGB")


def test_drawings_of_a_class_are_alike() -> None:
    """Two drawings of one figure share more ink than drawings of two figures."""

    def ink(png: bytes) -> np.ndarray:
        gray = np.asarray(Image.open(io.BytesIO(png)).convert("L"), float)
        return np.abs(gray - np.median(gray)).ravel()

    files = draw(classes=6, per_class=12, size=32)
    shapes = np.array([ink(png) for png in files.values()]).reshape(6, 12, -1)
    mean = shapes.mean(1)  # of each class
    within = np.mean([[np.corrcoef(one, mean[c])[0, 1] for one in shapes[c]] for c in range(6)])
    across = np.mean([[np.corrcoef(one, mean[(c + 1) % 6])[0, 1] for one in shapes[c]] for c in range(6)])
    assert within > across + 0.1
