"""`eval`: a checkpoint of either study in, its metrics and predictions on one part of the data out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.config import EvalConfig, Machine
from dlcv_cli.context import Outcome, Reporter
from dlcv_cli.errors import DlcvError, FileError
from dlcv_cli.files import sequences, splits, tensors
from dlcv_cli.files.disk import JSON, as_object, hash_file, path_beside, read_json, relative_path, write_json
from dlcv_cli.files.locks import claim_outputs
from dlcv_cli.files.recipes import Input, Recipe, RunInfo, is_up_to_date, refuse_overwrite
from dlcv_cli.results import documents as metrics
from dlcv_cli.stages import contamination as ancestry
from dlcv_cli.stages.training import warn_if_unpaired
from dlcv_cli.statistics import collapse, measurement
from dlcv_cli.statistics.metrics import largest_class, regression_by_length, scores


@dataclass(frozen=True)
class Measured:
    """One network on one part: the evaluation file's content, and the predictions' arrays."""

    study: str
    fingerprint: str
    content: JSON  # metrics, intervals, baselines, collapse, and what else the evaluation file holds
    arrays: dict[str, NDArray[Any]]
    packages: tuple[str, ...]
    machine: JSON = field(default_factory=dict)  # what `run` says beside times and versions


def evaluate(
    checkpoint: Path,
    config: EvalConfig,
    *,
    data: Path | None = None,
    root: Path | None = None,
    machine: Machine | None = None,
    force: bool = False,
    allow_contaminated: bool = False,
    cache: Path | None = None,
    report: Reporter | None = None,
) -> Outcome:
    """Writes `NAME.PART.eval.json` and `NAME.PART.predictions.safetensors` beside a checkpoint.

    The data is the file it was trained with, wherever `data` and `root` say it is now. The outcome's summary is the
    `dlcv.eval/1` document.

    Raises:
        DlcvError: a bad input, data that is missing or changed, an output made differently, or examples that the
            checkpoint or one it comes from was trained on (unless allowed, or `train` is what is evaluated).
    """
    report = report or Reporter()
    record = tensors.read_metadata(checkpoint, tensors.CHECKPOINT)
    role = "split" if str(record.get("stage")).startswith("vgg.") else "data"
    warn_if_unpaired(checkpoint, report)
    place = _data_file(checkpoint, record, role, data, report)
    root = root or _recorded_root(checkpoint, record, role, data)
    output = path_beside(checkpoint, f".{config.split}.eval.json")
    predictions = path_beside(checkpoint, f".{config.split}.predictions.safetensors")
    given = {"checkpoint": Input(hash_file(checkpoint), checkpoint), "data": Input(hash_file(place), place)}
    recipe = Recipe("eval", config.to_json(), given)
    refuse_overwrite(predictions, recipe, lambda path: tensors.read_metadata(path, tensors.PREDICTIONS), force)
    if is_up_to_date(output, recipe, lambda path: read_json(path, metrics.EVAL), force):
        document = metrics.read_eval(output)
        if predictions.is_file() and hash_file(predictions) == document["predictions"]["sha256"]:
            ancestry.report_contamination(
                checkpoint, document["contamination"], config.split, allow_contaminated, report
            )
            return Outcome(output, False, document)
        report.note(f"{predictions}: missing or changed; evaluating again")

    with claim_outputs(output, predictions):
        run = RunInfo()
        examples, leak = ancestry.check_contamination(checkpoint, record, place, config.split, allow_contaminated)
        ancestry.report_contamination(checkpoint, leak, config.split, allow_contaminated, report)
        if role == "split":
            found = _measure_images(checkpoint, place, root, config.split, machine or Machine(), cache, report)
        else:
            found = _measure_sequences(checkpoint, place, config.split, cache, report)
        return Outcome(output, True, _write(output, predictions, recipe, run, found, examples, leak))


def _write(
    output: Path, predictions: Path, recipe: Recipe, run: RunInfo, found: Measured, examples: list[str], leak: JSON
) -> JSON:
    """Writes the predictions, then the evaluation that carries their sha256, which is returned."""
    common = recipe.to_json(output.parent)
    where = {"study": found.study, "split": common["config"]["split"], "n": len(examples)}
    where |= {"path": common["inputs"]["data"]["path"], "fingerprint": found.fingerprint}
    names = np.frombuffer(bytes.fromhex("".join(examples)), np.uint8).reshape(-1, 32)
    tensors.write(predictions, tensors.PREDICTIONS, {**found.arrays, "examples": names}, {**common, "data": where})
    document = {
        "schema": metrics.EVAL,
        **common,
        "data": where,
        **found.content,
        "contamination": leak,
        "predictions": {"path": predictions.name, "sha256": hash_file(predictions)},
        "run": run.to_json(*found.packages, **found.machine),
    }
    write_json(output, document)
    return document


def _data_file(checkpoint: Path, record: JSON, role: str, data: Path | None, report: Reporter) -> Path:
    """Where the data is: `data`, or the path in the checkpoint, unchanged since."""
    try:
        recorded = record["inputs"][role]
        path, digest = data or checkpoint.parent / recorded["path"], recorded["sha256"]
    except (KeyError, TypeError):
        raise FileError(checkpoint, "damaged: its record does not say what it was trained with") from None
    if not path.is_file():
        raise FileError(path, f"no such file, though {checkpoint} was trained with it: say where it is with --data")
    if hash_file(path) != digest:
        if data is None:
            raise FileError(path, f"has changed since {checkpoint} was trained with it: restore it, or give --data")
        report.note(f"{path} is not the file that {checkpoint} was trained with")
    return path


def _recorded_root(checkpoint: Path, record: JSON, role: str, data: Path | None) -> Path | None:
    """The images' folder that was given to the training in place of the split's own, if it was."""
    root = None if data else record["inputs"][role].get("root")
    return checkpoint.parent / root if isinstance(root, str) else None


def _measure_images(
    checkpoint: Path, data: Path, root: Path | None, part: str, machine: Machine, cache: Path | None, report: Reporter
) -> Measured:
    from dlcv_cli.context import Context
    from dlcv_cli.studies.images.device import PACKAGES
    from dlcv_cli.studies.images.predictor import Predictor, load_part, open_checkpoint, require_classes

    stored, file = open_checkpoint(checkpoint), splits.read(data, root)
    require_classes(checkpoint, stored.classes, data, file.classes)
    predictor = Predictor(stored, Context(machine=machine, cache=cache, reporter=report))
    images = load_part(file, part, stored.preprocessing, report)
    collected = [logits.numpy() for logits in predictor.predict(images)]
    baseline = largest_class(np.array([e.label for e in file.parts["train"]], np.int64))
    about = [{"path": e.path, "sha256": e.sha256} for e in file.parts[part]]
    arrays = {
        "logits": _finite(checkpoint, np.concatenate(collected)),
        "labels": images.labels,
        "baselines": np.full((1, len(images.labels)), baseline),
    }
    return Measured(
        "images",
        splits.fingerprint(file.classes, file.parts[part]),
        _described_images(arrays, file.classes, about) | {"root": relative_path(file.root, checkpoint.parent)},
        arrays,
        PACKAGES,
        predictor.describe(),
    )


def _finite(checkpoint: Path, answers: NDArray[Any]) -> NDArray[Any]:
    if not np.isfinite(answers).all():
        raise FileError(checkpoint, "its answers are not finite numbers: damaged, or diverged in training")
    return answers


def _described_images(arrays: dict[str, NDArray[Any]], classes: list[str], about: list[dict[str, str]]) -> JSON:
    labels, baseline = arrays["labels"], int(arrays["baselines"][0, 0])
    found = scores(arrays["logits"], labels)
    answered = np.bincount(found.answers, minlength=len(classes))
    return {
        **measurement.images(found, labels, arrays["baselines"], [f"always {classes[baseline]}"]),
        "collapse": collapse.of_classes(answered, labels, int(found.right.sum()), baseline, classes),
        **measurement.confusion(found, labels, classes),
        "calibration": measurement.calibration(found),
        "highest_loss": measurement.highest_loss(found, labels, classes, about),
    }


def _measure_sequences(checkpoint: Path, data: Path, part: str, cache: Path | None, report: Reporter) -> Measured:
    from dlcv_cli.config import SeqTrainConfig
    from dlcv_cli.sequences.cells import CELLS, checked
    from dlcv_cli.sequences.training import begin
    from dlcv_cli.stages.train_sequences import PACKAGES, known_task, runs_of
    from dlcv_cli.studies.sequences.compiled_kernels import prepare_kernels

    stored, file = tensors.read(checkpoint, tensors.CHECKPOINT), sequences.read(data)
    name = as_object(stored.metadata.get("config")).get("cell")
    if not isinstance(name, str) or name not in CELLS:
        raise FileError(checkpoint, f"is no checkpoint of a cell that this version knows ({name})")
    if stored.metadata.get("task") != file.task:
        raise DlcvError(
            f"{checkpoint} was trained for the task {stored.metadata.get('task')!r}, {data} is {file.task!r}"
        )
    chosen, task, cell = file.parts[part], known_task(file), CELLS[name]
    engine = SeqTrainConfig(engine="compiled" if cell.compiled else "torch")
    if cell.compiled:
        prepare_kernels(cache, report)
    try:
        runs = runs_of(stored)
        for run in runs.values():
            checked(cell, run, chosen.inputs.shape[1])
        answers = np.stack([begin(cell, run, engine).answers(chosen) for run in runs.values()])  # (K, N)
    except ValueError as error:
        raise FileError(checkpoint, f"damaged: {error}") from None
    _finite(checkpoint, answers)
    try:
        halves = np.array([task.knows_one(x) for x in np.split(chosen.inputs, np.cumsum(chosen.lengths)[:-1])])
    except IndexError:
        raise FileError(data, "damaged: a sequence in which nothing is marked") from None
    baselines = np.array([np.full_like(halves, task.constant), halves], np.float32)
    names = [f"constant {task.constant:g}", "knows one of the two"]
    content = measurement.sequences(answers, chosen.targets, baselines, names)
    by_run = content.pop("by_run")
    return Measured(
        "sequences",
        sequences.fingerprint(chosen),
        {
            **content,
            "collapse": collapse.of_numbers(answers, chosen.targets, task.constant, cell.module is not None),
            "by_length": regression_by_length(answers, chosen.targets, chosen.lengths),
            "seeds": list(runs),
            "per_seed": [{"seed": seed, **values} for seed, values in zip(runs, by_run, strict=True)],
        },
        {
            "predictions": answers[0] if len(runs) == 1 else answers,
            "targets": chosen.targets,
            "lengths": chosen.lengths,
            "baselines": baselines,
        },
        PACKAGES[engine.engine],
    )
