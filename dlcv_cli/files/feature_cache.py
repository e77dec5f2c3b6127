"""`activations/KEY/` in the cache folder: what frozen layers make of images, one record each, found by content.

Three files: `store.json` (schema dlcv.activations/1), `records.bin` (records of one size, one after the other) and
`index.bin` (64 bytes a record, in the same order: the key of the image, a sha256 of key and record). An entry of the
index is written when its record is on the disk, so a process that is killed leaves only complete records behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.errors import DlcvError, FileError
from dlcv_cli.files.disk import JSON, read_json, write_json
from dlcv_cli.files.locks import hold_lock

SCHEMA = "dlcv.activations/1"
FOLDER = "activations"
KERNELS = "kernels"  # beside it: compiled code, which numba writes
CODE, CODE_LIST, CODE_LOCK = (".nbi", ".nbc"), "kernels.json", "kernels.lock"
TYPES: dict[Any, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype("<i2"),
}  # numpy has no bfloat16: its bits
COMMIT_SECONDS = 5.0
FILES = ABOUT, RECORDS, INDEX = "store.json", "records.bin", "index.bin"
ENTRY = 64


def default_folder() -> Path:
    """The user's cache folder for dlcv, by the platform's convention."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "dlcv" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "dlcv"
    # a relative path there is to be ignored (XDG Base Directory Specification)
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "dlcv"


def place(cache: Path, key: bytes) -> Path:
    """The folder of the store with that key."""
    return cache / FOLDER / key.hex()[:40]


def lock_of(folder: Path) -> Path:
    """The lock of the store in that folder."""
    return folder.with_suffix(".lock")


