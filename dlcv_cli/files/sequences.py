"""Sequence files, schema dlcv.sequences/1: the three parts of a task, as safetensors."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.errors import FileError
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import JSON
from dlcv_cli.sequences.tasks import Sequences
from dlcv_cli.vision.splits import PARTS

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SequenceFile:
    """A sequence file in memory."""

    path: Path
    task: str
    parts: dict[str, Sequences]
    metadata: JSON


def write(path: Path, parts: Mapping[str, Sequences], metadata: JSON) -> None:
    """Write each part's tensors as `part.inputs`, `part.lengths` and `part.targets`."""
    arrays: tensors.Arrays = {}
    for part, data in parts.items():
        arrays |= {f"{part}.inputs": data.inputs, f"{part}.lengths": data.lengths, f"{part}.targets": data.targets}
    tensors.write(path, tensors.SEQUENCES, arrays, metadata)


def read(path: Path) -> SequenceFile:
    """Return the content of a sequence file. Raise FileError if it is damaged."""
    file = tensors.read(path, tensors.SEQUENCES)
    config = file.metadata.get("config")
    task = config.get("task") if isinstance(config, dict) else None
    if not isinstance(task, str):
        raise FileError(path, "damaged: its metadata names no task")
    parts = {part: _read_part(file, part) for part in PARTS}
    widths = {data.inputs.shape[1] for data in parts.values()}
    if len(widths) > 1 or min(widths) < 1:
        raise FileError(path, f"damaged: its parts have {sorted(widths)} inputs per step")
    return SequenceFile(path, task, parts, file.metadata)


def _read_part(file: tensors.Tensors, part: str) -> Sequences:
    inputs = tensors.get_array(file, f"{part}.inputs", np.float32, 2)
    lengths = tensors.get_array(file, f"{part}.lengths", np.int64, 1)
    targets = tensors.get_array(file, f"{part}.targets", np.float32, 1)
    if not len(lengths) or len(lengths) != len(targets):
        raise FileError(file.path, f"damaged: {part} has {len(lengths)} sequences and {len(targets)} targets")
    if lengths.min() < 1 or lengths.max() > len(inputs) or lengths.sum() != len(inputs):
        raise FileError(file.path, f"damaged: the lengths in {part} do not add up to its {len(inputs)} steps")
    return Sequences(inputs, lengths, targets)


def read_new_sequences(path: Path) -> dict[str, Floats]:
    """Return the sequences (T, F) of a CSV or JSON file of another program, by name.

    CSV has a heading and a row for each step: the name of its sequence, then its inputs. JSON is a list of sequences,
    each a list of steps, each a list of inputs; their names are 1, 2 and so on.

    Raises:
        ValueError: the file cannot be read, or holds something else; with the reason.
    """
    try:
        text = path.read_text("utf-8-sig")
        steps_by_name = _parse_json(text) if text.lstrip()[:1] in ("[", "{") else _parse_csv(text)
    except UnicodeDecodeError:
        raise ValueError("is not text, but CSV or JSON is expected") from None
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if not steps_by_name:
        raise ValueError("has no sequences")
    return {name: _check_steps(name, steps) for name, steps in steps_by_name.items()}


def _check_steps(name: str, steps: Any) -> Floats:
    """Return the steps of a sequence, (T, F). Raise ValueError if they are something else."""
    try:
        with np.errstate(over="ignore"):  # of numbers that float32 lacks: not finite, below
            array = np.array(steps, np.float32)
    except (ValueError, TypeError, OverflowError):
        array = np.empty(0, np.float32)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"sequence {name} is not a list of steps with the same number of inputs each")
    if not np.isfinite(array).all():
        raise ValueError(f"sequence {name} has a number that is not finite")
    return array


def _parse_json(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(document, list):
        raise ValueError("is not a list of sequences")
    return {str(number): steps for number, steps in enumerate(document, 1)}


def _parse_csv(text: str) -> dict[str, Any]:
    steps_by_name: dict[str, list[list[float]]] = {}
    last = ""
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        if number == 1 or not row:
            continue
        name, *cells = row
        if name in steps_by_name and name != last:
            raise ValueError(f"row {number}: sequence {name} continues after another one began; keep its rows together")
        try:
            steps_by_name.setdefault(name, []).append([float(cell) for cell in cells])
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
        last = name
    return steps_by_name


def hash_part(data: Sequences) -> str:
    """Return the fingerprint of a part: the hex sha256 of its inputs, lengths and targets."""
    digest = hashlib.sha256()
    for values in (data.inputs, data.lengths, data.targets):
        digest.update(f"{values.dtype}{values.shape}".encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def hash_examples(data: Sequences) -> list[bytes]:
    """Return the sha256 of the length, inputs and target of each sequence, 32 bytes each."""
    ends = np.cumsum(data.lengths)
    starts = ends - data.lengths
    return [
        hashlib.sha256(length.tobytes() + data.inputs[start:end].tobytes() + target.tobytes()).digest()
        for length, start, end, target in zip(data.lengths, starts, ends, data.targets, strict=True)
    ]
