"""What every training has around its science: nothing to do, or a checkpoint and its metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from dlcv_cli.context import Outcome, Reporter
from dlcv_cli.errors import DlcvError
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import JSON, hash_file, read_json
from dlcv_cli.files.locks import claim_outputs, list_leftovers
from dlcv_cli.files.recipes import Recipe, RunInfo, installed_versions, is_up_to_date, refuse_overwrite
from dlcv_cli.results import metrics
from dlcv_cli.results.codec import decode
from dlcv_cli.stages.snapshots import SnapshotFile, snapshot_path


def find_finished(output: Path, recipe: Recipe, force: bool, report: Reporter) -> Outcome | None:
    """The outcome when checkpoint and metrics are there and belong together, else None: it has to be trained."""
    refuse_overwrite(metrics.metrics_path(output), recipe, lambda path: read_json(path, metrics.SCHEMA), force)
    if not is_up_to_date(output, recipe, lambda path: tensors.read_metadata(path, tensors.CHECKPOINT), force):
        return None
    if not metrics.belongs_to(output, hash_file(output)):
        report.note(f"{output}: its metrics are missing or another run's; training again")
        return None
    _tidy(output, recipe)
    return Outcome(output, False, tensors.read_metadata(output, tensors.CHECKPOINT).get("best") or {})


def claim_training(output: Path) -> AbstractContextManager[None]:
    """Holds a training's output, and what is written beside it, for this process."""
    return claim_outputs(output, metrics.metrics_path(output), snapshot_path(output))


def _tidy(output: Path, recipe: Recipe) -> None:
    """Clears away what a run that was killed after its last write has left: nobody will go on from it."""
    partial = snapshot_path(output)
    if partial.exists() or list_leftovers(output, metrics.metrics_path(output), partial):
        with contextlib.suppress(DlcvError, OSError), claim_training(output):
            if partial.exists() and not recipe.differences(tensors.read_metadata(partial, tensors.SNAPSHOT)):
                partial.unlink()


def warn_if_unpaired(checkpoint: Path, report: Reporter) -> None:
    """Warns when the metrics beside a checkpoint are not its own."""
    if metrics.metrics_path(checkpoint).is_file() and not metrics.belongs_to(checkpoint, hash_file(checkpoint)):
        report.warn(f"{checkpoint} is not what its metrics file says: damaged or exchanged since it was trained")


def write_training(
    output: Path,
    recipe: Recipe,
    run: RunInfo,
    arrays: tensors.Arrays,
    subject: JSON,
    about: JSON,
    parameters: Mapping[str, int],
    records: Sequence[JSON],
    best: JSON,
    packages: Sequence[str],
    partial: SnapshotFile,
    **machine: Any,
) -> Outcome:
    """Writes the checkpoint, then the metrics that carry its sha256; then there is nothing left to go on from.

    Args:
        subject: the network or task, which both files say.
        about: what the checkpoint needs to be used, beside that.
        parameters: `total` and `trainable`.
        records: epochs, or looks at the losses, each with `best`: whether it was the best so far.
        best: that of them whose weights are kept.
        machine: what `run` says beside times and versions.
    """
    plain, best = [_without_best(record) for record in records], _without_best(best)
    common = {**recipe.to_json(output.parent), **subject}
    tensors.write(
        output, tensors.CHECKPOINT, arrays, {**common, **about, "best": best, "versions": installed_versions(*packages)}
    )
    document = {
        **common,
        "schema": metrics.SCHEMA,
        "parameters": dict(parameters),
        "records": plain,
        "best": best,
        "checkpoint": {"path": output.name, "sha256": hash_file(output)},
        "run": run.to_json(*packages, **machine, **partial.run()),
    }
    metrics.write_metrics(output, decode(metrics.metrics_path(output), metrics.TrainingMetrics, document))
    partial.remove()
    return Outcome(output, True, best)


def _without_best(record: JSON) -> JSON:
    return {key: value for key, value in record.items() if key != "best"}