class Store:
    """A store on disk. Read without a lock; written, checked and dropped under one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name[:12]
        self.forget()

    def forget(self) -> None:
        """As if nothing were there."""
        self.slots: dict[bytes, int] = {}  # key -> number of the record
        self.keys: list[bytes] = []  # of each record
        self.digests: list[bytes] = []  # likewise

    def open(self) -> bool:
        """Reads what is there; False when nothing is.

        Raises:
            FileError: it is damaged; names the file.
        """
        if not (self.folder / ABOUT).exists():
            return False
        self._read_about()
        records, index = self.folder / RECORDS, self.folder / INDEX
        entries = index.read_bytes() if index.exists() else b""
        count = len(entries) // ENTRY  # a torn last entry is none
        there = records.stat().st_size if records.exists() else 0
        if there < count * self.size:
            raise FileError(records, f"damaged: holds {there:,} of {count * self.size:,} bytes")
        cut = [entries[i * ENTRY : (i + 1) * ENTRY] for i in range(count)]
        self.slots = {entry[:32]: slot for slot, entry in enumerate(cut)}
        self.keys, self.digests = [entry[:32] for entry in cut], [entry[32:] for entry in cut]
        return True

    def _read_about(self) -> None:
        about = read_json(self.folder / ABOUT, SCHEMA)
        shape, dtype = about.get("shape"), about.get("dtype")
        if not isinstance(shape, list) or not all(type(n) is int and 1 <= n <= 2**24 for n in shape):
            raise FileError(self.folder / ABOUT, "damaged: shape")
        if not isinstance(dtype, str) or dtype not in TYPES:
            raise FileError(self.folder / ABOUT, "damaged: dtype")
        self.about, self.shape, self.dtype = about, tuple(shape), TYPES[dtype]
        self.size = math.prod(shape) * self.dtype.itemsize

    def begin(self, shape: Sequence[int], dtype: str, about: JSON) -> None:
        """Makes an empty store of records of that shape and dtype (`float32` or `bfloat16`)."""
        write_json(self.folder / ABOUT, {"schema": SCHEMA, "shape": list(shape), "dtype": dtype, **about})
        self._read_about()

    def use(self) -> None:
        """Notes that it is in use now, for `cache prune`."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / ABOUT)

    def rows(self) -> NDArray[Any]:
        """(records, *shape), mapped from the disk."""
        if not self.digests:
            return np.empty(0, np.float32)
        return np.memmap(self.folder / RECORDS, self.dtype, "r", shape=(len(self.digests), *self.shape))

    def sound(self, rows: NDArray[Any], slot: int) -> bool:
        """Whether a record is what was written."""
        return self._digest(self.keys[slot], rows[slot]) == self.digests[slot]

    def _digest(self, key: bytes, row: NDArray[Any]) -> bytes:
        """Of a record: what it is, of which image, and its bytes."""
        digest = hashlib.sha256(f"{self.dtype.str}{self.shape}".encode() + key)
        digest.update(np.ascontiguousarray(row).data)
        return digest.digest()

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[Iterable[bytes], NDArray[Any]], None]]:
        """Gives a function that appends records: (keys, rows). Whatever ends the block, complete records stay."""
        pending: list[tuple[bytes, bytes]] = []
        committed = time.monotonic()
        with _at(self.folder / RECORDS, len(self.digests) * self.size) as records, _at(
            self.folder / INDEX, len(self.digests) * ENTRY
        ) as index:  # fmt: skip

            def commit() -> None:
                nonlocal committed
                _flush(records)
                index.seek(len(self.digests) * ENTRY)  # over what a commit that was interrupted has written
                index.write(b"".join(key + digest for key, digest in pending))
                _flush(index)
                self.slots.update((key, slot) for slot, (key, _) in enumerate(pending, len(self.digests)))
                self.keys += [key for key, _ in pending]
                self.digests += [digest for _, digest in pending]
                pending.clear()
                committed = time.monotonic()

            def append(keys: Iterable[bytes], rows: NDArray[Any]) -> None:
                for key, row in zip(keys, rows, strict=True):
                    records.write(row)
                    pending.append((key, self._digest(key, row)))
                if time.monotonic() - committed > COMMIT_SECONDS:
                    commit()

            try:
                yield append
                commit()
            except BaseException:
                with contextlib.suppress(OSError):
                    commit()
                raise

    def drop(self) -> None:
        """Deletes its files, and nothing else. Whoever has them open keeps them until it ends."""
        for name in (INDEX, RECORDS, ABOUT):  # killed in between, it leaves an empty store, not files nobody sees
            (self.folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something there is not ours
            self.folder.rmdir()
        self.forget()


@contextlib.contextmanager
def _at(path: Path, position: int) -> Iterator[BinaryIO]:
    """A file opened to write on at that position; what lies behind it is cut off."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(handle, "r+b") as file:
        file.truncate(position)
        file.seek(position)
        yield file


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@dataclass(frozen=True)
class Entry:
    """A store as `cache list` shows it."""

    store: Store
    about: JSON
    records: int
    size: int  # bytes on disk
    used: float  # seconds since 1970
    problem: str | None = None


def entries(cache: Path) -> list[Entry]:
    """Every store of a cache folder, the one used last first; damaged ones say so."""
    found = []
    for folder in (cache / FOLDER).iterdir() if (cache / FOLDER).is_dir() else ():
        if not (folder / ABOUT).is_file():
            continue
        store, problem = Store(folder), None
        try:
            store.open()
            about = store.about
        except DlcvError as error:
            about, problem = {}, str(error)
        size = sum((folder / name).stat().st_size for name in FILES if (folder / name).exists())
        found.append(Entry(store, about, len(store.digests), size, (folder / ABOUT).stat().st_mtime, problem))
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def clear_kernels(cache: Path) -> None:
    """Deletes compiled code."""
    for folder in [*(cache / KERNELS).glob("*")]:
        drop_code(folder)
        with contextlib.suppress(OSError):  # open, on Windows; or something there is not ours
            (folder / CODE_LOCK).unlink(missing_ok=True)
            folder.rmdir()


def drop_code(folder: Path) -> None:
    """Deletes the compiled code in a folder, its list first, and nothing else."""
    (folder / CODE_LIST).unlink(missing_ok=True)
    for path in sorted(folder.rglob("*"), reverse=True):  # files before their folders
        if path.suffix in CODE:
            path.unlink(missing_ok=True)
        elif path.is_dir():
            with contextlib.suppress(OSError):  # something there is not ours
                path.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()


def prune(cache: Path, limit: int) -> tuple[list[Entry], list[Entry]]:
    """Drops stores, those used longest ago first, until the rest has `limit` bytes at most.

    Returns:
        What was dropped, and what should have been but is being filled by another process.
    """
    found = entries(cache)
    total, dropped, busy = sum(entry.size for entry in found), [], []
    for entry in reversed(found):
        if total <= limit:
            break
        if _drop(entry.store):
            total -= entry.size
            dropped.append(entry)
        else:
            busy.append(entry)
    return dropped, busy


def _drop(store: Store) -> bool:
    """Deletes a store; False when another process is filling it."""
    with hold_lock(lock_of(store.folder), None) as mine:
        if mine:
            store.drop()
            with contextlib.suppress(PermissionError):  # Windows, where it is open
                lock_of(store.folder).unlink(missing_ok=True)
        return mine
