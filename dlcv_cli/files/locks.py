"""One process at a time: whoever writes an output, or fills a feature cache, holds its lock."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterator
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout

from dlcv_cli.errors import DlcvError
from dlcv_cli.files.disk import OLD, TEMPORARY

POLL_SECONDS = 0.1
# of file systems without locks, such as those of some clusters: two dlcv processes on one output do not see each other
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def hold_lock(path: Path, waiting: Callable[[], None] | None) -> Iterator[bool]:
    """Hold a lock file until the block ends; yield whether it is held.

    The system frees the lock when the process ends, however it does.

    Args:
        waiting: called once before waiting for another process that holds the lock; None: do not wait, yield False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # without the fallback to a lock that is a mere file, which a killed process would leave behind
    lock = FileLock(path, fallback_to_soft=False)
    try:
        acquired = _acquire(lock, waiting)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        acquired = True
    try:
        yield acquired
    finally:
        lock.release()


def _acquire(lock: FileLock, waiting: Callable[[], None] | None) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is None:
            return False
        waiting()
        lock.acquire(timeout=-1, poll_interval=POLL_SECONDS)
    return True


def _lock_path(output: Path) -> Path:
    return output.with_name(f".{output.name}.lock")


def list_leftovers(*outputs: Path) -> list[Path]:
    """Return what a process that was killed while it wrote these outputs may have left beside them."""
    endings = (TEMPORARY, OLD)
    temporary = [p for o in outputs for end in endings for p in o.parent.glob(f".{escape(o.name)}.*{end}")]
    return temporary + [lock for lock in map(_lock_path, outputs) if lock.exists()]


@contextlib.contextmanager
def claim_outputs(output: Path, *others: Path) -> Iterator[None]:
    """Claim an output for this process until the block ends, and delete what a killed process left of it.

    Args:
        others: files that are written beside the output under the same claim.

    Raises:
        DlcvError: another process has claimed it.
        OSError: nothing can be written there; names the output.
    """
    folders = [folder for folder in output.absolute().parents if not folder.exists()]
    with contextlib.ExitStack() as stack:
        lock = _lock_path(output)
        try:
            acquired = stack.enter_context(hold_lock(lock, None))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(output)) from None
        if not acquired:
            raise DlcvError(f"{output} is in use by another dlcv process: let it finish, or choose another -o")
        try:
            _sweep(output, *others)
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows, where it is open
                lock.unlink()
            for folder in folders:  # created for the lock, and nothing was written
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
