"""`dlcv cache`: what is kept is listed, and goes when it is to go, and nothing else does."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from conftest import Run, contents, refused

from dlcv_cli.cli import cache as cli_cache
from dlcv_cli.errors import format_bytes
from dlcv_cli.files import feature_cache as stores
from dlcv_cli.files.feature_cache import FeatureCache
from dlcv_cli.files.locks import hold_lock

ABOUT = {"arch": "vgg16", "before": "classifier.2", "precision": "float32", "image_size": 224}
COUNTS = {"b": 100, "a": 200, "c": 300}
FOREIGN = ("notes.txt", "activations/notes.txt", "activations/folder/notes.txt", f"activations/{'a' * 40}/x")


@pytest.fixture
def cache(cache_folder: Path) -> Iterator[Path]:
    """A cache folder with three stores, `b` used last and `c` longest ago, and files that are not ours."""
    for age, (letter, count) in enumerate(COUNTS.items()):
        store = FeatureCache(cache_folder / stores.FOLDER / (letter * 40))
        store.create((2, 3), "float32", ABOUT)
        with store.open_for_appending() as append:
            append([bytes([i % 256, i // 256]) * 16 for i in range(count)], np.zeros((count, 2, 3), np.float32))
        os.utime(store.folder / "store.json", (1e9 - age, 1e9 - age))
    for foreign in FOREIGN:
        (cache_folder / foreign).parent.mkdir(exist_ok=True)
        (cache_folder / foreign).write_text("keep me")
    yield cache_folder
    assert {name for name, data in contents(cache_folder).items() if data == b"keep me"} == {*FOREIGN}


def names(cache: Path) -> str:
    """First letters of the stores there, the one used last first."""
    return "".join(listing.cache.folder.name[0] for listing in stores.list_feature_caches(cache))


def size_of(cache: Path, letter: str) -> int:
    """Bytes of a store on the disk."""
    folder = cache / stores.FOLDER / (letter * 40)
    return sum((folder / name).stat().st_size for name in stores.FILES)


def test_list(run: Run, cache: Path) -> None:
    """A line a store, the one used last first, with what it holds; the sum in the end."""
    result = run("cache", "list")
    assert (result.exit_code, result.stderr) == (0, "")
    head, rule, *lines, last = result.stdout.splitlines()
    assert re.split(r" {2,}", head.strip()) == cli_cache.HEADINGS
    assert re.fullmatch(r"[- ]+", rule)
    actual = [line.split() for line in lines]
    assert [line[:5] for line in actual] == [
        [12 * letter, "vgg16", "classifier.2", "float32", str(count)] for letter, count in COUNTS.items()
    ]
    assert actual[1][5:7] == [f"{size_of(cache, 'a') / 1000:.3g}", "kB"]
    assert actual[0][7].startswith("2001-09-09")
    total = sum(size_of(cache, letter) for letter in "abc")
    assert last == f"3 in {cache}, {format_bytes(total)}"


def test_list_json(run: Run, cache: Path) -> None:
    """--json: one document, its keys in their order."""
    document = json.loads(run("cache", "list", "--json").stdout)
    assert list(document) == ["cache", "feature_caches"]
    assert document["cache"] == str(cache)
    assert document["feature_caches"][1] == {"key": "a" * 40, **ABOUT, "images": 200, "bytes": size_of(cache, "a")}
    assert list(document["feature_caches"][0]) == [
        "key", "arch", "before", "precision", "image_size", "images", "bytes",
    ]  # fmt: skip
    assert [record["key"][0] for record in document["feature_caches"]] == ["b", "a", "c"]


def test_nothing_kept(run: Run, cache_folder: Path, tmp_path: Path) -> None:
    """Of a folder that is not there, or is a file, nothing is listed and nothing is dropped, and nothing is made."""
    (tmp_path / "file").touch()
    for folder in (cache_folder, tmp_path / "file"):
        for command in (("list",), ("clear",), ("prune", "--max-size", 0)):
            result = run("cache", *command, "--cache", folder)
            assert result.exit_code == 0, result.stderr
            assert re.search(rf"0 (in|of) {re.escape(str(folder))}, 0 B", result.stdout)
    assert not cache_folder.exists()


@pytest.mark.parametrize(
    ("stay", "spare", "left"), [("abc", 0, "bac"), ("abc", -1, "ba"), ("ab", 0, "ba"), ("b", 0, "b"), ("b", -1, "")]
)
def test_prune(run: Run, cache: Path, stay: str, spare: int, left: str) -> None:
    """What was used longest ago goes first, and no more than has to."""
    sizes = {letter: size_of(cache, letter) for letter in COUNTS}
    result = run("cache", "prune", "--max-size", sum(sizes[letter] for letter in stay) + spare)
    assert result.exit_code == 0
    assert names(cache) == left
    freed = sum(size for letter, size in sizes.items() if letter not in left)
    assert result.stdout == f"deleted {3 - len(left)} of {cache}, {format_bytes(freed)}\n"


def test_use_is_noted(run: Run, cache: Path) -> None:
    """A store that is used again is the last to go."""
    FeatureCache(cache / stores.FOLDER / ("c" * 40)).mark_used()
    assert names(cache) == "cba"
    document = json.loads(run("cache", "prune", "--max-size", size_of(cache, "c"), "--json").stdout)
    assert list(document) == ["cache", "dropped", "in_use"]
    assert [record["key"][0] for record in document["dropped"]] == ["a", "b"]
    assert names(cache) == "c"


@pytest.mark.parametrize("as_json", [True, False])
def test_clear(run: Run, cache: Path, as_json: bool) -> None:
    """Every store goes but one that is being filled, which is named; what is not ours stays (see `cache`)."""
    total = size_of(cache, "b") + size_of(cache, "c")
    with hold_lock(stores.locate_lock(cache / stores.FOLDER / ("a" * 40)), None):
        result = run("cache", "clear", *(["--json"] if as_json else []))
    assert result.exit_code == 0
    assert names(cache) == "a"
    if as_json:
        document = json.loads(result.stdout)
        assert [record["key"][0] for record in document["dropped"]] == ["c", "b"]
        assert [record["key"][0] for record in document["in_use"]] == ["a"]
    else:
        assert result.stderr == f"{12 * 'a'} is in use by another dlcv process and was not deleted\n"
        assert result.stdout == f"deleted 2 of {cache}, {format_bytes(total)}\n"
    assert run("cache", "clear").exit_code == 0
    assert names(cache) == ""
    assert not [*cache.rglob("*.bin"), *cache.rglob("*.json"), *cache.rglob("*.lock")]


def test_damaged_store(run: Run, cache: Path) -> None:
    """Damaged stores are shown as such, with what they take, and can be cleared like any."""
    (cache / stores.FOLDER / ("a" * 40) / "store.json").write_bytes(b"garbage")
    os.truncate(cache / stores.FOLDER / ("b" * 40) / "records.bin", 7)
    result = run("cache", "list")
    assert result.exit_code == 0
    lines = {line.split()[0][0]: line.split()[1:3] for line in result.stdout.splitlines()[2:5]}
    assert lines == {"a": ["damaged", "0"], "b": ["damaged", "0"], "c": ["vgg16", "classifier.2"]}
    document = json.loads(run("cache", "list", "--json").stdout)
    actual = {record["key"][0]: (record["arch"], record["bytes"]) for record in document["feature_caches"]}
    assert actual["a"] == (None, size_of(cache, "a"))
    assert run("cache", "clear").exit_code == 0
    assert names(cache) == ""


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500_000_000),
        ("1.5 GB", 1_500_000_000),
        ("0", 0),
        ("2k", 2000),
        (" 7 B ", 7),
        ("0.5tb", 500_000_000_000),
        *((text, None) for text in ("", "MB", "-1", "1e9", "5 XB", "nan", "1,000", "1.5.2GB", "5 MiB")),
    ],
)
def test_sizes(run: Run, cache_folder: Path, text: str, size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are read with or without unit, in thousands; what is none is wrong usage, and says how to write one."""
    seen: list[int] = []
    monkeypatch.setattr(stores, "prune", lambda cache, limit: (seen.append(limit) or [], []))
    result = run("cache", "prune", "--max-size", text)
    assert result.exit_code == (2 if size is None else 0)
    assert seen == ([] if size is None else [size])
    if size is None:
        assert "give a size such as 500MB or 20GB" in result.stderr


