"""One process at a time: who writes an output, or fills a store, holds its lock."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from glob import escape
from pathlib import Path
from typing import BinaryIO

from dlcv_cli.errors import DlcvError
from dlcv_cli.files.disk import OLD, TEMPORARY

# of file systems that have no locks, such as some of clusters: there, who starts two runs on one output is on their own
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def hold_lock(path: Path, waiting: Callable[[], None] | None) -> Iterator[bool]:
    """Holds a lock file for one process, waiting for another that has it, once `waiting` was called.

    Yields False, at once, when another has it and `waiting` is None. The system frees
    it when the process ends, however it does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        with path.open("ab") as file:
            if _try_lock(file):
                if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    continue  # removed with what it guards since it was opened
                yield True
                return
        if waiting is None:
            yield False
            return
        if not told:
            waiting()
            told = True
        time.sleep(0.1)


def _try_lock(file: BinaryIO) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _lock_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.lock")


def list_leftovers(*outputs: Path) -> list[Path]:
    """What a process that was killed while it wrote these outputs may have left beside them."""
    endings = (TEMPORARY, OLD)
    found = [p for o in outputs for end in endings for p in o.parent.glob(f".{escape(o.name)}.*{end}")]
    return found + [lock for lock in map(_lock_of, outputs) if lock.exists()]


@contextlib.contextmanager
def claim_outputs(output: Path, *others: Path) -> Iterator[None]:
    """Holds an output for one process until the block ends, and clears away what a killed one left of it.

    Args:
        others: what is written beside the output, by whoever holds it.

    Raises:
        DlcvError: another process holds it.
        OSError: nothing can be written there; names the output.
    """
    folders = [folder for folder in output.absolute().parents if not folder.exists()]
    with contextlib.ExitStack() as stack:
        lock = _lock_of(output)
        try:
            mine = stack.enter_context(hold_lock(lock, None))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(output)) from None
        if not mine:
            raise DlcvError(f"{output}: another dlcv is writing it: let it finish, or give another output")
        try:
            _sweep(output, *others)
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows, where it is open
                lock.unlink()
            for folder in folders:  # made for the lock, and nothing was written
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _sweep(*outputs: Path) -> None:
    for output in outputs:
        for stray in output.parent.glob(f".{escape(output.name)}.*{OLD}"):
            if output.exists():
                shutil.rmtree(stray, ignore_errors=True)
            else:  # killed between moving the old folder away and the new one there
                stray.rename(output)
        for stray in output.parent.glob(f".{escape(output.name)}.*{TEMPORARY}"):
            if stray.is_dir():
                shutil.rmtree(stray, ignore_errors=True)
            else:
                stray.unlink(missing_ok=True)
