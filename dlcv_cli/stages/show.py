"""`show` and `runs`: what files are, and how checkpoints came about. Reads headers and documents, no tensors."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from dlcv_cli.config import STAGES
from dlcv_cli.context import Reporter
from dlcv_cli.errors import DlcvError, FileError
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import JSON, as_object, hash_file, parse_json, replace_ending, require_file
from dlcv_cli.files.exchange import read_onnx_record, read_torchscript_record
from dlcv_cli.files.recipes import RunOf, identify_run
from dlcv_cli.results.comparison import Column
from dlcv_cli.results.evaluation import SCHEMA as EVALUATION
from dlcv_cli.results.evaluation import AnyEvaluation
from dlcv_cli.results.metrics import Record, metrics_path
from dlcv_cli.stages.lineage import Source, trace_sources
from dlcv_cli.studies import study_named
from dlcv_cli.studies.stored import read_evaluation
from dlcv_cli.vision.splits import PARTS


@dataclass(frozen=True)
class Setting:
    """A recorded setting; one that a search chose has its value."""

    name: str
    value: Any
    is_default: bool
    chosen: bool = False


@dataclass(frozen=True)
class Described:
    """A file of dlcv, or safetensors of another program."""

    path: Path
    schema: str | None  # None: of another program
    document: JSON  # its metadata, or all of it
    settings: list[Setting]
    sources: tuple[Source, ...]
    tensors: dict[str, tuple[str, list[int]]]  # type and shape by name
    evaluations: dict[str, AnyEvaluation]  # of a checkpoint, by part; or the file itself
    best: Record | None  # of a training
    siblings: list[Run]  # the runs of a checkpoint's recipe in its folder

    @property
    def parameters(self) -> int:
        """The number of numbers in the tensors."""
        return sum(math.prod(shape) for _, shape in self.tensors.values())


def describe(path: Path) -> Described:
    """Return what a file is.

    Raises:
        FileError: it is missing, damaged, or neither a file of dlcv nor safetensors.
    """
    document, content = _read(path)
    if document is None:
        return Described(path, None, {}, [], (), content, {}, None, [])
    schema = str(document.get("schema"))
    try:
        best = msgspec.convert(document["best"], Record) if document.get("best") else None
    except msgspec.ValidationError as error:
        raise FileError(path, f"damaged: its best record: {error}") from None
    evaluations: dict[str, AnyEvaluation] = {}
    if schema == tensors.CHECKPOINT:
        evaluations = find_evaluations(path, hash_file(path))
    elif schema == EVALUATION:
        own = read_evaluation(path)
        evaluations = {own.data.part: own}
    settings, sources = list_settings(document), trace_sources(path, document)
    siblings = find_siblings(path, document) if schema == tensors.CHECKPOINT else []
    return Described(path, schema, document, settings, sources, content, evaluations, best, siblings)


def _read(path: Path) -> tuple[JSON | None, dict[str, tuple[str, list[int]]]]:
    """Return a file's metadata, or the whole of a JSON document, and its tensors."""
    require_file(path)
    with path.open("rb") as file:
        head = file.read(16)
    if head.lstrip()[:1] == b"<":
        from dlcv_cli.report.page import read_recipe  # draws, which takes longer to import than all else

        return read_recipe(path), {}
    if head.startswith(b"PK"):
        return read_torchscript_record(path), {}
    if path.suffix == ".onnx":
        return read_onnx_record(path), {}
    if head.lstrip()[:1] != b"{":
        return tensors.describe(path)
    try:
        document = parse_json(path.read_text("utf-8"))
    except ValueError as error:
        raise FileError(path, f"is no JSON ({error})") from None
    if not isinstance(document, dict) or not str(document.get("schema")).startswith("dlcv."):
        raise FileError(path, "is no file of dlcv")
    return document, {}


def list_settings(document: JSON) -> list[Setting]:
    """Return the settings that a document records, with what is known of their defaults.

    Those of a calibrated checkpoint are those of its training.
    """
    document = as_object(document.get("training")) or document
    recorded, chosen = as_object(document.get("config")), as_object(document.get("chosen"))
    config = STAGES.get(str(document.get("stage")))
    known = {f.name: f.default for f in fields(config)} if config else {}
    names = dict.fromkeys([*recorded, *chosen])
    return [
        Setting(
            name,
            chosen.get(name, recorded.get(name)),
            name not in chosen and recorded[name] == known.get(name),
            name in chosen,
        )
        for name in names
    ]


