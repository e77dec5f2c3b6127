"""`*.metrics.json`, schema dlcv.metrics/1, and `*.eval.json`, schema dlcv.eval/1."""

from __future__ import annotations

from pathlib import Path

from dlcv_cli.artifacts.files import JSON, beside, mapping, read_json, write_json
from dlcv_cli.errors import FileError
from dlcv_cli.evaluation.comparison import COLUMNS

METRICS = "dlcv.metrics/1"
EVAL = "dlcv.eval/1"


def metrics_path(checkpoint: Path) -> Path:
    """Where a checkpoint's metrics lie."""
    return beside(checkpoint, ".metrics.json")


def write_metrics(checkpoint: Path, checkpoint_sha256: str, record: JSON) -> None:
    """Writes the metrics of a checkpoint that is on disk already."""
    own = {"path": checkpoint.name, "sha256": checkpoint_sha256}
    run = record.pop("run")
    write_json(metrics_path(checkpoint), {"schema": METRICS, **record, "checkpoint": own, "run": run})


def read_eval(path: Path) -> JSON:
    """Reads and checks an evaluation. FileError for anything wrong in it."""
    document = read_json(path, EVAL)
    try:
        where, baselines = document["data"], document["baselines"]
        texts = [where["study"], where["split"], where["path"], where["fingerprint"], *(b["name"] for b in baselines)]
        texts.append(document["predictions"]["sha256"])
        numbers = [where["n"], *document["metrics"].values()]
        numbers += [value for b in baselines for value in b["metrics"].values()]
        columns = COLUMNS[where["study"]]
        numbers += [document["metrics"][column.key] for column in columns]
        if "runs" in document:
            numbers += [document["runs"][column.key][key] for column in columns for key in ("std", "min", "max")]
        numbers += [*document.get("seeds", [])]
    except (KeyError, TypeError, AttributeError):
        raise FileError(path, "damaged: it lacks what an evaluation holds; remove it and evaluate again") from None
    if not all(isinstance(t, str) for t in texts) or not all(isinstance(n, int | float) for n in numbers):
        raise FileError(path, "damaged: text and numbers are mixed up; remove it and evaluate again")
    return document


def belongs(checkpoint: Path, checkpoint_sha256: str) -> bool:
    """Whether the metrics beside a checkpoint are there and its own."""
    if not metrics_path(checkpoint).exists():
        return False
    record = read_json(metrics_path(checkpoint), METRICS)
    return mapping(record.get("checkpoint")).get("sha256") == checkpoint_sha256
