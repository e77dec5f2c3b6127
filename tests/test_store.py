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
from conftest import Run, metrics_of

from dlcv_cli.errors import FileError
from dlcv_cli.files import feature_cache as stores
from dlcv_cli.files.feature_cache import FeatureCache
from dlcv_cli.files.locks import hold_lock

SHAPE = (2, 3)
SIZE = 24
ABOUT = {"arch": "vgg16", "before": "classifier.2", "precision": "float32", "image_size": 224}


def key(number: int) -> bytes:
    """The key of a record."""
    return bytes([number]) * 32


def rows(*numbers: int) -> Any:
    """Records, each of its own content."""
    return np.stack([np.arange(6, dtype=np.float32).reshape(SHAPE) + 10 * n for n in numbers])


def begun(folder: Path) -> FeatureCache:
    """An empty store."""
    store = FeatureCache(folder)
    store.begin(SHAPE, "float32", ABOUT)
    return store


def filled(folder: Path, *numbers: int) -> FeatureCache:
    """A store with those records."""
    store = begun(folder)
    with store.appending() as append:
        append([key(n) for n in numbers], rows(*numbers))
    return store


def check(folder: Path, *numbers: int) -> FeatureCache:
    """Asserts that a store opens and has exactly these records, in this order, all sound, with nothing behind them."""
    store = FeatureCache(folder)
    assert store.open() is bool((folder / "store.json").exists())
    assert store.slots == {key(n): slot for slot, n in enumerate(numbers)}
    if numbers:
        np.testing.assert_array_equal(store.rows(), rows(*numbers))
    assert all(store.is_sound(store.rows(), slot) for slot in range(len(numbers)))
    return store


# ----------------------------------------------------------------------------------------------------------- records


def test_append_and_reopen(tmp_path: Path) -> None:
    """What is appended, at once or later, is there when the store is opened again, by key, bit by bit."""
    folder = tmp_path / "store"
    assert not FeatureCache(folder).open()
    filled(folder, 1, 2)
    store = check(folder, 1, 2)
    assert (store.shape, store.dtype, store.metadata["before"]) == (SHAPE, np.dtype("<f4"), "classifier.2")
    with store.appending() as append:
        append([key(3)], rows(3))
        append([key(4), key(5)], rows(4, 5))
    assert store.slots[key(5)] == 4
    check(folder, 1, 2, 3, 4, 5)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert (sizes["records.bin"], sizes["index.bin"]) == (5 * SIZE, 5 * 64)


def test_bfloat16_is_kept_as_its_bits(tmp_path: Path) -> None:
    """Records of bfloat16 are two bytes a number, little endian."""
    store = FeatureCache(tmp_path / "store")
    store.begin((4,), "bfloat16", {})
    bits = np.array([[0, 1, -1, 0x7FC0]], np.int16)
    with store.appending() as append:
        append([key(1)], bits)
    assert (tmp_path / "store" / "records.bin").read_bytes() == bytes.fromhex("00000100ffffc07f")
    again = FeatureCache(tmp_path / "store")
    assert again.open()
    np.testing.assert_array_equal(again.rows(), bits)


@pytest.mark.parametrize("left", [1, 31, 32, 63])
def test_torn_index_entry_is_a_missing_record(tmp_path: Path, left: int) -> None:
    """An index that ends within an entry has the records before it, and can be gone on with."""
    folder = tmp_path / "store"
    filled(folder, 1, 2, 3)
    os.truncate(folder / "index.bin", 64 + left)
    write(check(folder, 1), 4)
    check(folder, 1, 4)
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
    """A records file that is too short, or a description that is none, is an error that names the file."""
    folder = tmp_path / "store"
    filled(folder, 1, 2, 3)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(FileError, match=rf"^{re.escape(str(folder / name))}: .*{re.escape(words)}"):
        FeatureCache(folder).open()


@pytest.mark.parametrize(("place", "damaged"), [(0, 0), (SIZE - 1, 0), (SIZE, 1), (3 * SIZE - 1, 2)])
def test_a_flipped_bit_is_found(tmp_path: Path, place: int, damaged: int) -> None:
    """One bit that is another is found in its record, and in no other."""
    folder = tmp_path / "store"
    filled(folder, 1, 2, 3)
    data = bytearray((folder / "records.bin").read_bytes())
    data[place] ^= 1
    (folder / "records.bin").write_bytes(data)
    store = FeatureCache(folder)
    assert store.open()
    assert [store.is_sound(store.rows(), slot) for slot in range(3)] == [slot != damaged for slot in range(3)]


