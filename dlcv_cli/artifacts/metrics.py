"""`*.metrics.json`, schema dlcv.metrics/1, and `*.eval.json`, schema dlcv.eval/1."""

from __future__ import annotations

from pathlib import Path

from dlcv_cli.artifacts.files import JSON, beside, read_json, write_json

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


def belongs(checkpoint: Path, checkpoint_sha256: str) -> bool:
    """Whether the metrics beside a checkpoint are there and are its own."""
    path = metrics_path(checkpoint)
    if not path.exists():
        return False
    recorded = read_json(path, METRICS).get("checkpoint")
    return isinstance(recorded, dict) and recorded.get("sha256") == checkpoint_sha256
