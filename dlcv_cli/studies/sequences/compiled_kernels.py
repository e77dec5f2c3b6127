"""Compiles the sequence kernels into the cache folder, or loads them from there."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from dlcv_cli.config import SeqTrainConfig
from dlcv_cli.context import Reporter
from dlcv_cli.errors import DlcvError
from dlcv_cli.files import kernel_cache
from dlcv_cli.files.disk import as_object, hash_file, hash_json, read_json, write_json
from dlcv_cli.files.locks import hold_lock
from dlcv_cli.files.recipes import read_versions
from dlcv_cli.sequences import cells, engines
from dlcv_cli.sequences.tasks import Sequences

SCHEMA = "dlcv.kernels/1"
FUNCTIONS = 50  # more than there are compiled functions


def prepare_kernels(cache: Path | None, reporter: Reporter) -> Path:
    """Compile or load all kernels; return the folder with numba's files. Call it before the kernels are imported.

    The folder is in the cache, because the installed package may not be writable; without one, a temporary folder of
    this process. numba trusts what it reads, so the files are checked first: a list of them with their sha256 is
    written once all is compiled; files without a list, or that differ from it, are compiled again. They are loaded
    while the lock is held, so that `cache clear` in another process cannot delete them halfway.
    """
    if "NUMBA_CACHE_DIR" in os.environ:  # the user's own, or this function was called before
        return Path(os.environ["NUMBA_CACHE_DIR"])
    folder = _choose_folder(cache)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    waiting = "waiting for another dlcv process that compiles or loads the kernels"
    with hold_lock(folder / kernel_cache.LOCK, lambda: reporter.note(waiting)):
        problem = _find_problem(folder)
        if problem is None:
            _use_kernels()
            return folder
        if problem:
            reporter.warn(f"{folder}: {problem}; compiling again")
        kernel_cache.drop_kernels(folder)
        reporter.note("compiling the kernels for this processor, once (about 10 seconds)")
        if _use_kernels():
            files = sorted(path for path in folder.rglob("*") if path.suffix in kernel_cache.SUFFIXES)
            hashes = {path.relative_to(folder).as_posix(): hash_file(path) for path in files}
            write_json(folder / kernel_cache.FILE_LIST, {"schema": SCHEMA, "files": hashes})
    return folder


def _choose_folder(cache: Path | None) -> Path:
    """Return a writable folder for these kernels, numba and processor."""
    import llvmlite.binding

    sources = [hash_file(Path(engines.__file__).with_name(name)) for name in ("arithmetic.py", "kernels.py")]
    processor = [llvmlite.binding.get_host_cpu_name(), llvmlite.binding.get_host_cpu_features().flatten()]
    if cache:
        key = hash_json([sources, read_versions("numba"), processor])[:16]
        folder = cache / kernel_cache.FOLDER / key
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            pass
    folder = Path(tempfile.mkdtemp(prefix="dlcv-kernels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _find_problem(folder: Path) -> str | None:
    """Return None if all files are as they were written, "" if there are none, else what is wrong with them."""
    file_list = folder / kernel_cache.FILE_LIST
    if not file_list.exists():
        return ""
    try:
        files = as_object(read_json(file_list, SCHEMA).get("files"))
        changed = [name for name, digest in files.items() if hash_file(folder / name) != digest]
    except (DlcvError, OSError) as error:
        return str(error)
    return f"{changed[0]} is damaged" if changed else None if files else f"{file_list} is empty"


def _use_kernels() -> bool:
    """Use every kernel once, which loads or compiles it; return False if not all could be written to the disk.

    A function that cannot be written is compiled all the same, but numba raises an error: once for each function.
    """
    cell, data = cells.CELLS["gru"], Sequences(np.zeros((2, 2), np.float32), np.array([2]), np.zeros(1, np.float32))
    weights = cells.draw_parameters(cell, 2, 1, 0.0, 0)
    written = True
    for _ in range(FUNCTIONS):
        try:
            engine = engines.build_engine(cell, weights, SeqTrainConfig(), data)
            engine.advance(np.array([0]))  # type: ignore[union-attr]  # no baseline
            engine.predict(data)
            break
        except OSError:
            written = False
    return written