def write(store: FeatureCache, *numbers: int, error: BaseException | None = None) -> None:
    """Appends records one by one; then the block ends, by the error if there is one."""
    with store.appending() as append:
        for number in numbers:
            append([key(number)], rows(number))
        if error:
            raise error


@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt(), OSError()], ids=repr)
def test_an_end_in_the_middle_keeps_what_is_complete(tmp_path: Path, error: BaseException) -> None:
    """Whatever ends the writing, the records appended before stay, and it can be gone on."""
    store = filled(tmp_path / "store", 1)
    with pytest.raises(type(error)):
        write(store, 2, 3, error=error)
    assert [*store.slots] == [key(1), key(2), key(3)]
    write(check(tmp_path / "store", 1, 2, 3), 4)
    check(tmp_path / "store", 1, 2, 3, 4)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_ctrl_c_while_it_waits_for_the_disk(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption while records or their index entries reach the disk, in the first or a later commit."""
    store, calls, fsync = begun(tmp_path / "store"), iter(range(1, 99)), os.fsync

    def interrupted(handle: int) -> None:
        fsync(handle)
        if next(calls) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(stores, "COMMIT_SECONDS", -1.0)
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(store, 1, 2)
    monkeypatch.undo()
    there = (1,) if number < 3 else (1, 2)
    write(check(tmp_path / "store", *there), 3)
    check(tmp_path / "store", *there, 3)


@pytest.mark.parametrize("at", ["records.bin", "index.bin"])
def test_a_full_disk_in_the_middle(tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk takes no more, the error comes out, and what was complete before stays, all sound."""
    store, flush = filled(tmp_path / "store", 1), stores._flush
    place = (tmp_path / "store" / at).stat()

    def full(file: Any) -> None:
        if os.path.samestat(os.fstat(file.fileno()), place):
            raise OSError(errno.ENOSPC, "no space")
        flush(file)

    monkeypatch.setattr(stores, "_flush", full)
    with pytest.raises(OSError, match="no space"):
        write(store, 2)
    monkeypatch.undo()
    check(tmp_path / "store", 1, *((2,) if at == "index.bin" else ()))


# ------------------------------------------------------------------------------------------------------- processes

WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from dlcv_cli.files import feature_cache as stores
folder, number = Path(sys.argv[1]), int(sys.argv[2])
flush, done = stores._flush, []
def killed(file):
    done.append(file)
    if len(done) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(file)
stores._flush, stores.COMMIT_SECONDS = killed, -1.0
store = stores.FeatureCache(folder)
store.open()
with store.appending() as append:
    for n in (2, 3, 4):
        append([bytes([n]) * 32], np.arange(6, dtype=np.float32).reshape(1, 2, 3) + 10 * n)
"""
HOLDER = """
import sys, time
from pathlib import Path
from dlcv_cli.files import feature_cache as stores
from dlcv_cli.files.locks import hold_lock
with hold_lock(stores.lock_path(Path(sys.argv[1])), None) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""
# kills itself when the second group of images is computed, the first being on the disk
KILLED_HEAD = """
import os, signal
from dlcv_cli.__main__ import main
from dlcv_cli.files import feature_cache as store
from dlcv_cli.vision import batches
store.COMMIT_SECONDS = -1.0
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
def python(*args: object, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A process of this Python, killed when the block ends."""
    with subprocess.Popen([sys.executable, *map(str, args)], text=True, **more) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "complete"), [(2, (1,)), (3, (1, 2)), (4, (1, 2)), (6, (1, 2, 3))])
