"""Locks: a process that writes an output or fills a feature cache holds its lock, and works on it alone."""

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
# errors of file systems without locks, as on some clusters: there, two dlcv processes on one output do not notice
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def hold_lock(path: Path, report_wait: Callable[[], None] | None) -> Iterator[bool]:
    """Hold a lock file until the block ends, and yield whether it is held.

    The system frees the lock when the process ends, even if it is killed.

    Args:
        report_wait: called once before waiting for the process that holds the lock; None: yield False, do not wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # no fallback to a lock that is only a file, which a killed process would leave behind
    lock = FileLock(path, fallback_to_soft=False)
    try:
        acquired = _acquire(lock, report_wait)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        acquired = True
    try:
        yield acquired
    finally:
        lock.release()


def _acquire(lock: FileLock, report_wait: Callable[[], None] | None) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if report_wait is None:
            return False
        report_wait()
        lock.acquire(timeout=-1, poll_interval=POLL_SECONDS)
    return True


def _locate_lock(output: Path) -> Path:
    return output.with_name(f".{output.name}.lock")


def list_leftovers(*outputs: Path) -> list[Path]:
    """Return the temporary files and locks that a process killed while writing these outputs left beside them."""
    endings = (TEMPORARY, OLD)
    temporary = [p for o in outputs for end in endings for p in o.parent.glob(f".{escape(o.name)}.*{end}")]
    return temporary + [lock for lock in map(_locate_lock, outputs) if lock.exists()]


@contextlib.contextmanager
def claim_outputs(output: Path, *others: Path) -> Iterator[None]:
    """Claim an output for this process until the block ends, and delete the leftovers of a killed process.

    Args:
        others: files that are written beside the output under the same claim.

    Raises:
        DlcvError: another process has claimed it.
        OSError: the folder cannot be written to; the error names the output.
    """
    folders = [folder for folder in output.absolute().parents if not folder.exists()]
    with contextlib.ExitStack() as stack:
        lock = _locate_lock(output)
        try:
            acquired = stack.enter_context(hold_lock(lock, None))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(output)) from None
        if not acquired:
            raise DlcvError(f"{output} is in use by another dlcv process: let it finish, or choose another -o")
        try:
            _delete_leftovers(output, *others)
            yield
        finally:
            with contextlib.suppress(OSError):  # on Windows it is still open
                lock.unlink()
            for folder in folders:  # created for the lock; removed if nothing was written
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _delete_leftovers(*outputs: Path) -> None:
    for output in outputs:
        for old in output.parent.glob(f".{escape(output.name)}.*{OLD}"):
            if output.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:  # killed after the old folder was renamed, before the new one was
                old.rename(output)
        for temporary in output.parent.glob(f".{escape(output.name)}.*{TEMPORARY}"):
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
