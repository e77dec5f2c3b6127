"""safetensors files of ours: tensors, and one metadata key `dlcv` with JSON. Checkpoints, sequences, predictions.

Each carries its own `sha256`: of the whole file, with zeros in the place of these 64 digits.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from dlcv_cli.errors import FileError
from dlcv_cli.files.disk import JSON, check_schema, parse_json, require_file, write_whole

CHECKPOINT = "dlcv.checkpoint/1"
SEQUENCES = "dlcv.sequences/1"
PREDICTIONS = "dlcv.predictions/1"
SNAPSHOT = "dlcv.snapshot/1"
MAX_HEADER = 64 * 2**20
NO_DIGITS = b"0" * 64
TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint8": "U8", "bool": "BOOL",
}  # fmt: skip

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Tensors:
    """A file in memory: arrays by name, and metadata."""

    path: Path
    arrays: Arrays
    metadata: JSON


def write(path: Path, schema: str, arrays: Mapping[str, NDArray[Any]], metadata: JSON) -> None:
    """Write tensors whole, with their sha256 in the header. The same content gives the same bytes.

    Not by the library's writer: killed, it leaves a temporary file of its own behind, and what it has written would
    have to be read again for the sha256. Source: the format of safetensors.
    """
    document = {"schema": schema, "sha256": "", **metadata} | {"sha256": NO_DIGITS.decode()}
    # ASCII, because safetensors takes no lone surrogates (file names that are not UTF-8)
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    header: JSON = {"__metadata__": {"dlcv": text}}
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0]))  # as the library has it
    at = 0
    for name, array in ordered:
        end = at + array.nbytes
        header[name] = {"dtype": TYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with write_whole(path) as temporary, temporary.open("wb") as file:
        digest = hashlib.sha256()
        blocks = itertools.chain([struct.pack("<Q", len(head)) + head], (_bytes(array) for _, array in ordered))
        for block in blocks:
            digest.update(block)
            file.write(block)
        file.seek(8 + head.index(NO_DIGITS))
        file.write(digest.hexdigest().encode())


def _bytes(array: NDArray[Any]) -> Any:
    """Return an array's bytes, little end first, without a copy if possible."""
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C").reshape(-1).view(np.uint8).data


def _digest(path: Path, digits: bytes) -> str:
    """Return the sha256 of a file, read with zeros in the place where its header first has these digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_header_size(path)).replace(digits, NO_DIGITS, 1))
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _header_size(path: Path) -> int:
    """Return how many bytes come before the tensors. Source: the safetensors format, 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        head = file.read(8)
    size: int = struct.unpack("<Q", head)[0] + 8 if len(head) == 8 else 0
    if size > MAX_HEADER:
        raise FileError(path, f"is no safetensors file of ours: a header of {size:,} bytes")
    return size


def read_metadata(path: Path, schema: str) -> JSON:
    """Read the metadata alone, without checking the tensors. FileError if it is no file of this schema."""
    with _open(path) as file:
        return _record(path, file.metadata(), schema)


def read(path: Path, schema: str) -> Tensors:
    """Read a whole file. FileError unless it is unchanged since it was written, and its numbers are finite."""
    with _open(path) as file:
        record = _record(path, file.metadata(), schema)
        require_unchanged(path, record)
        try:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        except (SafetensorError, TypeError, ValueError, AttributeError) as error:
            raise FileError(path, f"damaged: {error}") from None
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FileError(path, f"damaged: {name} has numbers that are not finite")
    return Tensors(path, arrays, record)


def require_unchanged(path: Path, record: JSON) -> None:
    """Raise FileError unless a file with this metadata has the sha256 that the metadata says."""
    own = record.get("sha256")
    if not isinstance(own, str) or not re.fullmatch("[0-9a-f]{64}", own) or _digest(path, own.encode()) != own:
        raise FileError(path, "damaged or changed: its content does not match its sha256; create it again")


def _open(path: Path) -> Any:
    require_file(path)
    _header_size(path)
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise FileError(path, f"is no safetensors file, or a damaged one ({error})") from None


def _record(path: Path, metadata: dict[str, str] | None, schema: str) -> JSON:
    if not metadata or "dlcv" not in metadata:
        raise FileError(path, f"is not a dlcv file (a {schema} file is expected here)")
    try:
        document = parse_json(metadata["dlcv"])
    except ValueError as error:
        raise FileError(path, f"damaged: its record is not JSON ({error})") from None
    return check_schema(path, document, schema)


def get_array(tensors: Tensors, name: str, dtype: type[np.generic], ndim: int) -> NDArray[Any]:
    """Return an array of a file. FileError if it is missing, or of another dtype or number of dimensions."""
    found = tensors.arrays.get(name)
    if found is None:
        raise FileError(tensors.path, f"damaged: it has no tensor {name!r}")
    if found.dtype != dtype or found.ndim != ndim:
        raise FileError(tensors.path, f"damaged: tensor {name!r} is {found.dtype} with {found.ndim} dimensions")
    return found