# ---------------------------------------------------------------------------------------------------------- the folder


@pytest.mark.skipif(sys.platform != "linux", reason="the library that knows the places reads the platform once")
@pytest.mark.parametrize(
    ("xdg", "folder"),
    [(None, "HOME/.cache/dlcv"), ("/xdg", "/xdg/dlcv"), ("relative", "HOME/.cache/dlcv"), ("", "HOME/.cache/dlcv")],
)
def test_default_folder(tmp_path: Path, xdg: str | None, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default cache folder follows the XDG specification, which has relative paths ignored."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if xdg is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert stores.find_default_folder() == Path(folder.replace("HOME", str(tmp_path)))


@pytest.mark.parametrize(
    ("platform", "folder"), [("macos.MacOS", "Library/Caches/dlcv"), ("windows.Windows", "dlcv/Cache")]
)
def test_default_folder_elsewhere(tmp_path: Path, platform: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS and Windows the cache folder is where those keep caches."""
    for name in ("XDG_CACHE_HOME", "WIN_PD_OVERRIDE_LOCAL_APPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    module, name = platform.split(".")
    monkeypatch.setattr(platformdirs, "PlatformDirs", getattr(import_module(f"platformdirs.{module}"), name))
    if module == "windows":
        monkeypatch.setattr("platformdirs.windows.get_win_folder", lambda _: str(tmp_path))
    assert Path(str(stores.find_default_folder()).replace("\\", "/")) == tmp_path / folder


def test_whose_word_counts(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--cache goes before DLCV_CACHE, and that before the user's folder, which an empty variable leaves in place."""

    def used(*args: object) -> str:
        return str(json.loads(run("cache", "list", "--json", *args).stdout)["cache"])

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DLCV_CACHE", str(tmp_path / "variable"))
    assert used("--cache", tmp_path / "option") == str(tmp_path / "option")
    assert used() == str(tmp_path / "variable")
    monkeypatch.setenv("DLCV_CACHE", "")
    assert used() == str(tmp_path / "xdg" / "dlcv")
    monkeypatch.delenv("DLCV_CACHE")
    assert used() == str(tmp_path / "xdg" / "dlcv")


def test_a_lock_that_cannot_be_had(run: Run, tmp_path: Path) -> None:
    """A store whose lock cannot be opened is not deleted; one line says why."""
    store = FeatureCache(tmp_path / "activations" / "store")
    store.create((2, 3), "float32", ABOUT)
    (tmp_path / "activations" / "store.lock").mkdir()
    refused(run("cache", "clear", "--cache", tmp_path), "store.lock")
    assert store.open()
