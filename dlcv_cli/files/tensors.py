"""dlcv's safetensors files (checkpoints, sequences, predictions): tensors, and JSON under the metadata key `dlcv`.

Each file holds its own `sha256`, computed with zeros in the place of these 64 digits.
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
from dlcv_cli.files.disk import JSON, as_object, check_schema, parse_json, require_file, write_whole

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
    """A safetensors file in memory: arrays by name, and metadata."""

    path: Path
    arrays: Arrays
    metadata: JSON


def write(path: Path, schema: str, arrays: Mapping[str, NDArray[Any]], metadata: JSON) -> None:
    """Write tensors whole, with the file's sha256 in the header. The same content gives the same bytes.

    The library's writer is not used: when killed, it leaves a temporary file of its own, and its output would have to
    be read again for the sha256. Source: the safetensors format.
    """
    document = {"schema": schema, "sha256": "", **metadata} | {"sha256": NO_DIGITS.decode()}
    # ASCII, because safetensors takes no lone surrogates (file names that are not UTF-8)
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    header: JSON = {"__metadata__": {"dlcv": text}}
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0]))  # the library's order
    begin = 0
    for name, array in ordered:
        end = begin + array.nbytes
        header[name] = {"dtype": TYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [begin, end]}
        begin = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with write_whole(path) as temporary, temporary.open("wb") as file:
        digest = hashlib.sha256()
        blocks = itertools.chain([struct.pack("<Q", len(encoded)) + encoded], (_get_bytes(a) for _, a in ordered))
        for block in blocks:
            digest.update(block)
            file.write(block)
        file.seek(8 + encoded.index(NO_DIGITS))
        file.write(digest.hexdigest().encode())


def _get_bytes(array: NDArray[Any]) -> Any:
    """Return the bytes of an array, little-endian, without a copy if possible."""
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C").reshape(-1).view(np.uint8).data


def _hash_without(path: Path, digits: bytes) -> str:
    """Return the hex sha256 of a file, with zeros in the place where these digits first occur in its header."""
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_read_header_size(path)).replace(digits, NO_DIGITS, 1))
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _read_header_size(path: Path) -> int:
    """Return the bytes before the tensors. Source: the safetensors format, 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        length = file.read(8)
    size: int = struct.unpack("<Q", length)[0] + 8 if len(length) == 8 else 0
    if size > MAX_HEADER:
        raise FileError(path, "is no safetensors file")
    return size


def read_metadata(path: Path, schema: str) -> JSON:
    """Return the metadata alone, without checking the tensors. Raise FileError if the file has another schema."""
    with _open(path) as file:
        return _parse_metadata(path, file.metadata(), schema)


def describe(path: Path) -> tuple[JSON | None, dict[str, tuple[str, list[int]]]]:
    """Return the metadata of any safetensors file of ours, None of others', and type and shape of each tensor by name.

    Raises:
        FileError: it is no safetensors file, or its metadata is damaged.
    """
    with _open(path) as file:
        own = "dlcv" in (file.metadata() or {})
        metadata = _parse_metadata(path, file.metadata(), None) if own else None
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no dict
        return metadata, {name: (own.get_dtype(), own.get_shape()) for name, own in slices.items()}


def read(path: Path, schema: str) -> Tensors:
    """Return the whole file. Raise FileError if it changed since it was written, or a number in it is not finite."""
    with _open(path) as file:
        metadata = _parse_metadata(path, file.metadata(), schema)
        require_unchanged(path, metadata)
        try:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        except (SafetensorError, TypeError, ValueError, AttributeError) as error:
            raise FileError(path, f"damaged: {error}") from None
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FileError(path, f"damaged: {name} has numbers that are not finite")
    return Tensors(path, arrays, metadata)


def require_unchanged(path: Path, metadata: JSON) -> None:
    """Raise FileError unless the file has the sha256 that its metadata records."""
    own = metadata.get("sha256")
    if not isinstance(own, str) or not re.fullmatch("[0-9a-f]{64}", own) or _hash_without(path, own.encode()) != own:
        raise FileError(path, "damaged or changed: its content does not match its sha256; create it again")


def _open(path: Path) -> Any:
    require_file(path)
    _read_header_size(path)
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise FileError(path, f"is no safetensors file, or a damaged one ({error})") from None


def _parse_metadata(path: Path, metadata: dict[str, str] | None, schema: str | None) -> JSON:
    if not metadata or "dlcv" not in metadata:
        raise FileError(path, f"is not a dlcv file (a {schema} file is expected here)")
    try:
        document = parse_json(metadata["dlcv"])
    except ValueError as error:
        raise FileError(path, f"damaged: its metadata is not JSON ({error})") from None
    return check_schema(path, document, schema or str(as_object(document).get("schema")))


def get_array(tensors: Tensors, name: str, dtype: type[np.generic], ndim: int) -> NDArray[Any]:
    """Return an array of a file. Raise FileError if it is missing, or has another dtype or number of dimensions."""
    array = tensors.arrays.get(name)
    if array is None:
        raise FileError(tensors.path, f"damaged: it has no tensor {name!r}")
    if array.dtype != dtype or array.ndim != ndim:
        raise FileError(tensors.path, f"damaged: tensor {name!r} is {array.dtype} with {array.ndim} dimensions")
    return array
