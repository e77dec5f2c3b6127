"""The feature cache, `activations/KEY/` in the cache folder: the features of images, one entry each, keyed by content.

It has three files: `store.json` (schema dlcv.activations/1), `records.bin` (entries of one size, end to end) and
`index.bin` (64 bytes per entry, in the same order: the image's key, and a sha256 of key and features). An index line is
written after its entry is on disk, so a killed process leaves complete entries only. The files keep the names of
schema dlcv.activations/1, so that caches filled by earlier versions stay valid.
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
# NumPy has no bfloat16: its bits are stored as integers
TYPES: dict[Any, np.dtype[Any]] = {"float32": np.dtype("<f4"), "bfloat16": np.dtype("<i2")}
COMMIT_SECONDS = 5.0
FILES = METADATA, ENTRIES, INDEX = "store.json", "records.bin", "index.bin"
INDEX_BYTES = 64


def find_default_folder() -> Path:
    """Return the user's cache folder for dlcv, following the platform's convention."""
    import platformdirs

    return platformdirs.user_cache_path("dlcv", appauthor=False)


def locate_folder(cache: Path, key: bytes) -> Path:
    """Return the folder of the feature cache with this key."""
    return cache / FOLDER / key.hex()[:40]


def locate_lock(folder: Path) -> Path:
    """Return the lock file of the feature cache in this folder."""
    return folder.with_suffix(".lock")


class FeatureCache:
    """The cached features of one frozen network. Hold its lock to fill, check or drop it; reading needs none."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name[:12]
        self.forget()

    def forget(self) -> None:
        """Forget the index, as if the folder were empty."""
        self.slots: dict[bytes, int] = {}  # key -> number of the entry
        self.keys: list[bytes] = []  # one per entry
        self.digests: list[bytes] = []  # one per entry

    def open(self) -> bool:
        """Read metadata and index. Return False if the folder holds no cache.

        Raises:
            FileError: a file is damaged.
        """
        if not (self.folder / METADATA).exists():
            return False
        self._read_metadata()
        entries, index = self.folder / ENTRIES, self.folder / INDEX
        data = index.read_bytes() if index.exists() else b""
        count = len(data) // INDEX_BYTES  # an incomplete last line does not count
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

    def create(self, shape: Sequence[int], dtype: str, metadata: JSON) -> None:
        """Create an empty cache for features of this shape and dtype (`float32` or `bfloat16`)."""
        write_json(self.folder / METADATA, {"schema": SCHEMA, "shape": list(shape), "dtype": dtype, **metadata})
        self._read_metadata()

    def mark_used(self) -> None:
        """Record that the cache is in use now: `cache prune` drops the least recently used first."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / METADATA)

    def map_rows(self) -> NDArray[Any]:
        """Return all features, (entries, *shape), mapped from disk."""
        if not self.digests:
            return np.empty(0, np.float32)
        return np.memmap(self.folder / ENTRIES, self.dtype, "r", shape=(len(self.digests), *self.shape))

    def is_sound(self, rows: NDArray[Any], slot: int) -> bool:
        """Return whether an entry still has the sha256 that it was written with."""
        return self._hash_entry(self.keys[slot], rows[slot]) == self.digests[slot]

    def _hash_entry(self, key: bytes, row: NDArray[Any]) -> bytes:
        """Return the sha256 of an entry: dtype, shape, key and features."""
        digest = hashlib.sha256(f"{self.dtype.str}{self.shape}".encode() + key)
        digest.update(np.ascontiguousarray(row).data)
        return digest.digest()

    @contextlib.contextmanager
    def open_for_appending(self) -> Iterator[Callable[[Iterable[bytes], NDArray[Any]], None]]:
        """Yield a function (keys, rows) that appends entries. Complete entries stay, even after an error."""
        pending: list[tuple[bytes, bytes]] = []
        committed = time.monotonic()
        with (
            _open_at(self.folder / ENTRIES, len(self.digests) * self.entry_bytes) as entries,
            _open_at(self.folder / INDEX, len(self.digests) * INDEX_BYTES) as index,
        ):

            def commit() -> None:
                nonlocal committed
                _flush(entries)
                index.seek(len(self.digests) * INDEX_BYTES)  # overwrite the lines of an interrupted commit
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
                    pending.append((key, self._hash_entry(key, row)))
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
        for name in (INDEX, ENTRIES, METADATA):  # in this order, a kill leaves an empty cache and no orphaned files
            (self.folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # files of the user stay
            self.folder.rmdir()
        self.forget()


@contextlib.contextmanager
def _open_at(path: Path, position: int) -> Iterator[BinaryIO]:
    """Open a file for writing at this position, in bytes, and truncate it there."""
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

    cache: FeatureCache
    metadata: JSON
    entries: int
    size: int  # bytes on disk
    used: float  # seconds since 1970
    problem: str | None = None


def list_feature_caches(root: Path) -> list[CacheListing]:
    """Return every feature cache of a cache folder, most recently used first. Damaged ones have a `problem`."""
    listings = []
    for folder in (root / FOLDER).iterdir() if (root / FOLDER).is_dir() else ():
        if not (folder / METADATA).is_file():
            continue
        cache, metadata, problem = FeatureCache(folder), {}, None
        try:
            cache.open()
            metadata = cache.metadata
        except DlcvError as error:
            problem = str(error)
        size = sum((folder / name).stat().st_size for name in FILES if (folder / name).exists())
        used = (folder / METADATA).stat().st_mtime
        listings.append(CacheListing(cache, metadata, len(cache.digests), size, used, problem))
    return sorted(listings, key=lambda listing: listing.used, reverse=True)


def prune(root: Path, limit: int) -> tuple[list[CacheListing], list[CacheListing]]:
    """Drop feature caches, least recently used first, until the remaining ones have `limit` bytes at most.

    Returns:
        The dropped caches, and the busy ones, which stay because another process is filling them.
    """
    listings = list_feature_caches(root)
    total, dropped, busy = sum(listing.size for listing in listings), [], []
    for listing in reversed(listings):
        if total <= limit:
            break
        if _drop_unless_busy(listing.cache):
            total -= listing.size
            dropped.append(listing)
        else:
            busy.append(listing)
    return dropped, busy


def _drop_unless_busy(cache: FeatureCache) -> bool:
    """Delete a feature cache. Return False if another process is filling it."""
    lock = locate_lock(cache.folder)
    with hold_lock(lock, None) as acquired:
        if acquired:
            cache.drop()
            with contextlib.suppress(PermissionError):  # on Windows it is still open
                lock.unlink(missing_ok=True)
        return acquired
