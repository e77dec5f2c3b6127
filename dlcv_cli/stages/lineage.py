"""What a file was made from, back to the data, as each file records it; and the graph of it that a report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dlcv_cli.errors import DlcvError, FileError
from dlcv_cli.files import splits, tensors
from dlcv_cli.files.disk import JSON, as_object, hash_file, hash_json, read_json
from dlcv_cli.report.kinds import FigureGroup, Graph, Node
from dlcv_cli.results.codec import encode
from dlcv_cli.results.comparison import Comparison
from dlcv_cli.studies.base import Reported

DATA = ("split", "data")  # roles of data among the inputs


@dataclass(frozen=True)
class Source:
    """A file that another file was made from.

    Attributes:
        role: its role among the other's inputs.
        sha256: of the content that was used, whatever the file holds today.
        path: None if the input is recorded by name or content alone.
        problem: why the file is not, or cannot be read as, what was used; empty if it is.
        metadata: the file's own; empty where there is none, as in weights of other programs.
        sources: what the file was made from in turn.
    """

    role: str
    name: str
    sha256: str
    path: Path | None = None
    problem: str = ""
    metadata: JSON = field(default_factory=dict)
    sources: tuple[Source, ...] = ()


def trace_sources(file: Path, metadata: JSON, known: Mapping[str, Path] | None = None) -> tuple[Source, ...]:
    """Return the inputs that a file's metadata records, each with its own inputs.

    Args:
        known: files by sha256, which stand for recorded files of the same content wherever those were.
    """
    inputs, known = as_object(metadata.get("inputs")), known or {}
    return tuple(_trace(role, as_object(recorded), file, known) for role, recorded in inputs.items())


def _trace(role: str, recorded: JSON, child: Path, known: Mapping[str, Path]) -> Source:
    digest, name = str(recorded.get("sha256")), recorded.get("name")
    if isinstance(name, str) or not isinstance(recorded.get("path"), str):
        return Source(role, str(name or role), digest)
    path = known.get(digest) or child.parent / recorded["path"]
    try:
        if hash_file(path) != digest:
            raise FileError(path, f"has changed since {child.name} was made from it")
        metadata = _read_metadata(role, path)
    except (DlcvError, OSError) as error:
        return Source(role, path.name, digest, path, str(error).removeprefix(f"{path}: "))
    return Source(role, path.name, digest, path, "", metadata, trace_sources(path, metadata, known))


def _read_metadata(role: str, path: Path) -> JSON:
    """Return a file's metadata; empty for weights of other programs. FileError: a checkpoint or data is damaged."""
    if path.suffix == ".json":
        return read_json(path, splits.SCHEMA)
    try:
        return tensors.read_metadata(path, tensors.SEQUENCES if role in DATA else tensors.CHECKPOINT)
    except FileError:
        if role == "weights":
            return {}
        raise


def draw_lineage(networks: Sequence[Reported], comparison: Comparison) -> FigureGroup:
    """Return the graph of all files that the comparison was made from, as the files themselves record it."""
    nodes: dict[tuple[str, str], Node] = {}  # by name and content, each after its sources
    evaluations = [
        _add(
            nodes, Source("evaluation", network.file.name, hash_file(network.file), sources=_trace_evaluation(network))
        )
        for network in networks
    ]
    table = Node("comparison", "this table", hash_json(encode(comparison)), tuple(evaluations))
    origins = ", ".join(node.name for node in nodes.values() if not node.sources)
    text = f"{len(nodes) + 1} files, from {origins} to the table. The table below has the hashes in full."
    graph = Graph("lineage", f"Lineage: {comparison.data.study}", text, (*nodes.values(), table))
    hint = "Each file with the first digits of its sha256; lines lead to what was made from it."
    return FigureGroup("From data to table", hint, [graph])


def _trace_evaluation(network: Reported) -> tuple[Source, ...]:
    """Return the checkpoint as the report read it, and the data."""
    known = {network.evaluation.inputs["checkpoint"].sha256: network.checkpoint}
    inputs = {role: {"path": file.path, "sha256": file.sha256} for role, file in network.evaluation.inputs.items()}
    return trace_sources(network.file, {"inputs": inputs}, known)


def _add(nodes: dict[tuple[str, str], Node], source: Source) -> int:
    """Return the place of a file's node among the nodes, new or known; its sources come before it."""
    key = source.name, source.sha256
    if key not in nodes:
        ordered = sorted(source.sources, key=lambda other: other.role in DATA)  # drawn lowest: fewer lines cross
        places = tuple(dict.fromkeys(_add(nodes, other) for other in ordered))
        nodes[key] = Node(source.name, _kind(source), source.sha256, places, _note(source))
    return list(nodes).index(key)


def _kind(source: Source) -> str:
    """Return what a file is: the stage that wrote a checkpoint, the schema of data, otherwise the role."""
    if source.role in DATA and "schema" in source.metadata:
        return str(source.metadata["schema"]).removeprefix("dlcv.").partition("/")[0]
    return source.role if source.role in DATA else str(source.metadata.get("stage", source.role))


def _note(source: Source) -> str:
    if not source.problem or source.path is None:
        return ""
    return "changed since" if source.path.exists() else "missing now"
