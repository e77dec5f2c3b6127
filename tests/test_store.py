"""What is kept on disk between runs: whole records whatever happens, one process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, read_metrics

from dlcv_cli.errors import FileError
from dlcv_cli.files import feature_cache
from dlcv_cli.files.feature_cache import FeatureCache
from dlcv_cli.files.locks import hold_lock

SHAPE = (2, 3)
SIZE = 24
ABOUT = {"arch": "vgg16", "before": "classifier.2", "precision": "float32", "image_size": 224}


def make_key(number: int) -> bytes:
    """Return the key of an entry."""
    return bytes([number]) * 32


def make_rows(*numbers: int) -> Any:
    """Return entries with different content."""
    return np.stack([np.arange(6, dtype=np.float32).reshape(SHAPE) + 10 * n for n in numbers])


def create_cache(folder: Path) -> FeatureCache:
    """Return an empty feature cache."""
    cache = FeatureCache(folder)
    cache.create(SHAPE, "float32", ABOUT)
    return cache


def fill_cache(folder: Path, *numbers: int) -> FeatureCache:
    """Return a feature cache with these entries."""
    cache = create_cache(folder)
    with cache.open_for_appending() as append:
        append([make_key(n) for n in numbers], make_rows(*numbers))
    return cache


def check_entries(folder: Path, *numbers: int) -> FeatureCache:
    """Assert that a feature cache opens and has exactly these entries in this order, all sound. Return it."""
    cache = FeatureCache(folder)
    assert cache.open() is bool((folder / "store.json").exists())
    assert cache.slots == {make_key(n): slot for slot, n in enumerate(numbers)}
    if numbers:
        np.testing.assert_array_equal(cache.map_rows(), make_rows(*numbers))
    assert all(cache.is_sound(cache.map_rows(), slot) for slot in range(len(numbers)))
    return cache


# ----------------------------------------------------------------------------------------------------------- records


def test_entries_are_read_as_appended(tmp_path: Path) -> None:
    """Appended entries are read by key, bit by bit, after the cache is opened again."""
    folder = tmp_path / "store"
    assert not FeatureCache(folder).open()
    fill_cache(folder, 1, 2)
    cache = check_entries(folder, 1, 2)
    assert (cache.shape, cache.dtype, cache.metadata["before"]) == (SHAPE, np.dtype("<f4"), "classifier.2")
    with cache.open_for_appending() as append:
        append([make_key(3)], make_rows(3))
        append([make_key(4), make_key(5)], make_rows(4, 5))
    assert cache.slots[make_key(5)] == 4
    check_entries(folder, 1, 2, 3, 4, 5)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert (sizes["records.bin"], sizes["index.bin"]) == (5 * SIZE, 5 * 64)


def test_bfloat16_entries(tmp_path: Path) -> None:
    """Entries in bfloat16 take two bytes per number, little-endian."""
    cache = FeatureCache(tmp_path / "store")
    cache.create((4,), "bfloat16", {})
    bits = np.array([[0, 1, -1, 0x7FC0]], np.int16)
    with cache.open_for_appending() as append:
        append([make_key(1)], bits)
    assert (tmp_path / "store" / "records.bin").read_bytes() == bytes.fromhex("00000100ffffc07f")
    again = FeatureCache(tmp_path / "store")
    assert again.open()
    np.testing.assert_array_equal(again.map_rows(), bits)


@pytest.mark.parametrize("left", [1, 31, 32, 63])
def test_incomplete_index_line_is_ignored(tmp_path: Path, left: int) -> None:
    """An index that ends within a line has the entries before it, and can be appended to."""
    folder = tmp_path / "store"
    fill_cache(folder, 1, 2, 3)
    os.truncate(folder / "index.bin", 64 + left)
    write(check_entries(folder, 1), 4)
    check_entries(folder, 1, 4)
    assert (folder / "records.bin").stat().st_size == 2 * SIZE, "what was behind is gone"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("records.bin", bytes(3 * SIZE - 1), "holds 71 of 72 bytes"),
        ("records.bin", None, "holds 0 of 72 bytes"),
        ("store.json", b"", "is empty"),
        ("store.json", b"\xff\x00garbage", "not JSON"),
        ("store.json", b'{"schema": "dlcv.activations/9"}', "dlcv.activations/9"),
        ("store.json", b'{"schema": "dlcv.activations/1", "shape": [0], "dtype": "float32"}', "shape"),
        ("store.json", b'{"schema": "dlcv.activations/1", "shape": "2", "dtype": "float32"}', "shape"),
        ("store.json", b'{"schema": "dlcv.activations/1", "shape": [2, 3], "dtype": "float64"}', "dtype"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    """A short entries file or invalid metadata is an error that names the file."""
    folder = tmp_path / "store"
    fill_cache(folder, 1, 2, 3)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(FileError, match=rf"^{re.escape(str(folder / name))}: .*{re.escape(words)}"):
        FeatureCache(folder).open()


@pytest.mark.parametrize(("place", "damaged"), [(0, 0), (SIZE - 1, 0), (SIZE, 1), (3 * SIZE - 1, 2)])
def test_flipped_bit_is_detected(tmp_path: Path, place: int, damaged: int) -> None:
    """A flipped bit is detected in its entry and in no other."""
    folder = tmp_path / "store"
    fill_cache(folder, 1, 2, 3)
    data = bytearray((folder / "records.bin").read_bytes())
    data[place] ^= 1
    (folder / "records.bin").write_bytes(data)
    cache = FeatureCache(folder)
    assert cache.open()
    assert [cache.is_sound(cache.map_rows(), slot) for slot in range(3)] == [slot != damaged for slot in range(3)]


def write(cache: FeatureCache, *numbers: int, error: BaseException | None = None) -> None:
    """Append entries one by one, then end the block, with the error if there is one."""
    with cache.open_for_appending() as append:
        for number in numbers:
            append([make_key(number)], make_rows(number))
        if error:
            raise error


@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt(), OSError()], ids=repr)
def test_errors_keep_complete_entries(tmp_path: Path, error: BaseException) -> None:
    """After any error while appending, the complete entries remain and more can be appended."""
    cache = fill_cache(tmp_path / "store", 1)
    with pytest.raises(type(error)):
        write(cache, 2, 3, error=error)
    assert [*cache.slots] == [make_key(1), make_key(2), make_key(3)]
    write(check_entries(tmp_path / "store", 1, 2, 3), 4)
    check_entries(tmp_path / "store", 1, 2, 3, 4)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_interruption_during_a_commit(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption while entries or index lines are flushed, in the first or a later commit, keeps the rest."""
    cache, calls, fsync = create_cache(tmp_path / "store"), iter(range(1, 99)), os.fsync

    def interrupted(handle: int) -> None:
        fsync(handle)
        if next(calls) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(feature_cache, "COMMIT_SECONDS", -1.0)
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(cache, 1, 2)
    monkeypatch.undo()
    there = (1,) if number < 3 else (1, 2)
    write(check_entries(tmp_path / "store", *there), 3)
    check_entries(tmp_path / "store", *there, 3)


