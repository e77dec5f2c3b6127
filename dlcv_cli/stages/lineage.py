"""What a file was made from, back to the data: what a checkpoint was trained on, and the graph that a report shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from dlcv_cli.context import Reporter
from dlcv_cli.errors import DlcvError, FileError, list_names
from dlcv_cli.files import splits, tensors
from dlcv_cli.files.disk import JSON, as_object, hash_file, hash_json
from dlcv_cli.files.recipes import identify_run
from dlcv_cli.report.kinds import FigureGroup, Graph, Node
from dlcv_cli.report.reported import Reported, ReportedRow
from dlcv_cli.results.codec import encode
from dlcv_cli.results.comparison import Comparison
from dlcv_cli.results.evaluation import Contamination, Unchecked
from dlcv_cli.studies.base import Study

DATA = ("split", "data")  # roles of data among the inputs


@dataclass(frozen=True)
class Source:
    """A file that another file was made from."""

    role: str  # among the other's inputs
    name: str
    sha256: str  # of the content that was used, whatever the file holds today
    path: Path | None = None  # None: the input is recorded by name or content alone
    problem: str = ""  # why the file is not, or cannot be read as, what was used
    metadata: JSON = field(default_factory=dict)  # empty where there is none, as in weights of other programs
    sources: tuple[Source, ...] = ()  # what the file was made from in turn


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
    """Return a file's metadata; empty for files of other programs. FileError: a checkpoint or data is damaged."""
    if role == "labels":
        return {}
    if path.suffix == ".json":
        return splits.read_metadata(path)
    try:
        return tensors.read_metadata(path, tensors.SEQUENCES if role in DATA else tensors.CHECKPOINT)
    except FileError:
        if role == "weights":
            return {}
        raise


def _walk(sources: Iterable[Source], owner: JSON, data_role: str) -> Iterator[tuple[Source, int | None]]:
    """Yield all files that a checkpoint comes from, back to the data, whose own sources are no examples.

    Each comes with the fold of the checkpoint that was made from it, by that checkpoint's metadata, `owner`.
    """
    fold = identify_run(owner).fold
    for source in sources:
        yield source, fold
        if source.role != data_role:
            yield from _walk(source.sources, source.metadata, data_role)


def check_contamination(
    study: Study[object], checkpoint: Path, metadata: JSON, data: Path, part: str, allowed: bool
) -> tuple[list[str], Contamination]:
    """Return the sha256 of each evaluated example, and how many of them the checkpoint has seen.

    Args:
        part: the evaluated part; `train` is contaminated by definition, and allowed.

    Raises:
        FileError: `data` is not what the checkpoint's study needs.
    """
    examples = study.digest_examples(data, identify_run(metadata).fold)[part]
    seen: dict[str, set[str]] = {"train": set(), "val": set()}  # validation examples decided which weights to keep
    checked: list[str] = []
    unchecked: list[Unchecked] = []
    unrecorded: list[str] = []
    sources = trace_sources(checkpoint, metadata, {hash_file(data): data})
    for source, fold in _walk(sources, metadata, study.data_role):
        problem = source.problem
        if source.path is None or (source.role == "weights" and not problem and not source.metadata):
            unrecorded.append(source.name)
        elif source.role == study.data_role and not problem:
            try:
                parts = study.digest_examples(source.path, fold)
            except FileError as error:
                problem = str(error).removeprefix(f"{source.path}: ")
            else:
                checked.append(source.name if fold is None else f"{source.name} (fold {fold})")
                for name, digests in seen.items():
                    digests.update(parts[name])
        if problem:
            unchecked.append(Unchecked(name=source.name, why=problem))
    return examples, Contamination(
        checked=sorted(checked),
        unchecked=unchecked,
        unrecorded=sorted(unrecorded),
        examples=sum(digest in seen["train"] for digest in examples),
        chosen=sum(digest in seen["val"] for digest in examples),
        of=len(examples),
        by_chance=study.repeats_examples(metadata),
        allowed=allowed or part == "train",
    )


def report_contamination(checkpoint: Path, leak: Contamination, part: str, allowed: bool, reporter: Reporter) -> None:
    """Report in words what a contamination means.

    Raises:
        DlcvError: evaluated examples were trained on, which was neither requested nor allowed.
    """
    if leak.unchecked:
        files = list_names(f"{file.name} ({file.why})" for file in leak.unchecked)
        reporter.warn(
            f"{checkpoint}: cannot check whether it was trained on these {part} examples: {files}; "
            "restore the files, and evaluate with --force"
        )
    if leak.chosen and part == "test" and not leak.by_chance:
        reporter.warn(
            f"{checkpoint}: {leak.chosen:,} of the {leak.of:,} test examples are validation examples of its training, "
            "which decided which weights were kept: its figures are too good"
        )
    if not leak.leaks:
        return
    if part == "train":
        reporter.note(f"{checkpoint}: evaluated on its training part: {leak.examples:,} of {leak.of:,} examples")
    elif not allowed:
        raise DlcvError(
            f"{checkpoint}: {leak.examples:,} of the {leak.of:,} {part} examples were trained on, by it or a "
            f"checkpoint that it comes from (data: {list_names(leak.checked)}): "
            "evaluate it on other data with --data, or use --allow-contaminated"
        )
    else:
        reporter.warn(
            f"CONTAMINATED: {checkpoint} was trained on {leak.examples:,} of these {leak.of:,} {part} examples"
        )


def draw_lineage(rows: Sequence[ReportedRow], comparison: Comparison) -> FigureGroup:
    """Return the graph of the files that the comparison was made from, as the files themselves record it.

    Of a row with several runs one is drawn, the representative; the table of the figure has the files of all.
    """
    every = _list_files([network for row in rows for network in row.networks], comparison)
    drawn = _list_files([row.representative for row in rows], comparison)
    origins = ", ".join(node.name for node in every if not node.sources)
    text = f"{len(every)} files, from {origins} to the table. The table below has the hashes in full."
    graph = Graph("lineage", f"Lineage: {comparison.data.study}", text, drawn, every)
    hint = "Each file with the first digits of its sha256; lines lead to what was made from it."
    hint += " Of the runs of a row one is drawn; the numbers list all." if len(drawn) < len(every) else ""
    return FigureGroup("From data to table", hint, [graph])


def _list_files(networks: Sequence[Reported], comparison: Comparison) -> tuple[Node, ...]:
    """Return a node for each file that evaluations of these checkpoints were made from, and for the table."""
    nodes: dict[tuple[str, str], Node] = {}  # by name and content, each after its sources
    evaluations = []
    for network in networks:
        known = {network.evaluation.inputs["checkpoint"].sha256: network.checkpoint}  # as the report read it
        sources = trace_sources(network.file, {"inputs": msgspec.to_builtins(network.evaluation.inputs)}, known)
        file = Source("evaluation", network.file.name, hash_file(network.file), sources=sources)
        evaluations.append(_add(nodes, file))
    table = Node("comparison", "this table", hash_json(encode(comparison)), tuple(evaluations))
    return (*nodes.values(), table)


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
