"""The line of files: from data and weights through checkpoints and evaluations to the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dlcv_cli.errors import DlcvError
from dlcv_cli.files import splits, tensors
from dlcv_cli.files.disk import JSON, as_object, hash_file, hash_json, read_json
from dlcv_cli.report.kinds import Graph, Node

KINDS = {"split": "split", "data": "sequences", "weights": "weights", "checkpoint": "checkpoint"}


def line_of_files(evaluations: Sequence[tuple[Path, Path, JSON]], comparison: JSON) -> Graph:
    """From the inputs that each (checkpoint, evaluation file, `dlcv.eval/1` document) records, all the way back."""
    line = _Line()
    measured = [line.evaluation(*one) for one in evaluations]
    line.add("comparison", "this table", hash_json(comparison), tuple(measured))
    names = [node.name for node in line.nodes if not node.sources]
    text = f"{len(line.nodes)} files, from {', '.join(names)} to the table. The hashes in full are in the table below."
    return Graph("line", f"From data to table: {comparison['study']}", text, tuple(line.nodes))


class _Line:
    """Nodes found so far, each after what it was made from; a file that is met again is the same node."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.places: dict[tuple[str, str], int] = {}

    def add(self, name: str, kind: str, digest: str, sources: tuple[int, ...] = (), note: str = "") -> int:
        key = (name, digest)
        if key not in self.places:
            self.places[key] = len(self.nodes)
            self.nodes.append(Node(name, kind, digest, sources, note))
        return self.places[key]

    def evaluation(self, checkpoint: Path, file: Path, document: JSON) -> int:
        data = document["inputs"]["data"]
        role = "split" if document["data"]["study"] == "images" else "data"
        network = self.checkpoint(checkpoint, document["inputs"]["checkpoint"]["sha256"])
        sources = (network, self.input(role, data, file.parent))
        return self.add(file.name, "evaluation", hash_file(file), sources)

    def checkpoint(self, path: Path, digest: str) -> int:
        if (path.name, digest) in self.places:  # an ancestor of several
            return self.places[path.name, digest]
        record = tensors.read_metadata(path, tensors.CHECKPOINT)
        # the data last: what else it came from stands above it, and lines cross less
        inputs = dict(sorted(as_object(record.get("inputs")).items(), key=lambda item: item[0] in ("split", "data")))
        sources = tuple(self.input(role, as_object(given), path.parent) for role, given in inputs.items())
        return self.add(path.name, str(record.get("stage")), digest, tuple(dict.fromkeys(sources)))

    def input(self, role: str, given: JSON, folder: Path) -> int:
        """An input as a file records it; followed on when it is there and unchanged."""
        digest, kind = str(given.get("sha256")), KINDS.get(role, role)
        if not isinstance(given.get("path"), str):
            return self.add(str(given.get("name", role)), kind, digest)
        path = folder / given["path"]
        there = path.is_file() and hash_file(path) == digest
        if not there:
            return self.add(path.name, kind, digest, note="no longer there" if not path.exists() else "changed since")
        try:
            if role in ("checkpoint", "weights"):
                return self.checkpoint(path, digest)
            if role == "split":
                images = as_object(as_object(read_json(path, splits.SCHEMA).get("inputs")).get("images"))
                sources = (self.add("images", "images", str(images["sha256"])),) if "sha256" in images else ()
                return self.add(path.name, kind, digest, sources)
        except DlcvError:  # weights that are no file of ours: they have no ancestors that we know
            pass
        return self.add(path.name, kind, digest)
