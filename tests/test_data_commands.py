"""`dlcv data`: what a script relies on. Exit codes, one JSON document, up to date or refused, whole files or none."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, make_photos
from PIL import Image
from typer.testing import Result

CLASSES = ["cat", "straße", "tree house"]
COUNTS = {"train": 22, "val": 6, "test": 7}
DRAW = ("--classes", 2, "--per-class", 2, "--size", 16)


def assert_failure(result: Result, *texts: str, code: int = 1) -> str:
    """Assert a failure with nothing on stdout, no traceback and these words, and return its line on stderr."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith("dlcv: ")
    for text in texts:
        assert text in line
    return line


def document(result: Result) -> dict[str, Any]:
    """Return the JSON document on stdout."""
    assert result.exit_code == 0, result.stderr
    actual = json.loads(result.stdout)
    assert isinstance(actual, dict)
    return actual


def damage(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".dlcv-")]


def read_files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- data split -----------------------------------------------------------------------------------------------------


def test_split_file_content(split_file: Path, photos: Path) -> None:
    """The file names its schema, classes and settings, and each image with its label and true sha256, once."""
    content = json.loads(split_file.read_text("utf-8"))
    assert content["schema"] == "dlcv.split/1"
    assert content["classes"] == CLASSES
    assert content["counts"] == COUNTS
    assert content["root"] == "photos"
    assert content["config"]["seed"] == 0
    assert {part: len(entries) for part, entries in content["parts"].items()} == COUNTS
    entries = [entry for part in content["parts"].values() for entry in part]
    assert Counter(e["path"] for e in entries) == Counter(p.relative_to(photos).as_posix() for p in photos.glob("*/*"))
    for entry in entries:
        assert CLASSES[entry["label"]] == entry["path"].split("/")[0]
        assert entry["sha256"] == hashlib.sha256((photos / entry["path"]).read_bytes()).hexdigest()


def test_split_json(run: Run, photos: Path, tmp_path: Path) -> None:
    """--json prints one document with status, file and counts, and the second time that it is up to date."""
    output = tmp_path / "x.split.json"
    made = document(run("data", "split", photos, "-o", output, "--json"))
    assert (made["status"], made["output"], made["counts"]) == ("made", str(output), COUNTS)
    assert list(made["classes"]) == CLASSES
    again = document(run("data", "split", photos, "-o", output, "--json"))
    assert again == made | {"status": "up to date"}


def test_split_up_to_date(run: Run, photos: Path, split_file: Path) -> None:
    """The same command again prints that the file is up to date and does not change it."""
    before = split_file.read_bytes(), split_file.stat().st_mtime_ns
    result = run("data", "split", photos, "-o", split_file)
    assert result.exit_code == 0
    assert "up to date" in result.stdout
    assert (split_file.read_bytes(), split_file.stat().st_mtime_ns) == before


def test_split_repeats_itself(run: Run, photos: Path, tmp_path: Path) -> None:
    """Two runs write the same bytes, here and with --force over the first."""
    outputs = tmp_path / "1.split.json", tmp_path / "2.split.json"
    for output in outputs:
        assert run("data", "split", photos, "-o", output).exit_code == 0
    first = outputs[0].read_bytes()
    assert outputs[1].read_bytes() == first
    assert run("data", "split", photos, "-o", outputs[0], "--force").exit_code == 0
    assert outputs[0].read_bytes() == first


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--seed", 1), "--seed was 0, now 1"),
        (("--test-fraction", 0.3), "--test-fraction was 0.2, now 0.3"),
        (("--no-stratify",), "--stratify was on, now off"),
        (("--train-per-class", 3), "--train-per-class was not set, now 3"),
    ],
    ids=str,
)
def test_split_made_differently_is_refused(
    run: Run, photos: Path, split_file: Path, options: tuple[object, ...], named: str
) -> None:
    """Other settings are refused by name and keep the file; --force replaces it."""
    before = split_file.read_bytes()
    assert_failure(run("data", "split", photos, "-o", split_file, *options), str(split_file), named, "--force")
    assert split_file.read_bytes() == before
    result = run("data", "split", photos, "-o", split_file, *options, "--force")
    assert result.exit_code == 0
    assert split_file.read_bytes() != before


