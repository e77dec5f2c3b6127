"""The feature cache, `activations/KEY/` in the cache folder: the features of images, one entry each, keyed by content.

Three files: `store.json` (schema dlcv.activations/1), `records.bin` (entries of one size, end to end) and `index.bin`
(64 bytes an entry, in the same order: the image's key, and a sha256 of key and features). An index line is written
once its entry is on disk, so a killed process leaves only complete entries behind. (The files keep the names of
schema dlcv.activations/1, so that caches filled by earlier versions stay valid.)
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
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
# numpy has no bfloat16: its bits are stored as integers
TYPES: dict[Any, np.dtype[Any]] = {"float32": np.dtype("<f4"), "bfloat16": np.dtype("<i2")}
COMMIT_SECONDS = 5.0
FILES = METADATA, ENTRIES, INDEX = "store.json", "records.bin", "index.bin"
INDEX_BYTES = 64


def default_folder() -> Path:
    """Return the user's cache folder for dlcv, by the platform's convention."""
    import platformdirs

    return platformdirs.user_cache_path("dlcv", appauthor=False)


def folder_for(cache: Path, key: bytes) -> Path:
    """Return the folder of the feature cache with that key."""
    return cache / FOLDER / key.hex()[:40]


def lock_path(folder: Path) -> Path:
    """Return the lock file of the feature cache in that folder."""
    return folder.with_suffix(".lock")


class FeatureCache:
    """The cached features of one frozen network. Read without a lock; filled, checked and dropped under one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name[:12]
        self.forget()

    def forget(self) -> None:
        """Forget what was read, as if the folder were empty."""
        self.slots: dict[bytes, int] = {}  # key -> place of the entry
        self.keys: list[bytes] = []  # of each entry
        self.digests: list[bytes] = []  # likewise

    def open(self) -> bool:
        """Read metadata and index; return False if there is nothing.

        Raises:
            FileError: a file is damaged.
        """
        if not (self.folder / METADATA).exists():
            return False
        self._read_metadata()
        entries, index = self.folder / ENTRIES, self.folder / INDEX
        data = index.read_bytes() if index.exists() else b""
        count = len(data) // INDEX_BYTES  # a torn last line does not count
        size = entries.stat().st_size if entries.exists() else 0
        if size < count * self.entry_bytes:
            raise FileError(entries, f"damaged: holds {size:,} of {count * self.entry_bytes:,} bytes")
        lines = [data[i * INDEX_BYTES : (i + 1) * INDEX_BYTES] for i in range(count)]
        self.slots = {line[:32]: slot for slot, line in enumerate(lines)}
        self.keys, self.digests = [line[:32] for line in lines], [line[32:] for line in lines]
        return True

    def _read_metadata(self) -> None:
        path = self.folder / METADATA
        metadata = read_json(path, SCHEMA)
        shape, dtype = metadata.get("shape"), metadata.get("dtype")
        if not isinstance(shape, list) or not all(type(n) is int and 1 <= n <= 2**24 for n in shape):
            raise FileError(path, "damaged: shape")
        if not isinstance(dtype, str) or dtype not in TYPES:
            raise FileError(path, "damaged: dtype")
        self.metadata, self.shape, self.dtype = metadata, tuple(shape), TYPES[dtype]
        self.entry_bytes = math.prod(shape) * self.dtype.itemsize

    def begin(self, shape: Sequence[int], dtype: str, metadata: JSON) -> None:
        """Create an empty cache for features of that shape and dtype (`float32` or `bfloat16`)."""
        write_json(self.folder / METADATA, {"schema": SCHEMA, "shape": list(shape), "dtype": dtype, **metadata})
        self._read_metadata()

    def mark_used(self) -> None:
        """Note that the cache is in use now: `cache prune` drops the least recently used first."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / METADATA)

    def rows(self) -> NDArray[Any]:
        """Return all features, (entries, *shape), mapped from the disk."""
        if not self.digests:
            return np.empty(0, np.float32)
        return np.memmap(self.folder / ENTRIES, self.dtype, "r", shape=(len(self.digests), *self.shape))

    def is_sound(self, rows: NDArray[Any], slot: int) -> bool:
        """Return whether an entry is what was written."""
        return self._digest(self.keys[slot], rows[slot]) == self.digests[slot]

    def _digest(self, key: bytes, row: NDArray[Any]) -> bytes:
        """Return the sha256 of an entry: dtype, shape, key and features."""
        digest = hashlib.sha256(f"{self.dtype.str}{self.shape}".encode() + key)
        digest.update(np.ascontiguousarray(row).data)
        return digest.digest()

    @contextlib.contextmanager
    def appending(self) -> Iterator[Callable[[Iterable[bytes], NDArray[Any]], None]]:
        """Yield a function (keys, rows) that appends entries. Complete entries stay, however the block ends."""
        pending: list[tuple[bytes, bytes]] = []
        committed = time.monotonic()
        with (
            _open_at(self.folder / ENTRIES, len(self.digests) * self.entry_bytes) as entries,
            _open_at(self.folder / INDEX, len(self.digests) * INDEX_BYTES) as index,
        ):

            def commit() -> None:
                nonlocal committed
                _flush(entries)
                index.seek(len(self.digests) * INDEX_BYTES)  # over the lines of a commit that was interrupted
                index.write(b"".join(key + digest for key, digest in pending))
                _flush(index)
                self.slots.update((key, slot) for slot, (key, _) in enumerate(pending, len(self.digests)))
                self.keys += [key for key, _ in pending]
                self.digests += [digest for _, digest in pending]
                pending.clear()
                committed = time.monotonic()

            def append(keys: Iterable[bytes], rows: NDArray[Any]) -> None:
                for key, row in zip(keys, rows, strict=True):
                    entries.write(row)
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
        """Delete the cache's own files. A process that has them open can use them until it ends."""
        for name in (INDEX, ENTRIES, METADATA):  # killed in between, it leaves an empty cache, not orphaned files
            (self.folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the user's files in there stay
            self.folder.rmdir()
        self.forget()


@contextlib.contextmanager
def _open_at(path: Path, position: int) -> Iterator[BinaryIO]:
    """Open a file for writing at that position; cut off what follows."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(handle, "r+b") as file:
        file.truncate(position)
        file.seek(position)
        yield file


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@dataclass(frozen=True)
class CacheListing:
    """One feature cache as `cache list` shows it."""

    features: FeatureCache
    metadata: JSON
    entries: int
    size: int  # bytes on disk
    used: float  # seconds since 1970
    problem: str | None = None


def list_feature_caches(cache: Path) -> list[CacheListing]:
    """Return every feature cache of a cache folder, most recently used first; damaged ones have a `problem`."""
    listings = []
    for folder in (cache / FOLDER).iterdir() if (cache / FOLDER).is_dir() else ():
        if not (folder / METADATA).is_file():
            continue
        features, metadata, problem = FeatureCache(folder), {}, None
        try:
            features.open()
            metadata = features.metadata
        except DlcvError as error:
            problem = str(error)
        size = sum((folder / name).stat().st_size for name in FILES if (folder / name).exists())
        used = (folder / METADATA).stat().st_mtime
        listings.append(CacheListing(features, metadata, len(features.digests), size, used, problem))
    return sorted(listings, key=lambda listing: listing.used, reverse=True)


def prune(cache: Path, limit: int) -> tuple[list[CacheListing], list[CacheListing]]:
    """Drop feature caches, least recently used first, until the remaining ones have `limit` bytes at most.

    Returns:
        Those dropped, and those that another process is filling and that therefore stay.
    """
    listings = list_feature_caches(cache)
    total, dropped, busy = sum(listing.size for listing in listings), [], []
    for listing in reversed(listings):
        if total <= limit:
            break
        if _drop_unless_busy(listing.features):
            total -= listing.size
            dropped.append(listing)
        else:
            busy.append(listing)
    return dropped, busy


def _drop_unless_busy(features: FeatureCache) -> bool:
    """Delete a feature cache; return False if another process is filling it."""
    lock = lock_path(features.folder)
    with hold_lock(lock, None) as acquired:
        if acquired:
            features.drop()
            with contextlib.suppress(PermissionError):  # Windows, where it is open
                lock.unlink(missing_ok=True)
        return acquired
