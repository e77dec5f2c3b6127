"""Write files whole or not at all, and read files without trusting them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dlcv_cli.errors import DlcvError, FileError

MAX_JSON = 256 * 2**20
TEMPORARY, OLD = ".tmp", ".old"  # endings of what is being written, and of a folder that is being replaced
JSON = dict[str, Any]


def umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which is renamed to `path` when the block ends without an error.

    Missing folders are made. The content is flushed to disk before the rename, with permissions by the umask. After
    an error the temporary file is deleted, and `path` is as it was.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~umask())
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        # name the file the user asked for, not the temporary one
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, document: JSON) -> None:
    """Write a JSON document whole, with exact numbers and its keys in order."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with write_whole(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def write_folder(folder: Path, files: Iterable[tuple[str, bytes]], manifest: str, record: JSON, replace: bool) -> None:
    """Write a folder of small files whole: beside it first, then renamed. `manifest` names the file for the record."""
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=TEMPORARY, dir=folder.parent))
        temporary.chmod(0o777 & ~umask())
        hashes = {}
        for name, data in files:
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            hashes[name] = hashlib.sha256(data).hexdigest()
        write_json(temporary / manifest, {**record, "files": hashes})
        if hasattr(os, "sync"):
            os.sync()  # thousands of small files: once for all of them
        if replace:
            old = temporary.with_suffix(OLD)
            folder.rename(old)
            try:
                temporary.rename(folder)
            except BaseException:
                old.rename(folder)
                raise
        else:
            if folder.is_dir():
                folder.rmdir()  # empty, or the stage would have refused
            temporary.rename(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(folder)) from error
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
            if folder.exists():
                shutil.rmtree(temporary.with_suffix(OLD), ignore_errors=True)


def hash_file(path: Path) -> str:
    """Return the hex sha256 of a file."""
    require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(document: Any) -> str:
    """Return the hex sha256 of a JSON value in its canonical form."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def require_file(path: Path) -> None:
    """Raise FileError unless the path is a regular file that is not empty."""
    if not path.exists():
        raise FileError(path, "no such file")
    if not path.is_file():
        raise FileError(path, "is not a file")
    if path.stat().st_size == 0:
        raise FileError(path, "is empty")


def read_json(path: Path, schema: str) -> JSON:
    """Read a JSON document of this schema. FileError, which names its schema, for anything else."""
    require_file(path)
    if path.stat().st_size > MAX_JSON:
        raise FileError(path, f"is larger than a {schema} file can be")
    try:
        document = parse_json(path.read_bytes().decode("utf-8", "surrogateescape"))
    except ValueError as error:
        raise FileError(path, f"is not the {schema} file expected here: not JSON ({error})") from None
    return check_schema(path, document, schema)


def parse_json(text: str) -> Any:
    """Parse JSON. ValueError for NaN and infinities, which are not JSON, and for nesting too deep to parse."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None


def check_schema(path: Path, document: Any, schema: str) -> JSON:
    """Return the document. FileError unless it is an object of this schema."""
    if not isinstance(document, dict) or not isinstance(document.get("schema"), str):
        raise FileError(path, f"is not a dlcv file (a {schema} file is expected here)")
    if document["schema"] != schema:
        raise FileError(path, f"holds {document['schema']!r}; a {schema!r} file is expected here")
    return document


def as_object(value: Any) -> JSON:
    """Return the value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def relative_path(path: Path, folder: Path) -> str:
    """Return the path relative to a folder, so that both can move together; with / on every platform."""
    path, folder = path.resolve(), folder.resolve()
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive on Windows
        return path.as_posix()


def path_beside(path: Path, ending: str) -> Path:
    """Return a path with another ending: `runs/head.safetensors`, `.metrics.json` -> `runs/head.metrics.json`."""
    return path.with_name(path.name.removesuffix(".safetensors") + ending)


def check_output(path: Path, ending: str) -> Path:
    """Return the output path. DlcvError unless it has the ending that its format needs, and is no folder."""
    if not path.name.endswith(ending) or path.name == ending:
        raise DlcvError(f"{path}: the output's name must end in {ending}")
    if path.is_dir():
        raise DlcvError(f"{path}: is a folder; give a file name")
    return path


def mount_point(path: Path) -> Path:
    """Return where the disk is mounted that holds a path, which need not exist."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists() and os.path.ismount(p))


def free_space(path: Path) -> int:
    """Return how many bytes are free on the disk that is to hold a path."""
    return shutil.disk_usage(next(p for p in path.absolute().parents if p.exists())).free