@pytest.mark.parametrize("change", ["add", "remove", "edit", "rename"])
def test_split_of_changed_images_is_refused(run: Run, photos: Path, split_file: Path, change: str) -> None:
    """Images added, removed, changed or renamed make the split out of date."""
    image = photos / "cat/000.png"
    if change == "add":
        Image.new("RGB", (9, 9)).save(photos / "cat/new.png")
    elif change == "remove":
        image.unlink()
    elif change == "edit":
        Image.new("RGB", (9, 9)).save(image)
    else:
        image.rename(photos / "cat/other.png")
    assert_failure(run("data", "split", photos, "-o", split_file), "different images", "--force")
    assert run("data", "split", photos, "-o", split_file, "--force").exit_code == 0


@pytest.mark.parametrize("content", ["", "not JSON", '{"schema": "dlcv.metrics/1"}', "[]", "my notes"], ids=repr)
def test_split_does_not_overwrite_another_file(run: Run, photos: Path, tmp_path: Path, content: str) -> None:
    """A file of another kind under the output's name is refused and kept; --force replaces it."""
    output = tmp_path / "x.split.json"
    output.write_text(content)
    assert_failure(run("data", "split", photos, "-o", output), str(output), "--force")
    assert output.read_text() == content
    assert run("data", "split", photos, "-o", output, "--force").exit_code == 0


def test_split_mends_a_damaged_file_with_force(run: Run, photos: Path, split_file: Path) -> None:
    """A damaged split of the same recipe is not up to date; --force writes it again."""
    before = split_file.read_bytes()
    damage(split_file, lambda content: content["parts"]["train"].pop())
    assert_failure(run("data", "split", photos, "-o", split_file), str(split_file), "--force")
    assert run("data", "split", photos, "-o", split_file, "--force").exit_code == 0
    assert split_file.read_bytes() == before


def test_split_after_the_images_moved(run: Run, photos: Path, split_file: Path) -> None:
    """A split written again after its images moved needs no --root in the next stage."""
    moved = photos.rename(photos.with_name("moved"))
    result = run("data", "split", moved, "-o", split_file)
    if result.exit_code:  # refusing would be honest as well
        assert_failure(result, "--force")
        assert run("data", "split", moved, "-o", split_file, "--force").exit_code == 0
    root = document(run("data", "show", split_file, "--json"))["root"]
    assert Path(root).resolve() == moved.resolve()


def test_split_makes_the_output_folder(run: Run, photos: Path, tmp_path: Path) -> None:
    """Missing folders of the output are created, and the root is relative to them."""
    output = tmp_path / "new/deep/x.split.json"
    assert run("data", "split", photos, "-o", output).exit_code == 0
    assert json.loads(output.read_text("utf-8"))["root"] == "../../photos"
    assert run("data", "show", output).exit_code == 0


@pytest.mark.parametrize("name", ["x.json", "x", ".split.json", "x.split.JSON.txt"])
def test_split_output_needs_its_ending(run: Run, photos: Path, tmp_path: Path, name: str) -> None:
    """An output of another ending is refused before any work."""
    assert_failure(run("data", "split", photos, "-o", tmp_path / name), name, ".split.json")
    assert not (tmp_path / name).exists()


def test_split_output_is_a_folder(run: Run, photos: Path, tmp_path: Path) -> None:
    """An output that is a folder is refused."""
    (tmp_path / "x.split.json").mkdir()
    assert_failure(run("data", "split", photos, "-o", tmp_path / "x.split.json"), "folder")


