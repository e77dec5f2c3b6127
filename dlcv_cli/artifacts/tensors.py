"""safetensors files of ours: tensors, and one metadata key `dlcv` with JSON. Checkpoints, sequences, predictions."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dlcv_cli.artifacts.files import JSON, check_schema, parse_json, require, whole
from dlcv_cli.errors import FileError

CHECKPOINT = "dlcv.checkpoint/1"
SEQUENCES = "dlcv.sequences/1"
PREDICTIONS = "dlcv.predictions/1"

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Tensors:
    """A file in memory: its arrays by name, and its record."""

    path: Path
    arrays: Arrays
    record: JSON


def write(path: Path, schema: str, arrays: Mapping[str, NDArray[Any]], record: JSON) -> None:
    """Writes tensors whole. One metadata key only: safetensors writes several in random order."""
    document = {"schema": schema, **record}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # ASCII, because safetensors takes no lone surrogates (file names that are not UTF-8)
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    with whole(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata={"dlcv": text})
        except SafetensorError as error:  # it reports a full disk in words alone
            code = re.search(r"os error (\d+)", str(error))
            number = int(code[1]) if code else errno.EIO
            raise OSError(number, os.strerror(number)) from None


def read_record(path: Path, schema: str) -> JSON:
    """The record alone, without reading the tensors. FileError when it is no file of that schema."""
    with _open(path) as file:
        return _record(path, file.metadata(), schema)


def read(path: Path, schema: str) -> Tensors:
    """All of a file, with every floating-point number checked to be finite. FileError for anything wrong."""
    with _open(path) as file:
        record = _record(path, file.metadata(), schema)
        try:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        except (SafetensorError, TypeError, ValueError, AttributeError) as error:
            raise FileError(path, f"damaged: {error}") from None
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FileError(path, f"damaged: {name} has numbers that are not finite")
    return Tensors(path, arrays, record)


def _open(path: Path) -> Any:
    require(path)
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


def array(tensors: Tensors, name: str, dtype: type[np.generic], ndim: int) -> NDArray[Any]:
    """One array of a file, with dtype and number of dimensions checked. FileError when it is not as it should be."""
    found = tensors.arrays.get(name)
    if found is None:
        raise FileError(tensors.path, f"damaged: it has no tensor {name!r}")
    if found.dtype != dtype or found.ndim != ndim:
        raise FileError(tensors.path, f"damaged: tensor {name!r} is {found.dtype} with {found.ndim} dimensions")
    return found
