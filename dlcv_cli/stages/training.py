"""What every training does around its science: find a finished output, or write a checkpoint and its metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from dlcv_cli.context import Context, Outcome, Reporter
from dlcv_cli.errors import DlcvError
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import JSON, hash_file, read_json
from dlcv_cli.files.locks import claim_outputs, list_leftovers
from dlcv_cli.files.recipes import Recipe, RunInfo, is_up_to_date, read_versions, refuse_overwrite
from dlcv_cli.results import metrics
from dlcv_cli.results.codec import write_document
from dlcv_cli.stages.snapshots import SnapshotFile, refuse_other_training, snapshot_path


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training writes."""

    arrays: tensors.Arrays  # the weights of the best record
    subject: JSON  # network or task, which checkpoint and metrics both name
    metadata: JSON  # what else the checkpoint needs to be used
    parameters: Mapping[str, int]  # total and trainable
    records: Sequence[JSON]  # each with `best`: whether it was the best so far
    best: JSON  # the record whose weights are kept
    packages: Sequence[str]  # whose versions the files record
    run: JSON = field(default_factory=dict)  # what the metrics' `run` says beside times and versions
    metrics: JSON = field(default_factory=dict)  # what else the metrics say


def find_finished(output: Path, recipe: Recipe, context: Context) -> Outcome | None:
    """Return the outcome if checkpoint and metrics exist and belong together; None if it has to be trained.

    Raises:
        DlcvError: they, or a snapshot, were made by another recipe.
    """
    refuse_overwrite(metrics.metrics_path(output), recipe, lambda path: read_json(path, metrics.SCHEMA), context.force)
    if not is_up_to_date(output, recipe, lambda path: tensors.read_metadata(path, tensors.CHECKPOINT), context.force):
        if not context.force and snapshot_path(output).exists():
            refuse_other_training(snapshot_path(output), recipe)
        return None
    if not metrics.belongs_to(output, hash_file(output)):
        context.reporter.note(f"{output}: its metrics are missing or belong to another checkpoint; training again")
        return None
    _tidy(output, recipe)
    return Outcome(output, False, tensors.read_metadata(output, tensors.CHECKPOINT).get("best") or {})


def claim_training(output: Path) -> AbstractContextManager[None]:
    """Claim a training's output, metrics and snapshot for this process."""
    return claim_outputs(output, metrics.metrics_path(output), snapshot_path(output))


def _tidy(output: Path, recipe: Recipe) -> None:
    """Delete the leftovers of a process that was killed after its last write."""
    snapshot = snapshot_path(output)
    if snapshot.exists() or list_leftovers(output, metrics.metrics_path(output), snapshot):
        with contextlib.suppress(DlcvError, OSError), claim_training(output):
            if snapshot.exists() and not recipe.differences(tensors.read_metadata(snapshot, tensors.SNAPSHOT)):
                snapshot.unlink()


def warn_if_unpaired(checkpoint: Path, reporter: Reporter) -> None:
    """Warn if the metrics beside a checkpoint are not its own."""
    if metrics.metrics_path(checkpoint).is_file() and not metrics.belongs_to(checkpoint, hash_file(checkpoint)):
        reporter.warn(
            f"{checkpoint} is not the checkpoint that its metrics file names: one of them was damaged or exchanged"
        )


def write_training(
    output: Path, recipe: Recipe, result: TrainingResult, run: RunInfo, snapshot: SnapshotFile
) -> Outcome:
    """Write the checkpoint, then the metrics, which name its sha256; then delete the snapshot."""
    best = _without_best(result.best)
    common = {**recipe.to_json(output.parent), **result.subject}
    versions = read_versions(*result.packages)
    tensors.write(
        output, tensors.CHECKPOINT, result.arrays, {**common, **result.metadata, "best": best, "versions": versions}
    )
    document = {
        **common,
        "parameters": dict(result.parameters),
        **result.metrics,
        "records": [_without_best(record) for record in result.records],
        "best": best,
        "checkpoint": {"path": output.name, "sha256": hash_file(output)},
        "run": run.to_json(*result.packages, **result.run, **snapshot.describe()),
    }
    write_document(metrics.metrics_path(output), msgspec.convert(document, metrics.TrainingMetrics))
    snapshot.remove()
    return Outcome(output, True, best)


def _without_best(record: JSON) -> JSON:
    return {key: value for key, value in record.items() if key != "best"}