@pytest.mark.parametrize("below", ["x.split.json", "deeper/x.split.json"])
def test_split_output_cannot_be_written(run: Run, photos: Path, tmp_path: Path, below: str) -> None:
    """A folder that cannot be written to is one line with the output's name."""
    (tmp_path / "file").write_text("keep me")
    assert_failure(run("data", "split", photos, "-o", tmp_path / "file" / below), str(tmp_path / "file" / below))
    assert (tmp_path / "file").read_text() == "keep me"


@pytest.mark.parametrize("root", ["none", "photos/cat/000.png", "photos/cat"])
def test_root_without_class_folders_is_refused(run: Run, photos: Path, tmp_path: Path, root: str) -> None:
    """A missing root, a file, and a root without class folders are refused by name."""
    assert_failure(run("data", "split", tmp_path / root, "-o", tmp_path / "x.split.json"), str(tmp_path / root))
    assert not (tmp_path / "x.split.json").exists()


def test_split_of_one_class(run: Run, tmp_path: Path) -> None:
    """A single class is refused by name."""
    root = make_photos(tmp_path / "one", {"only": 5})
    assert_failure(run("data", "split", root, "-o", tmp_path / "x.split.json"), "only one class", "'only'")


def test_split_of_a_small_class(run: Run, tmp_path: Path) -> None:
    """A class too small to divide is named."""
    root = make_photos(tmp_path / "small", {"big": 5, "wee one": 2})
    assert_failure(run("data", "split", root, "-o", tmp_path / "x.split.json"), "'wee one' has 2, needs 3")


def test_split_without_caltech101(run: Run, tmp_path: Path) -> None:
    """If Caltech101 is missing, the message says how to get it."""
    assert_failure(
        run("data", "split", tmp_path, "--dataset", "caltech101", "-o", tmp_path / "x.split.json"),
        "--download",
        "https://data.caltech.edu",
    )


@pytest.mark.parametrize("background", [False, True])
def test_split_of_caltech101(run: Run, tmp_path: Path, background: bool) -> None:
    """Caltech101 is split without its background class unless it is requested."""
    names = {"BACKGROUND_Google": 3, "accordion": 3, "airplanes": 3}
    make_photos(tmp_path / "101_ObjectCategories", names)
    options = ["--background"] if background else []
    arguments = ("data", "split", tmp_path, "--dataset", "caltech101", "-o", tmp_path / "x.split.json")
    made = document(run(*arguments, *options, "--json"))
    assert list(made["classes"]) == list(names)[0 if background else 1 :]


def test_split_per_class(run: Run, photos: Path, tmp_path: Path) -> None:
    """Protocols of the literature get exact numbers per class, and a note of the unused images."""
    options = ("--train-per-class", 4, "--val-per-class", 2, "--test-per-class", 3)
    result = run("data", "split", photos, "-o", tmp_path / "x.split.json", *options, "--json")
    made = document(result)
    assert made["classes"] == {name: {"train": 4, "val": 2, "test": 3} for name in CLASSES}
    assert "8 images are in no part" in result.stderr


# --- images that are not as they should be --------------------------------------------------------------------------


