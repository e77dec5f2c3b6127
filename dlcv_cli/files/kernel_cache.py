"""Compiled sequence kernels, `kernels/KEY/` in the cache folder: numba's files, and a list of their sha256."""

from __future__ import annotations

import contextlib
from pathlib import Path

from dlcv_cli.files.locks import hold_lock

FOLDER = "kernels"
FILE_LIST, LOCK = "kernels.json", "kernels.lock"
SUFFIXES = (".nbi", ".nbc")  # numba's index and code files


def drop_kernels(folder: Path) -> None:
    """Delete the compiled kernels in a folder, their list first, and nothing else."""
    (folder / FILE_LIST).unlink(missing_ok=True)
    for path in sorted(folder.rglob("*"), reverse=True):  # files before their folders
        if path.suffix in SUFFIXES:
            path.unlink(missing_ok=True)
        elif path.is_dir():
            with contextlib.suppress(OSError):  # files of the user stay
                path.rmdir()


def clear_kernels(cache: Path) -> list[Path]:
    """Delete all compiled kernels of a cache folder.

    Returns:
        The busy folders, which stay because another process is compiling or loading from them.
    """
    busy = []
    for folder in [path for path in (cache / FOLDER).glob("*") if path.is_dir()]:
        with hold_lock(folder / LOCK, None) as acquired:
            if not acquired:
                busy.append(folder)
                continue
            drop_kernels(folder)
            with contextlib.suppress(OSError):  # on Windows it is still open
                (folder / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # files of the user stay
            folder.rmdir()
    return busy
