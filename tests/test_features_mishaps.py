"""The feature cache in trouble: damage, full disks and other mishaps cost time, never a result."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import BOTH, COMMON, Run, Train, count_sound_entries, flip_bit
from PIL import Image

from dlcv_cli.files import feature_cache
from dlcv_cli.stages import image_training as vgg
from dlcv_cli.stages import shared_images
from dlcv_cli.stages import snapshots as resume
from dlcv_cli.studies.images import features as image_features


@pytest.mark.parametrize(
    "damage",
    [
        lambda store: os.truncate(store / "records.bin", 5000),
        lambda store: (store / "records.bin").unlink(),
        lambda store: flip_bit(store / "records.bin", 7),
        lambda store: flip_bit(store / "index.bin", 40),
        lambda store: (store / "store.json").write_bytes(b"\xffgarbage"),
    ],
    ids=["truncated", "gone", "flipped", "index", "garbage"],
)
def test_damaged_cache_is_refilled(train: Train, cache_folder: Path, damage: Callable[[Path], Any]) -> None:
    """Damage is named in one warning and the cache filled again; the checkpoint does not change."""
    first = train("head")
    [listing] = feature_cache.list_feature_caches(cache_folder)
    damage(listing.cache.folder)
    actual = train("head")
    [warning] = actual.warnings
    assert str(listing.cache.folder) in warning
    assert warning.endswith("; dropped, computing the features again")
    assert (actual.data, actual.features["computed"]) == (first.data, BOTH)
    assert count_sound_entries(cache_folder) == [BOTH]
    again = train("head")
    assert (again.data, again.features["computed"], again.warnings) == (first.data, 0, [])


def test_little_disk_space_skips_the_cache(train: Train, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of more than nine tenths of the free space is not filled; a warning has both sizes."""
    first = train("head", "--no-cache", "--precision", "float32")
    free = [1000]
    monkeypatch.setattr(resume, "measure_free_space", lambda _: 10**12)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
    need = 4 * 512 * BOTH
    for free[0], printed in ((1000, "1 kB"), (int(need / 0.9) - 10, "43.2 kB")):
        actual = train("head", "--precision", "float32")
        [warning] = actual.warnings
        assert f"38.9 kB to add, {printed} free on its disk; going on without it" in warning
        assert actual.data == first.data
        assert actual.features == {
            "used": False, "why": f"38.9 kB to add, {printed} free on its disk", "before": "classifier.2",
            "bytes_per_image": 2048,
        }  # fmt: skip
        assert not [path for path in cache_folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    free[0] = int(need / 0.9) + 10
    assert train("head", "--precision", "float32").features["computed"] == BOTH


@pytest.mark.parametrize("place", ["file", "file/below", "activations is a file"])
def test_unusable_cache_folder_is_skipped(train: Train, tmp_path: Path, place: str) -> None:
    """If no cache folder can be created, a warning says so, and the checkpoint does not change."""
    (tmp_path / "file").write_text("mine")
    cache = tmp_path / place
    if place.startswith("act"):
        cache = tmp_path
        (tmp_path / "activations").write_text("mine")
    actual = train("head", "--cache", cache)
    [warning] = actual.warnings
    assert str(cache) in warning
    assert "going on without it" in warning
    assert (actual.features["used"], actual.data) == (False, train("head", "--no-cache").data)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("calls", "entries"), [(1, []), (2, []), (3, [16]), (4, [16])])
def test_full_disk_keeps_complete_entries(
    train: Train, cache_folder: Path, calls: int, entries: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the disk fills up, a warning says so, and the next run uses the complete entries."""
    first, flush, done = train("head", "--no-cache"), feature_cache._flush, []

    def fail_when_full(file: Any) -> None:
        done.append(file)
        if len(done) >= calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(file)

    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "_flush", fail_when_full)
        patch.setattr(feature_cache, "COMMIT_SECONDS", -1.0)
        actual = train("head")
    [warning] = actual.warnings
    assert "the disk is full; going on without it" in warning
    assert (actual.data, actual.features["why"]) == (first.data, "the disk is full")
    assert sum(count_sound_entries(cache_folder)) >= sum(entries)
    again = train("head")
    assert (again.data, again.warnings) == (first.data, [])
    assert count_sound_entries(cache_folder) == [BOTH]


@pytest.mark.parametrize("name", ["hold_lock", "_open_and_check"])
def test_unreadable_cache_is_kept(train: Train, cache_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that cannot be locked or read at the moment is not used and not deleted."""
    first = train("head")

    def failing(*_: object) -> Any:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(image_features, name, failing)
        actual = train("head")
    assert (len(actual.warnings), actual.features["used"], actual.data) == (1, False, first.data)
    assert count_sound_entries(cache_folder) == [BOTH]
    assert train("head").features["computed"] == 0


@pytest.mark.parametrize("more", [(), ("--no-cache",)], ids=["store", "no store"])
def test_image_changed_during_training_is_refused(
    run: Run, photo_folder: Path, cache_folder: Path, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that changes between check and decoding is refused by name and not cached."""
    name = json.loads((photo_folder / "photos.split.json").read_text())["parts"]["val"][0]["path"]
    open_sources = shared_images.open_sources

    def change_late(*args: Any) -> Any:
        Image.new("RGB", (64, 64)).save(photo_folder / "photos" / name)
        return open_sources(*args)

    monkeypatch.setattr(shared_images, "open_sources", change_late)
    args = (photo_folder / "photos.split.json", "--arch", "vgg16_mini", *COMMON, "-o", photo_folder / "new.safetensors")
    result = run("vgg", "head", *args, *more)
    assert (result.exit_code, result.stdout) == (1, "")
    last = result.stderr.splitlines()[-1]
    assert last == f"dlcv: {photo_folder / 'photos' / name}: changed while it was in use; make a new split"
    assert not (photo_folder / "new.safetensors").exists()
    assert sum(count_sound_entries(cache_folder)) < BOTH


def test_clear_during_training(run: Run, train: Train, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training keeps the cache that it has opened, even if `cache clear` deletes it."""
    first, training = train("head"), vgg.Training

    def change_late(*args: Any) -> Any:
        assert run("cache", "clear").exit_code == 0
        assert count_sound_entries(cache_folder) == []
        return training(*args)

    monkeypatch.setattr(vgg, "Training", change_late)
    actual = train("head")
    assert (actual.features["computed"], actual.warnings, actual.data) == (0, [], first.data)