@pytest.fixture
def bad(photos: Path) -> list[str]:
    """Write unreadable files of several kinds among the photos."""
    whole = (photos / "cat/000.png").read_bytes()
    (photos / "cat/empty.png").touch()
    (photos / "cat/page.jpg").write_text("<html>")
    (photos / "straße/cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "tree house/gone.png").symlink_to(photos / "nowhere")
    return ["cat/empty.png", "cat/page.jpg", "straße/cut.png", "tree house/gone.png"]


def test_unreadable_images_are_all_listed(run: Run, photos: Path, tmp_path: Path, bad: list[str]) -> None:
    """Every unreadable image is listed, the split is refused, and nothing is written."""
    result = run("data", "split", photos, "-o", tmp_path / "x.split.json")
    assert_failure(result, "4 unreadable images", "--skip-bad")
    for path in bad:
        assert f"warning: {photos / path}: " in result.stderr
    assert not (tmp_path / "x.split.json").exists()


def test_skip_bad_is_recorded(run: Run, photos: Path, tmp_path: Path, bad: list[str]) -> None:
    """--skip-bad skips, lists and records unreadable images with the reason, and divides the rest."""
    output = tmp_path / "x.split.json"
    result = run("data", "split", photos, "-o", output, "--skip-bad", "--json")
    made = document(result)
    assert (made["skipped"], made["counts"]) == (4, COUNTS)
    content = json.loads(output.read_text("utf-8"))
    assert [entry["path"] for entry in content["skipped"]] == bad
    assert all(entry["problem"] for entry in content["skipped"])
    used = {entry["path"] for part in content["parts"].values() for entry in part}
    assert used.isdisjoint(bad)
    for path in bad:
        assert str(photos / path) in result.stderr
    assert "4 unreadable images skipped" in run("data", "show", output).stdout
    assert document(run("data", "split", photos, "-o", output, "--skip-bad", "--json"))["status"] == "up to date"


@pytest.mark.parametrize("options", [(), ("--no-stratify",), ("--train-per-class", 1)], ids=str)
def test_class_of_unreadable_images_alone(run: Run, photos: Path, tmp_path: Path, options: tuple[object, ...]) -> None:
    """With --skip-bad, a class without readable images is refused by name."""
    for path in (photos / "straße").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    result = run("data", "split", photos, "-o", tmp_path / "x.split.json", "--skip-bad", *options)
    assert_failure(result, "'straße'")
    assert not (tmp_path / "x.split.json").exists()


def test_ignored_files_are_mentioned_and_recorded(run: Run, photos: Path, tmp_path: Path) -> None:
    """Files that are no images are mentioned once and recorded."""
    (photos / "cat/notes.txt").write_text("words")
    (photos / ".DS_Store").write_text("words")
    result = run("data", "split", photos, "-o", tmp_path / "x.split.json")
    assert result.exit_code == 0
    assert "ignored 2" in result.stderr
    content = json.loads((tmp_path / "x.split.json").read_text("utf-8"))
    assert sorted(content["ignored"]) == [".DS_Store", "cat/notes.txt"]


def test_duplicates_are_reported(run: Run, photos: Path, tmp_path: Path) -> None:
    """The same image under two names of one class is reported, recorded and kept in one part."""
    shutil.copy(photos / "cat/000.png", photos / "cat/copy.png")
    output = tmp_path / "x.split.json"
    result = run("data", "split", photos, "-o", output, "--json")
    made = document(result)
    assert (made["identical"], made["label_conflicts"]) == (1, 0)
    assert "cat/000.png = cat/copy.png" in result.stderr
    content = json.loads(output.read_text("utf-8"))
    assert content["identical"] == [["cat/000.png", "cat/copy.png"]]
    assert content["label_conflicts"] == []
    both = {"cat/000.png", "cat/copy.png"}
    assert [len(both & {e["path"] for e in entries}) for entries in content["parts"].values()].count(2) == 1
    assert "1 images under several names" in run("data", "show", output).stdout


def test_label_conflict_is_reported(run: Run, photos: Path, tmp_path: Path) -> None:
    """An image in two classes is a warning, is recorded, and is in one part only."""
    shutil.copy(photos / "cat/000.png", photos / "straße/cat.png")
    result = run("data", "split", photos, "-o", tmp_path / "x.split.json", "--json")
    made = document(result)
    assert made["label_conflicts"] == 1
    assert "warning: label conflict" in result.stderr
    assert "cat/000.png = straße/cat.png" in result.stderr
    content = json.loads((tmp_path / "x.split.json").read_text("utf-8"))
    assert content["label_conflicts"] == [["cat/000.png", "straße/cat.png"]]


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tree house", "straße", "猫", "e\u0301", "100%", "a'b\"c", "[red]", "-o", "{o}"])
def test_class_names_survive(run: Run, tmp_path: Path, name: str) -> None:
    """Any name of a class folder is the same in file, table and JSON."""
    root = make_photos(tmp_path / "photos", {name: 3, "zebra": 3})
    output = tmp_path / "x.split.json"
    made = document(run("data", "split", root, "-o", output, "--json"))
    assert name in made["classes"]
    assert name in json.loads(output.read_text("utf-8"))["classes"]
    assert name in run("data", "show", output).stdout


def test_class_name_that_is_not_utf8(run: Run, tmp_path: Path) -> None:
    """A class folder whose name is not UTF-8 can be split, and its images are located again."""
    name = os.fsdecode(b"caf\xe9")
    try:
        root = make_photos(tmp_path / "photos", {name: 3, "zebra": 3})
    except (OSError, UnicodeError):
        pytest.skip("such a name cannot be made here")
    output = tmp_path / "x.split.json"
    assert name in document(run("data", "split", root, "-o", output, "--json"))["classes"]
    assert document(run("data", "split", root, "-o", output, "--json"))["status"] == "up to date"


# --- data show ------------------------------------------------------------------------------------------------------


def test_show_table(run: Run, split_file: Path) -> None:
    """The table has each class's count in each part, and the smallest and the largest class."""
    result = run("data", "show", split_file)
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["straße", "6", "2", "2", "10"] in rows
    assert ["tree", "house", "10", "2", "3", "15"] in rows
    assert ["all", "22", "6", "7", "35"] in rows
    assert "smallest class: cat (10)" in result.stdout
    assert "largest class: tree house (15)" in result.stdout


def test_show_json(run: Run, split_file: Path, photos: Path) -> None:
    """--json has the same content, and nothing else on stdout."""
    shown = document(run("data", "show", split_file, "--json"))
    assert shown["counts"] == COUNTS
    assert shown["classes"]["tree house"] == {"train": 10, "val": 2, "test": 3}
    assert shown["largest_class"] == {"name": "tree house", "count": 15}
    assert shown["smallest_class"] == {"name": "cat", "count": 10}
    assert Path(shown["root"]).samefile(photos)
    assert (shown["skipped"], shown["identical"], shown["label_conflicts"]) == (0, 0, 0)


def test_split_moves_with_its_images(run: Run, split_file: Path, photos: Path, tmp_path: Path) -> None:
    """A split that is moved together with its images stays valid."""
    (tmp_path / "new").mkdir()
    photos.rename(tmp_path / "new/photos")
    moved = split_file.rename(tmp_path / "new" / split_file.name)
    assert Path(document(run("data", "show", moved, "--json"))["root"]).samefile(tmp_path / "new/photos")


def test_moved_root(run: Run, split_file: Path, photos: Path, tmp_path: Path) -> None:
    """If only the images move, the split is still shown, and commands that read images name --root."""
    moved = photos.rename(photos.with_name("elsewhere"))
    assert document(run("data", "show", split_file, "--json"))["counts"] == COUNTS
    shown = document(run("data", "show", split_file, "--root", moved, "--json"))
    assert (shown["root"], shown["counts"]) == (str(moved), COUNTS)
    train = ("vgg", "scratch", split_file, "--arch", "vgg16_mini", "-o", tmp_path / "x.safetensors")
    for options in ((), ("--root", moved / "nowhere")):
        result = run(*train, *options)
        assert_failure(result, str(split_file), "nowhere" if options else "photos", "--root")
        assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b"no JSON at all", "not JSON"),
        (b'{"schema": "dlcv.split/1", "classes": ["a"', "not JSON"),
        (b"\x93NUMPY\x01\x00\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"schema": "dlcv.split/1", "seed": NaN}', "not JSON"),
        (b'{"schema": "dlcv.metrics/1"}', "'dlcv.metrics/1'"),
        (b'{"schema": "dlcv.split/3"}', "'dlcv.split/3'"),
        (b'{"schema": "dlcv.split/2"}', "damaged"),
        (b'{"schema": 1}', "not a dlcv file"),
        (b"[1, 2]", "not a dlcv file"),
        (b"null", "not a dlcv file"),
        (b'{"schema": "dlcv.split/1"}', "damaged"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_other_files_are_refused(run: Run, tmp_path: Path, content: bytes, named: str) -> None:
    """A file that is no split is refused in one line that says what it is."""
    path = tmp_path / "x.split.json"
    path.write_bytes(content)
    assert_failure(run("data", "show", path), str(path), named)


def test_missing_split_file(run: Run, tmp_path: Path) -> None:
    """A split file that is missing, or a folder, is refused by name."""
    assert_failure(run("data", "show", tmp_path / "x.split.json"), "x.split.json", "no such file")
    assert_failure(run("data", "show", tmp_path), str(tmp_path), "not a file")


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "cat/../../secret.png",
        "/etc/passwd",
        "..",
        "..\\secret.png",
        "cat\\..\\..\\secret.png",
        "\\secret.png",
        "C:\\secret.png",
        "c:/secret.png",
    ],
)
def test_paths_out_of_the_root_are_refused(run: Run, split_file: Path, path: str) -> None:
    """A path in a split cannot lead out of its root on any platform."""

    def change(content: dict[str, Any]) -> None:
        content["parts"]["train"][0]["path"] = path

    damage(split_file, change)
    assert_failure(run("data", "show", split_file), repr(path), "out of the root")


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "an image less": lambda c: c["parts"]["train"].pop(),
    "an image moved": lambda c: c["parts"]["train"].append(c["parts"]["test"].pop()),
    "another label": lambda c: c["parts"]["val"][0].update(label=2),
    "another hash": lambda c: c["parts"]["val"][0].update(sha256="0" * 64),
    "a class renamed": lambda c: c["classes"].__setitem__(0, "dog"),
    "a class more": lambda c: c["classes"].append("dog"),
    "another fingerprint": lambda c: c.update(fingerprint="0" * 64),
    "no fingerprint": lambda c: c.pop("fingerprint"),
    "fingerprint of another kind": lambda c: c.update(fingerprint=[1]),
}


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES.keys())
def test_fingerprint_finds_damage(run: Run, split_file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Any change of classes or parts is detected by the fingerprint."""
    damage(split_file, change)
    assert_failure(run("data", "show", split_file), str(split_file), "fingerprint")


MALFORMED: dict[str, Callable[[dict[str, Any]], object]] = {
    "an image twice": lambda c: c["parts"]["val"][0].update(path=c["parts"]["train"][0]["path"]),
    "a class twice": lambda c: c["classes"].__setitem__(1, "cat"),
    "no classes": lambda c: c.update(classes=[]),
    "a class of a number": lambda c: c["classes"].append(5),
    "a class that is no text": lambda c: c["classes"].__setitem__(0, "\ud800"),
    "a part less": lambda c: c["parts"].pop("val"),
    "a part more": lambda c: c["parts"].update(more=[]),
    "parts of a list": lambda c: c.update(parts=[]),
    "an image of text": lambda c: c["parts"]["val"].append("cat/1.png"),
    "no path": lambda c: c["parts"]["val"][0].pop("path"),
    "an empty path": lambda c: c["parts"]["val"][0].update(path=""),
    "a NUL in a path": lambda c: c["parts"]["val"][0].update(path="a\0b"),
    "a label out of range": lambda c: c["parts"]["val"][0].update(label=3),
    "a negative label": lambda c: c["parts"]["val"][0].update(label=-1),
    "a label of truth": lambda c: c["parts"]["val"][0].update(label=True),
    "a label of text": lambda c: c["parts"]["val"][0].update(label="0"),
    "a short hash": lambda c: c["parts"]["val"][0].update(sha256="00"),
    "no root": lambda c: c.pop("root"),
    "a root of a number": lambda c: c.update(root=7),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_split_is_refused(run: Run, split_file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A malformed split is refused in one line without a traceback."""
    damage(split_file, change)
    assert_failure(run("data", "show", split_file), str(split_file))


# --- data digits and draw -------------------------------------------------------------------------------------------


@pytest.fixture
def figures(run: Run, tmp_path: Path) -> Path:
    """Return a folder of four drawn figures."""
    folder = tmp_path / "figures"
    assert run("data", "draw", *DRAW, "-o", folder).exit_code == 0
    return folder


def test_digits(run: Run, tmp_path: Path) -> None:
    """The built-in digits are written as ten class folders, can be split, and are up to date the second time."""
    folder = tmp_path / "deep/digits"
    made = document(run("data", "digits", "-o", folder, "--json"))
    assert (made["status"], made["images"]) == ("made", 1797)
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == list("0123456789")
    assert len(list(folder.glob("*/*.png"))) == 1797
    assert document(run("data", "digits", "-o", folder, "--json")) == made | {"status": "up to date"}
    split = document(run("data", "split", folder, "-o", tmp_path / "x.split.json", "--json"))
    assert split["counts"] == {"train": 1149, "val": 288, "test": 360}
    assert leftovers(tmp_path) == []


def test_draw(run: Run, tmp_path: Path, figures: Path) -> None:
    """Figures are written as class folders of PNGs of the requested size, the same bytes each time."""
    assert len(list(figures.glob("figure-00[01]/*.png"))) == 4
    for path in figures.glob("*/*.png"):
        with Image.open(path) as image:
            assert image.size == (16, 16)
    assert run("data", "draw", *DRAW, "-o", tmp_path / "again").exit_code == 0
    assert read_files(tmp_path / "again") == read_files(figures)
    assert "up to date" in run("data", "draw", *DRAW, "-o", figures).stdout


@pytest.mark.parametrize(
    ("options", "named"),
    [(("--seed", 1), "--seed was 0, now 1"), (("--per-class", 3), "--per-class was 2, now 3")],
    ids=str,
)
def test_drawn_differently_is_refused(run: Run, figures: Path, options: tuple[object, ...], named: str) -> None:
    """Other settings are refused by name and keep the folder; --force replaces it."""
    before = read_files(figures)
    arguments = ("data", "draw", *DRAW, *options, "-o", figures)
    assert_failure(run(*arguments), str(figures), named, "--force")
    assert read_files(figures) == before
    assert run(*arguments, "--force").exit_code == 0
    assert read_files(figures) != before
    assert leftovers(figures.parent) == []


def test_digits_over_drawings_is_refused(run: Run, figures: Path) -> None:
    """A folder made by another command is refused, and the message names that command."""
    assert_failure(run("data", "digits", "-o", figures), "data draw", "--force")


@pytest.mark.parametrize("change", ["edit", "remove"])
def test_changed_folder_is_not_up_to_date(run: Run, figures: Path, change: str) -> None:
    """A changed or removed file is named; --force restores the folder."""
    before = read_files(figures)
    file = figures / "figure-001/00001.png"
    file.unlink() if change == "remove" else file.write_bytes(b"changed")
    assert_failure(run("data", "draw", *DRAW, "-o", figures), "figure-001/00001.png")
    assert run("data", "draw", *DRAW, "-o", figures, "--force").exit_code == 0
    assert read_files(figures) == before


@pytest.mark.parametrize("force", [[], ["--force"]], ids=str)
def test_folder_of_something_else_is_left_alone(run: Run, tmp_path: Path, force: list[str]) -> None:
    """A folder with other content, or a file, is never replaced, even with --force."""
    folder, file = tmp_path / "mine", tmp_path / "file"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years")
    file.write_text("keep me")
    for place in (folder, file):
        assert_failure(run("data", "draw", *DRAW, "-o", place, *force), str(place))
    assert read_files(tmp_path) == {"mine/thesis.txt": b"years", "file": b"keep me"}


def test_force_keeps_what_dlcv_did_not_make(run: Run, figures: Path) -> None:
    """--force does not delete a user's file in a folder of dlcv."""
    (figures / "figure-000/thesis.txt").write_text("years")
    result = run("data", "draw", *DRAW, "--seed", 1, "-o", figures, "--force")
    if result.exit_code:
        assert_failure(result, "thesis.txt")
    assert (figures / "figure-000/thesis.txt").read_text() == "years"


def test_empty_folder_is_filled(run: Run, tmp_path: Path) -> None:
    """An empty folder is accepted as an output."""
    (tmp_path / "empty").mkdir()
    assert run("data", "draw", *DRAW, "-o", tmp_path / "empty").exit_code == 0
    assert len(list((tmp_path / "empty").glob("*/*.png"))) == 4


# --- writing whole files or none ------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
@pytest.mark.parametrize(
    ("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_permissions_follow_the_umask(
    run: Run, photos: Path, tmp_path: Path, mask: int, file: int, folder: int
) -> None:
    """Files and folders have the permissions that the umask gives to any other program's."""
    before = os.umask(mask)
    try:
        assert run("data", "split", photos, "-o", tmp_path / "new/x.split.json").exit_code == 0
        assert run("data", "draw", *DRAW, "-o", tmp_path / "drawn").exit_code == 0
        assert os.umask(mask) == mask  # left as it was
    finally:
        os.umask(before)
    made = [tmp_path / "new", tmp_path / "drawn", *(tmp_path / "new").rglob("*"), *(tmp_path / "drawn").rglob("*")]
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/some/temporary/file")


@pytest.fixture(params=[(os, "fsync"), (Path, "replace"), (Path, "write_bytes")], ids=lambda param: param[1])
def no_space(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make one step of writing fail for lack of space."""
    monkeypatch.setattr(*request.param, full_disk)
    yield
    monkeypatch.undo()


@pytest.fixture
def before_full(run: Run, photos: Path, split_file: Path, figures: Path) -> dict[str, bytes]:
    """Return the content of the folder before the disk is full."""
    return read_files(photos.parent)


def test_full_disk_leaves_nothing_behind(run: Run, photos: Path, before_full: dict[str, bytes], no_space: None) -> None:
    """Without free space there is one line with the output's name and no file."""
    folder = photos.parent
    for output, arguments in [
        (folder / "new.split.json", ("data", "split", photos)),
        (folder / "new figures", ("data", "draw", *DRAW)),
    ]:
        assert_failure(run(*arguments, "-o", output), str(output), "No space left on device")
        assert not output.exists()
    assert leftovers(folder) == []
    assert read_files(folder) == before_full


def test_full_disk_keeps_the_old_output(run: Run, photos: Path, before_full: dict[str, bytes], no_space: None) -> None:
    """Without free space, the old output is not changed."""
    folder = photos.parent
    for output, arguments in [
        (folder / "photos.split.json", ("data", "split", photos, "--seed", 1)),
        (folder / "figures", ("data", "draw", *DRAW, "--seed", 1)),
    ]:
        assert_failure(run(*arguments, "-o", output, "--force"), str(output), "No space left on device")
    assert leftovers(folder) == []
    assert read_files(folder) == before_full


@pytest.mark.parametrize("failing", [1, 2])
def test_folder_that_cannot_be_renamed_keeps_the_old(
    run: Run, figures: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """If a rename fails while a folder is replaced, the old folder is restored."""
    before, rename, calls = read_files(figures.parent), Path.rename, []

    def sometimes(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing:
            full_disk()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", sometimes)
    assert_failure(run("data", "draw", *DRAW, "--seed", 1, "-o", figures, "--force"), "No space left on device")
    assert read_files(figures.parent) == before


def test_interrupted_drawing_leaves_nothing_behind(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption while writing gives exit code 130 and no files."""
    from dlcv_cli.vision import drawing

    def interrupted(config: object) -> Iterator[tuple[str, bytes]]:
        yield "figure-000/00000.png", b"one"
        raise KeyboardInterrupt

    monkeypatch.setattr(drawing, "draw_figures", interrupted)
    assert_failure(run("data", "draw", *DRAW, "-o", tmp_path / "figures"), "interrupted", code=130)
    assert list(tmp_path.iterdir()) == []
