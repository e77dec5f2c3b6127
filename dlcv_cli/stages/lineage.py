"""The lineage of a comparison: from data and weights through checkpoints and evaluations to the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlcv_cli.errors import DlcvError
from dlcv_cli.files import splits, tensors
from dlcv_cli.files.disk import as_object, hash_file, hash_json, read_json
from dlcv_cli.report.kinds import FigureGroup, Graph, Node
from dlcv_cli.results.codec import encode
from dlcv_cli.results.comparison import Comparison
from dlcv_cli.studies import study_named
from dlcv_cli.studies.base import Reported

DATA = ("split", "data")  # roles of data among the inputs


def draw_lineage(networks: Sequence[Reported], comparison: Comparison) -> FigureGroup:
    """Return the graph of all files that the comparison was made from, as the files themselves record it."""
    lineage = _Lineage()
    evaluations = [lineage.add_evaluation(network) for network in networks]
    lineage.add("comparison", "this table", hash_json(encode(comparison)), tuple(evaluations))
    origins = ", ".join(node.name for node in lineage.nodes if not node.sources)
    text = f"{len(lineage.nodes)} files, from {origins} to the table. The table below has the hashes in full."
    graph = Graph("lineage", f"Lineage: {comparison.data.study}", text, tuple(lineage.nodes))
    hint = "Each file with the first digits of its sha256; lines lead to what was made from it."
    return FigureGroup("From data to table", hint, [graph])


class _Lineage:
    """The nodes of a graph, each after its sources; a file that is met again is the same node."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.indices: dict[tuple[str, str], int] = {}

    def add(self, name: str, kind: str, digest: str, sources: tuple[int, ...] = (), note: str = "") -> int:
        """Return the index of the node of this name and content, new or known."""
        key = (name, digest)
        if key not in self.indices:
            self.indices[key] = len(self.nodes)
            self.nodes.append(Node(name, kind, digest, sources, note))
        return self.indices[key]

    def add_evaluation(self, network: Reported) -> int:
        inputs, folder = network.evaluation.inputs, network.file.parent
        checkpoint = self.add_checkpoint(network.checkpoint, inputs["checkpoint"].sha256)
        role = study_named(network.evaluation.data.study).data_role
        data = self.add_input(role, {"path": inputs["data"].path, "sha256": inputs["data"].sha256}, folder)
        return self.add(network.file.name, "evaluation", hash_file(network.file), (checkpoint, data))

    def add_checkpoint(self, path: Path, digest: str) -> int:
        if (path.name, digest) in self.indices:  # an ancestor of several
            return self.indices[path.name, digest]
        metadata = tensors.read_metadata(path, tensors.CHECKPOINT)
        inputs = as_object(metadata.get("inputs"))
        roles = sorted(inputs, key=lambda role: role in DATA)  # data last: drawn lowest, so that fewer lines cross
        sources = [self.add_input(role, as_object(inputs[role]), path.parent) for role in roles]
        return self.add(path.name, str(metadata.get("stage")), digest, tuple(dict.fromkeys(sources)))

    def add_input(self, role: str, recorded: dict[str, Any], folder: Path) -> int:
        """Add an input as a file in `folder` records it, and its own inputs if it exists unchanged."""
        digest = str(recorded.get("sha256"))
        if not isinstance(recorded.get("path"), str):
            return self.add(str(recorded.get("name", role)), role, digest)
        path = folder / recorded["path"]
        if not path.is_file() or hash_file(path) != digest:
            return self.add(path.name, role, digest, note="changed since" if path.exists() else "missing now")
        try:
            if role in ("checkpoint", "weights"):
                return self.add_checkpoint(path, digest)
            if role == "split":
                inputs = as_object(read_json(path, splits.SCHEMA).get("inputs"))
                # the images themselves: a split records their common sha256, and no path
                sources = tuple(self.add(name, name, str(as_object(of).get("sha256"))) for name, of in inputs.items())
                return self.add(path.name, role, digest, sources)
        except DlcvError:  # weights of another program record no inputs
            pass
        return self.add(path.name, role, digest)