@pytest.mark.parametrize("at", ["records.bin", "index.bin"])
def test_full_disk_keeps_complete_entries(tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk fills up, the error is raised, and the complete entries stay sound."""
    cache, flush = fill_cache(tmp_path / "store", 1), feature_cache._flush
    place = (tmp_path / "store" / at).stat()

    def full(file: Any) -> None:
        if os.path.samestat(os.fstat(file.fileno()), place):
            raise OSError(errno.ENOSPC, "no space")
        flush(file)

    monkeypatch.setattr(feature_cache, "_flush", full)
    with pytest.raises(OSError, match="no space"):
        write(cache, 2)
    monkeypatch.undo()
    check_entries(tmp_path / "store", 1, *((2,) if at == "index.bin" else ()))


# ------------------------------------------------------------------------------------------------------- processes

WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from dlcv_cli.files import feature_cache
folder, number = Path(sys.argv[1]), int(sys.argv[2])
flush, done = feature_cache._flush, []
def killed(file):
    done.append(file)
    if len(done) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(file)
feature_cache._flush, feature_cache.COMMIT_SECONDS = killed, -1.0
cache = feature_cache.FeatureCache(folder)
cache.open()
with cache.open_for_appending() as append:
    for n in (2, 3, 4):
        append([bytes([n]) * 32], np.arange(6, dtype=np.float32).reshape(1, 2, 3) + 10 * n)
"""
HOLDER = """
import sys, time
from pathlib import Path
from dlcv_cli.files import feature_cache
from dlcv_cli.files.locks import hold_lock
with hold_lock(feature_cache.locate_lock(Path(sys.argv[1])), None) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""
# kills itself when the second group of images is computed, the first being on the disk
KILLED_HEAD = """
import os, signal
from dlcv_cli.__main__ import main
from dlcv_cli.files import feature_cache
from dlcv_cli.vision import batches
feature_cache.COMMIT_SECONDS = -1.0
to_rows, calls = batches.to_rows, []
def killed(x):
    calls.append(x)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return to_rows(x)
batches.to_rows = killed
main()
"""
SETTINGS = ("--arch", "vgg16_mini", "--epochs", 2, "--threads", 1, "--precision", "float32")


@contextlib.contextmanager
def start_python(*args: object, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """Yield a process of this Python, which is killed when the block ends."""
    with subprocess.Popen([sys.executable, *map(str, args)], text=True, **more) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "complete"), [(2, (1,)), (3, (1, 2)), (4, (1, 2)), (6, (1, 2, 3))])
def test_kill_keeps_complete_entries(tmp_path: Path, number: int, complete: tuple[int, ...]) -> None:
    """SIGKILL between any two writes leaves the entries that have index lines, all sound."""
    fill_cache(tmp_path / "store", 1)
    with start_python("-c", WRITER, tmp_path / "store", number) as process:
        assert process.wait(60) == -signal.SIGKILL
    write(check_entries(tmp_path / "store", *complete), 9)
    check_entries(tmp_path / "store", *complete, 9)


def test_lock_has_one_holder(tmp_path: Path) -> None:
    """A second process gets a lock only after its holder is killed."""
    folder = tmp_path / "cache" / "store"
    message: list[str] = []
    with start_python("-c", HOLDER, folder, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with hold_lock(feature_cache.locate_lock(folder), None) as acquired:
            assert not acquired

        def waiting() -> None:
            message.append("waiting")
            threading.Timer(0.3, holder.kill).start()

        begin = time.monotonic()
        with hold_lock(feature_cache.locate_lock(folder), waiting) as acquired:
            assert acquired
            assert time.monotonic() - begin >= 0.25
            with hold_lock(feature_cache.locate_lock(folder), None) as second:
                assert not second, "it holds in one process too"
    assert message == ["waiting"], "told once"
    with hold_lock(feature_cache.locate_lock(folder), None) as acquired:
        assert acquired


def test_lock_of_a_dropped_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that opens the lock of a cache that is dropped does not share it with a third one."""
    folder, flock, third = tmp_path / "store", fcntl.flock, contextlib.ExitStack()

    def too_late(handle: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        folder.with_suffix(".lock").unlink()
        assert third.enter_context(hold_lock(feature_cache.locate_lock(folder), None))
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with third, hold_lock(feature_cache.locate_lock(folder), None) as acquired:
        assert not acquired
    with hold_lock(feature_cache.locate_lock(folder), None) as acquired:
        assert acquired


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """On a file system without locks, work continues without them and leaves no lock behind."""

    def unsupported(handle: int, operation: int) -> None:
        raise OSError(number, "not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    for _ in range(2):
        with hold_lock(tmp_path / "lock", None) as acquired, hold_lock(tmp_path / "lock", None) as second:
            assert acquired
            assert second


def open_only_cache(cache: Path) -> FeatureCache:
    """Return the only feature cache of a cache folder, opened, and assert that all its entries are sound."""
    [listing] = feature_cache.list_feature_caches(cache)
    assert listing.problem is None
    assert all(listing.cache.is_sound(listing.cache.map_rows(), slot) for slot in range(listing.entries))
    return listing.cache


def test_killed_run_is_continued(run: Run, split_file: Path, tmp_path: Path, cache_folder: Path) -> None:
    """After SIGKILL during extraction, the next run computes the missing images only, and ends the same."""
    whole, output = tmp_path / "whole.safetensors", tmp_path / "head.safetensors"
    args = ("vgg", "head", split_file, *SETTINGS, "-o")
    with start_python("-c", KILLED_HEAD, *args, output, stderr=subprocess.DEVNULL) as process:
        assert process.wait(120) == -signal.SIGKILL
    assert not output.exists()
    assert len(open_only_cache(cache_folder).digests) == 16
    assert run(*args, whole, "--cache", tmp_path / "other").exit_code == 0
    result = run(*args, output)
    assert result.exit_code == 0, result.stderr
    assert ": 16 of 28 images are cached" in result.stderr
    assert read_metrics(output)["run"]["features"]["computed"] == 12
    assert len(open_only_cache(cache_folder).digests) == 28
    assert output.read_bytes() == whole.read_bytes()


def test_two_runs_at_once(run: Run, split_file: Path, tmp_path: Path, cache_folder: Path) -> None:
    """Of two runs that need the same cache one fills it, the other waits, and both write the same checkpoint."""
    outputs = [tmp_path / f"{name}.safetensors" for name in ("one", "other", "before")]
    args = ("vgg", "head", split_file, *SETTINGS, "-o")
    assert run(*args, outputs[2], "--cache", tmp_path / "other").exit_code == 0
    folder = cache_folder / feature_cache.FOLDER / open_only_cache(tmp_path / "other").folder.name
    with contextlib.ExitStack() as stack:
        with hold_lock(feature_cache.locate_lock(folder), None) as acquired:
            assert acquired
            started = []
            for output in outputs[:2]:
                printed = output.with_suffix(".txt")
                text = stack.enter_context(printed.open("w"))
                command = start_python("-m", "dlcv_cli", *args, output, stderr=text, stdout=subprocess.DEVNULL)
                started.append((stack.enter_context(command), printed))
            deadline = time.monotonic() + 60
            while not all("waiting for another dlcv that is filling" in printed.read_text() for _, printed in started):
                assert [process.poll() for process, _ in started] == [None, None]
                assert time.monotonic() < deadline, "neither says that it waits"
                time.sleep(0.05)
        assert [process.wait(60) for process, _ in started] == [0, 0]
    assert len({output.read_bytes() for output in outputs}) == 1
    assert sorted(read_metrics(output)["run"]["features"]["computed"] for output in outputs[:2]) == [0, 28]
    assert len(open_only_cache(cache_folder).digests) == 28


def test_entry_of_another_image_is_detected(tmp_path: Path) -> None:
    """An entry is sound only for the image and shape that it was written for."""
    cache = FeatureCache(tmp_path / "store")
    cache.create((2, 3), "float32", {})
    with cache.open_for_appending() as append:
        append([bytes([n]) * 32 for n in (1, 2)], np.arange(12, dtype=np.float32).reshape(2, 2, 3))
    index, about = cache.folder / "index.bin", cache.folder / "store.json"
    for path, old, new in ((index, bytes([1]) * 32, bytes([2]) * 32), (about, b" 2,\n  3\n", b" 3,\n  2\n")):
        whole = path.read_bytes()
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        again = FeatureCache(cache.folder)
        assert again.open()
        assert not again.is_sound(again.map_rows(), 0)
        path.write_bytes(whole)
    again = FeatureCache(cache.folder)
    assert again.open()
    assert again.is_sound(again.map_rows(), 0)
