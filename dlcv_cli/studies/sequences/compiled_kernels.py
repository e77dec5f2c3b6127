"""Where the compiled sequence kernels lie between two runs, whole or not at all."""

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
from dlcv_cli.files.recipes import installed_versions
from dlcv_cli.sequences import cells, training
from dlcv_cli.sequences.tasks import Sequences

SCHEMA = "dlcv.kernels/1"
PARTS = 50  # more than there are compiled functions


def prepare_kernels(cache: Path | None, report: Reporter) -> Path:
    """Makes the kernels ready; gives the folder they are kept in. Has to be called before they are imported.

    In the cache folder, because the installed package may not be writable; without one, in a folder of this process.
    numba believes what it finds, so what it may find is checked: a list of files with their sha256 is written when all
    is compiled, and code without one, or that is not as it says, is compiled anew.
    """
    if "NUMBA_CACHE_DIR" in os.environ:  # the user's own, or made ready before
        return Path(os.environ["NUMBA_CACHE_DIR"])
    import llvmlite.binding

    source = Path(training.__file__).with_name("engines") / "kernels.py"
    processor = [llvmlite.binding.get_host_cpu_name(), llvmlite.binding.get_host_cpu_features().flatten()]
    folder = (
        cache
        and cache / kernel_cache.FOLDER / hash_json([hash_file(source), installed_versions("numba"), processor])[:16]
    )
    try:
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError:
        folder = None
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="dlcv-kernels-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    with hold_lock(
        folder / kernel_cache.LOCK, lambda: report.note("waiting for another dlcv that compiles the kernels")
    ):
        problem = _problem(folder)
        if problem is None:
            return folder
        if problem:
            report.warn(f"{folder}: {problem}; compiling anew")
        kernel_cache.drop_kernels(folder)
        report.note("compiling the kernels for this processor, once (some 10 seconds)")
        if _compile():
            files = sorted(path for path in folder.rglob("*") if path.suffix in kernel_cache.SUFFIXES)
            listed = {path.relative_to(folder).as_posix(): hash_file(path) for path in files}
            write_json(folder / kernel_cache.FILE_LIST, {"schema": SCHEMA, "files": listed})
    return folder


def _problem(folder: Path) -> str | None:
    """None when all code is there as it was written; empty when there is none; else what is wrong with it."""
    manifest = folder / kernel_cache.FILE_LIST
    if not manifest.exists():
        return ""
    try:
        files = as_object(read_json(manifest, SCHEMA).get("files"))
        changed = [name for name, digest in files.items() if hash_file(folder / name) != digest]
    except (DlcvError, OSError) as error:
        return str(error)
    return f"{changed[0]} is damaged" if changed else None if files else f"{manifest} lists nothing"


def _compile() -> bool:
    """Compiles everything by using it once; False when not all of it could be kept on the disk.

    What cannot be written is compiled all the same, but numba raises an error for it: once for each function.
    """
    cell, data = cells.CELLS["gru"], Sequences(np.zeros((2, 2), np.float32), np.array([2]), np.zeros(1, np.float32))
    kept = True
    for _ in range(PARTS):
        try:
            engine = training.begin(cell, cells.initial_parameters(cell, 2, 1, 0.0, 0), SeqTrainConfig(), data)
            engine.advance(np.array([0]))
            engine.answers(data)
            break
        except OSError:
            kept = False
    return kept