def find_evaluations(checkpoint: Path, sha256: str | None) -> dict[str, AnyEvaluation]:
    """Return the evaluations of a checkpoint with this sha256 that lie beside it, by part, without damaged ones."""
    evaluations: dict[str, AnyEvaluation] = {}
    for part in PARTS:
        path = replace_ending(checkpoint, f".{part}.eval.json")
        with contextlib.suppress(DlcvError):
            if path.is_file() and (evaluation := read_evaluation(path)).inputs["checkpoint"].sha256 == sha256:
                evaluations[part] = evaluation
    return evaluations


def get_figures(evaluation: AnyEvaluation) -> list[tuple[Column, float]]:
    """Return the metrics of an evaluation, in the order of its study."""
    columns = [metric.column for metric in study_named(evaluation.data.study).metrics]
    return [(column, evaluation.metrics[column.key]) for column in columns if column.key in evaluation.metrics]


@dataclass(frozen=True)
class Run:
    """A checkpoint below a folder."""

    path: Path  # relative to the folder
    stage: str
    data: str  # name of the file it was trained with
    settings: list[Setting]  # that differ from the defaults
    best: JSON  # the record whose weights were kept
    evaluations: dict[str, AnyEvaluation]
    identity: RunOf


def group_by_recipe(runs: Iterable[Run]) -> list[list[Run]]:
    """Return the runs of each recipe in each folder, in the order in which they come first."""
    groups: dict[tuple[Path, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.path.parent, run.identity.recipe), []).append(run)
    return list(groups.values())


def find_siblings(path: Path, metadata: JSON) -> list[Run]:
    """Return the runs in a checkpoint's folder that are of its recipe, itself among them, without damaged files."""
    recipe, runs = identify_run(metadata).recipe, []
    for name in sorted(os.listdir(path.parent)):
        with contextlib.suppress(DlcvError, OSError, ValueError):
            if name.endswith(".safetensors") and not name.startswith("."):
                runs.append(_read_run(path.parent, path.parent / name))
    return [run for run in runs if run.identity.recipe == recipe]


def find_runs(folder: Path, reporter: Reporter) -> Iterator[Run]:
    """Yield the checkpoints below a folder, sorted by path, without other files. Warn of damaged ones.

    An evaluation counts if it is of the checkpoint that the metrics name: no checkpoint is hashed.

    Raises:
        DlcvError: there is no such folder.
        OSError: a folder cannot be read.
    """

    def stop(error: OSError) -> None:
        raise error

    if not folder.is_dir():
        raise DlcvError(f"{folder}: no such folder")
    for parent, folders, names in os.walk(folder, onerror=stop):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if not name.endswith(".safetensors") or name.startswith("."):
                continue
            try:
                yield _read_run(folder, path)
            except (DlcvError, OSError, ValueError) as error:
                if not is_other_file(path):
                    reporter.warn(f"not listed: {error}")


def is_other_file(path: Path) -> bool:
    """Return whether a file is whole, and no checkpoint: data, predictions, or of another program."""
    try:
        metadata, _ = tensors.describe(path)
    except (DlcvError, OSError):
        return False
    return metadata is None or metadata.get("schema") != tensors.CHECKPOINT


def _read_run(folder: Path, path: Path) -> Run:
    metadata = tensors.read_metadata(path, tensors.CHECKPOINT)
    metrics = metrics_path(path)
    recorded = parse_json(metrics.read_text("utf-8")) if metrics.is_file() else {}
    sha256 = as_object(as_object(recorded).get("checkpoint")).get("sha256")
    inputs = [as_object(metadata.get("inputs")).get(role) for role in ("split", "data")]
    data = next((str(as_object(own).get("path")).rpartition("/")[2] for own in inputs if own), "")
    changed = [setting for setting in list_settings(metadata) if not setting.is_default]
    best = as_object(metadata.get("best"))
    return Run(
        path.relative_to(folder), str(metadata.get("stage")), data, changed, best, find_evaluations(path, sha256),
        identify_run(metadata),
    )  # fmt: skip
