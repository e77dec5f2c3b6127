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
TEMPORARY, OLD = ".tmp", ".old"  # endings: a file or folder being written, and a folder being replaced
JSON = dict[str, Any]


def read_umask() -> int:
    """Return the umask of this process. The system only returns it when it is set, so set it and put it back."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which is renamed to `path` when the block ends without an error.

    Create missing folders. Flush the content to disk before the rename, with the permissions that the umask allows.
    After an error, delete the temporary file and leave `path` as it was.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~read_umask())
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
    """Write a JSON document whole, numbers exact and keys in order. Raise ValueError for NaN and infinities."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with write_whole(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def write_folder(folder: Path, files: Iterable[tuple[str, bytes]], manifest: str, content: JSON, replace: bool) -> None:
    """Write a folder of small files whole: under a temporary name, then renamed. `content` goes to file `manifest`."""
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=TEMPORARY, dir=folder.parent))
        temporary.chmod(0o777 & ~read_umask())
        hashes = {}
        for name, data in files:
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            hashes[name] = hashlib.sha256(data).hexdigest()
        write_json(temporary / manifest, {**content, "files": hashes})
        if hasattr(os, "sync"):
            os.sync()  # once, not for each of thousands of small files
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
                folder.rmdir()  # it is empty: the stage refuses any other
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
    """Return the hex sha256 of a file. Raise FileError if it is missing or empty."""
    require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(document: Any) -> str:
    """Return the hex sha256 of a JSON value in its canonical form."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def require_file(path: Path) -> None:
    """Raise FileError unless the path is a regular, non-empty file."""
    if not path.exists():
        raise FileError(path, "no such file")
    if not path.is_file():
        raise FileError(path, "is not a file")
    if path.stat().st_size == 0:
        raise FileError(path, "is empty")


def read_json(path: Path, schema: str) -> JSON:
    """Return the JSON document in a file. Raise FileError, which names the schema, if it has another schema or none."""
    require_file(path)
    if path.stat().st_size > MAX_JSON:
        raise FileError(path, f"is larger than a {schema} file can be")
    try:
        document = parse_json(path.read_bytes().decode("utf-8", "surrogateescape"))
    except ValueError as error:
        raise FileError(path, f"is not the {schema} file expected here: not JSON ({error})") from None
    return check_schema(path, document, schema)


def parse_json(text: str) -> Any:
    """Return the value of a JSON text. Raise ValueError for NaN, infinities and nesting that is too deep to parse."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None


def check_schema(path: Path, document: Any, schema: str) -> JSON:
    """Return the document. Raise FileError unless it is an object of this schema."""
    if not isinstance(document, dict) or not isinstance(document.get("schema"), str):
        raise FileError(path, f"is not a dlcv file (a {schema} file is expected here)")
    if document["schema"] != schema:
        raise FileError(path, f"holds {document['schema']!r}; a {schema!r} file is expected here")
    return document


def as_object(value: Any) -> JSON:
    """Return the value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def make_relative(path: Path, folder: Path) -> str:
    """Return the path relative to a folder, with / on every platform, so that both can be moved together."""
    path, folder = path.resolve(), folder.resolve()
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive on Windows
        return path.as_posix()


def replace_ending(path: Path, ending: str) -> Path:
    """Return the path with another ending: `runs/head.safetensors`, `.metrics.json` -> `runs/head.metrics.json`."""
    return path.with_name(path.name.removesuffix(".safetensors") + ending)


def check_output(path: Path, ending: str) -> Path:
    """Return the output path. Raise DlcvError if it lacks the ending of its format, or is a folder."""
    if not path.name.endswith(ending) or path.name == ending:
        raise DlcvError(f"{path}: the output's name must end in {ending}")
    if path.is_dir():
        raise DlcvError(f"{path}: is a folder; give a file name")
    return path


def find_mount_point(path: Path) -> Path:
    """Return the mount point of the disk that holds a path. The path need not exist."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists() and os.path.ismount(p))


def measure_free_space(path: Path) -> int:
    """Return the number of free bytes on the disk that holds a path. The path need not exist."""
    return shutil.disk_usage(next(p for p in path.absolute().parents if p.exists())).free
