"""`calibrate`: a checkpoint in, the same with a temperature out, fitted on its validation part."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from dlcv_cli.context import Context, Outcome
from dlcv_cli.errors import DlcvError, SettingError
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import JSON, as_object, check_output, hash_file
from dlcv_cli.files.recipes import Input, Recipe, RunInfo, identify_run
from dlcv_cli.results import metrics
from dlcv_cli.results.calibration import Calibration, Measures
from dlcv_cli.stages.evaluate import locate_data
from dlcv_cli.stages.snapshots import SnapshotFile
from dlcv_cli.stages.training import TrainingResult, claim_training, find_finished, write_training
from dlcv_cli.statistics.calibration import fit_temperature, measure_reliability
from dlcv_cli.statistics.metrics import Scores, compute_calibration_error, score_logits
from dlcv_cli.studies import study_of

STAGE = "calibrate"
FEW = 100  # validation images, below which the temperature is not worth much
OF_TRAINING = ("stage", "config", "chosen")  # what a calibrated checkpoint repeats of the training that it comes from
OF_FILE = ("schema", "sha256", "inputs", "best", "versions", *OF_TRAINING)


def calibrate(checkpoint: Path, output: Path, *, data: Path | None = None, context: Context = Context()) -> Outcome:
    """Write the checkpoint with the temperature that fits its probabilities to its validation part.

    Predictions, evaluations and exports of the output divide the logits by it; which class is predicted stays the same.

    Raises:
        DlcvError: a damaged input, data that is missing or changed, or an output that was made differently.
        SettingError: the checkpoint predicts no classes, or is calibrated already.
    """
    metadata = tensors.read_metadata(checkpoint, tensors.CHECKPOINT)
    study = study_of(checkpoint, metadata)
    if not study.classifies:
        raise SettingError(f"{checkpoint}: probabilities are calibrated, and {study.name} have none")
    if "calibration" in metadata:
        raise SettingError(f"{checkpoint}: is calibrated already; calibrate the checkpoint that it was made from")
    source, context = locate_data(checkpoint, metadata, data, context)
    examples = Input(hash_file(source), source, root=context.root)
    origin = identify_run(metadata)
    inputs = {"checkpoint": Input(hash_file(checkpoint), checkpoint, recipe=origin.recipe), study.data_role: examples}
    recipe = Recipe(STAGE, {}, inputs)
    check_output(output, ".safetensors")
    if find_finished(output, recipe, context):
        return Outcome(output, False, _summarize(tensors.read_metadata(output, tensors.CHECKPOINT)["calibration"]))
    with claim_training(output):
        run = RunInfo()
        measured = study.measure(checkpoint, source, "val", context)
        try:
            calibration = _fit(measured.arrays)
        except ValueError as error:
            count = len(measured.arrays["labels"])
            raise DlcvError(
                f"{checkpoint}: its {count:,} validation images give no temperature ({error}); make a split with more"
            ) from None
        if calibration.n < FEW:
            context.reporter.warn(f"{calibration.n} validation images are few: the temperature is a rough one")
        result = _describe(checkpoint, metadata, calibration, measured.machine)
        write_training(output, recipe, result, run, SnapshotFile(output, recipe, {}, context))
    return Outcome(output, True, _summarize(msgspec.to_builtins(calibration)))


def _summarize(calibration: JSON) -> JSON:
    return {key: value for key, value in calibration.items() if key != "wrong"}


def _fit(arrays: tensors.Arrays) -> Calibration:
    logits, labels = arrays["logits"], arrays["labels"]
    temperature = fit_temperature(logits, labels)
    before, after = score_logits(logits, labels), score_logits(logits / temperature, labels)
    reliability = measure_reliability(after)
    return Calibration(
        temperature=temperature,
        n=reliability.n,
        before=_measure(before),
        after=_measure(after),
        wrong=reliability.wrong,
    )


def _measure(scores: Scores) -> Measures:
    return Measures(loss=float(scores.losses.mean()), expected_calibration_error=compute_calibration_error(scores))


def _describe(checkpoint: Path, metadata: JSON, calibration: Calibration, machine: dict[str, Any]) -> TrainingResult:
    """Return what the calibrated checkpoint holds: all of the checkpoint, and its calibration."""
    stored = tensors.read(checkpoint, tensors.CHECKPOINT)
    unchanged = {key: value for key, value in metadata.items() if key not in OF_FILE}
    subject: JSON = {key: unchanged.pop(key) for key in ("arch", "precision") if key in unchanged}
    best = as_object(metadata.get("best"))
    records, total = [best], sum(array.size for array in stored.arrays.values())
    with contextlib.suppress(DlcvError):  # the checkpoint was handed over without its metrics
        recorded = metrics.read_metrics(checkpoint, hash_file(checkpoint))
        records = [msgspec.to_builtins(record) for record in recorded.records]
    return TrainingResult(
        arrays=stored.arrays,
        subject=subject,
        metadata={
            **unchanged,
            "training": {key: metadata[key] for key in OF_TRAINING if key in metadata},
            "calibration": msgspec.to_builtins(calibration),
        },
        parameters={"total": total, "trainable": 1},
        records=records,
        best=best,
        packages=("scipy",),
        run=machine,
    )