def test_killed_at_any_moment(tmp_path: Path, number: int, complete: tuple[int, ...]) -> None:
    """SIGKILL between any two writes to the disk leaves the records whose index entries are there, all sound."""
    filled(tmp_path / "store", 1)
    with python("-c", WRITER, tmp_path / "store", number) as process:
        assert process.wait(60) == -signal.SIGKILL
    write(check(tmp_path / "store", *complete), 9)
    check(tmp_path / "store", *complete, 9)


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    """A second process does not get what another holds, and gets it when the holder is killed, whatever it did."""
    folder = tmp_path / "cache" / "store"
    message: list[str] = []
    with python("-c", HOLDER, folder, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with hold_lock(stores.lock_path(folder), None) as mine:
            assert not mine

        def waiting() -> None:
            message.append("waiting")
            threading.Timer(0.3, holder.kill).start()

        begin = time.monotonic()
        with hold_lock(stores.lock_path(folder), waiting) as mine:
            assert mine
            assert time.monotonic() - begin >= 0.25
            with hold_lock(stores.lock_path(folder), None) as second:
                assert not second, "it holds in one process too"
    assert message == ["waiting"], "told once"
    with hold_lock(stores.lock_path(folder), None) as mine:
        assert mine


def test_a_lock_dropped_with_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that opens the lock of a cache that is just then dropped does not share the lock with a third one."""
    folder, flock, third = tmp_path / "store", fcntl.flock, contextlib.ExitStack()

    def too_late(handle: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        folder.with_suffix(".lock").unlink()
        assert third.enter_context(hold_lock(stores.lock_path(folder), None))
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with third, hold_lock(stores.lock_path(folder), None) as mine:
        assert not mine
    with hold_lock(stores.lock_path(folder), None) as mine:
        assert mine


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Where the file system has no locks, work goes on without them, and leaves no lock that outlives a process."""

    def unsupported(handle: int, operation: int) -> None:
        raise OSError(number, "not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    for _ in range(2):
        with hold_lock(tmp_path / "lock", None) as mine, hold_lock(tmp_path / "lock", None) as second:
            assert mine
            assert second


def only_store(cache: Path) -> FeatureCache:
    """The one store of a cache folder, opened, all of its records sound."""
    [listing] = stores.list_feature_caches(cache)
    assert listing.problem is None
    assert all(listing.features.is_sound(listing.features.rows(), slot) for slot in range(listing.entries))
    return listing.features


def test_a_killed_run_is_gone_on_with(run: Run, split_file: Path, tmp_path: Path, cache_folder: Path) -> None:
    """After SIGKILL among the frozen layers, the next run computes the other images only, and ends the same."""
    whole, output = tmp_path / "whole.safetensors", tmp_path / "head.safetensors"
    args = ("vgg", "head", split_file, *SETTINGS, "-o")
    with python("-c", KILLED_HEAD, *args, output, stderr=subprocess.DEVNULL) as process:
        assert process.wait(120) == -signal.SIGKILL
    assert not output.exists()
    assert len(only_store(cache_folder).digests) == 16
    assert run(*args, whole, "--cache", tmp_path / "other").exit_code == 0
    result = run(*args, output)
    assert result.exit_code == 0, result.stderr
    assert ": 16 of 28 images are cached" in result.stderr
    assert metrics_of(output)["run"]["features"]["computed"] == 12
    assert len(only_store(cache_folder).digests) == 28
    assert output.read_bytes() == whole.read_bytes()


def test_two_runs_at_once(run: Run, split_file: Path, tmp_path: Path, cache_folder: Path) -> None:
    """Two that need the same store both wait for it, one fills it, and both end with the same checkpoint."""
    outputs = [tmp_path / f"{name}.safetensors" for name in ("one", "other", "before")]
    args = ("vgg", "head", split_file, *SETTINGS, "-o")
    assert run(*args, outputs[2], "--cache", tmp_path / "other").exit_code == 0
    folder = cache_folder / stores.FOLDER / only_store(tmp_path / "other").folder.name
    with contextlib.ExitStack() as stack:
        with hold_lock(stores.lock_path(folder), None) as mine:
            assert mine
            started = []
            for output in outputs[:2]:
                printed = output.with_suffix(".txt")
                text = stack.enter_context(printed.open("w"))
                command = python("-m", "dlcv_cli", *args, output, stderr=text, stdout=subprocess.DEVNULL)
                started.append((stack.enter_context(command), printed))
            deadline = time.monotonic() + 60
            while not all("waiting for another dlcv that is filling" in printed.read_text() for _, printed in started):
                assert [process.poll() for process, _ in started] == [None, None]
                assert time.monotonic() < deadline, "neither says that it waits"
                time.sleep(0.05)
        assert [process.wait(60) for process, _ in started] == [0, 0]
    assert len({output.read_bytes() for output in outputs}) == 1
    assert sorted(metrics_of(output)["run"]["features"]["computed"] for output in outputs[:2]) == [0, 28]
    assert len(only_store(cache_folder).digests) == 28


def test_an_entry_that_names_another_image(tmp_path: Path) -> None:
    """A record is believed of the image it was made of alone, in the shape it was made in."""
    store = FeatureCache(tmp_path / "store")
    store.begin((2, 3), "float32", {})
    with store.appending() as append:
        append([bytes([n]) * 32 for n in (1, 2)], np.arange(12, dtype=np.float32).reshape(2, 2, 3))
    index, about = store.folder / "index.bin", store.folder / "store.json"
    for path, old, new in ((index, bytes([1]) * 32, bytes([2]) * 32), (about, b" 2,\n  3\n", b" 3,\n  2\n")):
        whole = path.read_bytes()
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        again = FeatureCache(store.folder)
        assert again.open()
        assert not again.is_sound(again.rows(), 0)
        path.write_bytes(whole)
    again = FeatureCache(store.folder)
    assert again.open()
    assert again.is_sound(again.rows(), 0)
