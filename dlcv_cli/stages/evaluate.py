"""`eval`: a checkpoint of any study in, its metrics and predictions on one part of the data out."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dlcv_cli.config import EvalConfig
from dlcv_cli.context import Context, Reporter
from dlcv_cli.errors import DlcvError, ExistsError, FileError, list_names
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import JSON, as_object, check_output, hash_file, read_json, replace_ending, write_whole
from dlcv_cli.files.locks import claim_outputs
from dlcv_cli.files.recipes import Input, Recipe, RunInfo, identify_run, refuse_overwrite
from dlcv_cli.results.codec import write_document
from dlcv_cli.results.evaluation import SCHEMA, AnyEvaluation, Contamination, Data, Evaluation, ImageDetails, Trained
from dlcv_cli.results.metrics import InputFile, OutputFile
from dlcv_cli.stages.lineage import check_contamination, report_contamination
from dlcv_cli.stages.training import warn_if_unpaired
from dlcv_cli.studies import study_named, study_of
from dlcv_cli.studies.base import Measured, Study, summarize
from dlcv_cli.studies.stored import list_new_metrics, read_evaluation, read_predictions

EARLIER_SCHEMAS = ("dlcv.eval/1", "dlcv.eval/2")


@dataclass(frozen=True)
class Evaluated:
    """An evaluation, its file, and whether it was written just now."""

    output: Path
    made: bool
    evaluation: AnyEvaluation


def evaluate(
    checkpoint: Path,
    config: EvalConfig,
    *,
    data: Path | None = None,
    allow_contaminated: bool = False,
    context: Context = Context(),
) -> Evaluated:
    """Write `NAME.PART.eval.json` and `NAME.PART.predictions.safetensors` beside a checkpoint.

    The data is the file that it was trained with, or `data` and the context's root if it has moved. An evaluation of
    other data, or of an earlier checkpoint of that name, is out of date and is replaced.

    Raises:
        DlcvError: a damaged input, data that is missing or changed, a file of another kind under the output's name, or
            examples that the checkpoint or an ancestor was trained on (unless allowed, or `train` is evaluated).
    """
    reporter, part = context.reporter, config.part
    task = _plan(checkpoint, config, data, context)
    stored = None if context.force else _load_current(task, reporter)
    if stored:
        if context.root:
            task.study.check_files(task.data, identify_run(task.metadata).fold, part, context)
        report_contamination(checkpoint, stored.contamination, part, allow_contaminated, reporter)
        _note_near_duplicates(stored, reporter)
        return Evaluated(task.output, False, stored)
    with claim_outputs(task.output, task.predictions):
        run = RunInfo()
        examples, leak = check_contamination(task.study, checkpoint, task.metadata, task.data, part, allow_contaminated)
        report_contamination(checkpoint, leak, part, allow_contaminated, reporter)
        measured = task.study.measure(checkpoint, task.data, part, task.context)
        evaluation = _write(task, run, measured, examples, leak)
        _note_near_duplicates(evaluation, reporter)
        return Evaluated(task.output, True, evaluation)


def _note_near_duplicates(evaluation: AnyEvaluation, reporter: Reporter) -> None:
    """Say how many of the images have a near-duplicate in the training part, and what the others give."""
    if not isinstance(evaluation.details, ImageDetails) or not (near := evaluation.details.near_duplicates):
        return
    share = "" if near.top1_accuracy is None else f"; top-1 accuracy is {100 * near.top1_accuracy:.2f} % on the others"
    reporter.note(
        f"{near.n:,} of the {evaluation.data.n:,} {evaluation.data.part} images have a near-duplicate in the training "
        f"part of {Path(evaluation.data.path).name}{share}"
    )


@dataclass(frozen=True)
class _Task:
    """What is to be evaluated, and where the two outputs go."""

    study: Study[Any]
    metadata: JSON  # of the checkpoint
    data: Path
    context: Context  # with the folder of the images
    recipe: Recipe
    output: Path
    predictions: Path


def _plan(checkpoint: Path, config: EvalConfig, data: Path | None, context: Context) -> _Task:
    """Return the task after all cheap checks of its inputs and outputs."""
    metadata = tensors.read_metadata(checkpoint, tensors.CHECKPOINT)
    study = study_of(checkpoint, metadata)
    warn_if_unpaired(checkpoint, context.reporter)
    source, located = locate_data(checkpoint, metadata, data, context)
    inputs = {"checkpoint": Input(hash_file(checkpoint), checkpoint), "data": Input(hash_file(source), source)}
    recipe = Recipe("eval", config, inputs)
    output = replace_ending(checkpoint, f".{config.part}.eval.json")
    predictions = replace_ending(checkpoint, f".{config.part}.predictions.safetensors")
    refuse_overwrite(predictions, recipe, lambda path: tensors.read_metadata(path, tensors.PREDICTIONS), context.force)
    refuse_overwrite(output, recipe, _read_any_schema, context.force)
    return _Task(study, metadata, source, located, recipe, output, predictions)


def _read_any_schema(path: Path) -> JSON:
    """Return an evaluation of this version or an earlier version. FileError: it is no evaluation."""
    for schema in EARLIER_SCHEMAS:
        with contextlib.suppress(FileError):
            return read_json(path, schema)
    return read_json(path, SCHEMA)


def _load_current(task: _Task, reporter: Reporter) -> AnyEvaluation | None:
    """Return the stored evaluation if it is up to date; otherwise None, with a note of the reason."""
    if not task.output.exists():
        return None
    document = _read_any_schema(task.output)
    digest = as_object(document.get("predictions")).get("sha256")
    if document["schema"] in EARLIER_SCHEMAS:
        reporter.note(f"{task.output}: written by an earlier version; evaluating again")
    elif differences := task.recipe.differences(document):
        reporter.note(f"{task.output}: out of date ({'; '.join(differences)}); evaluating again")
    elif not task.predictions.is_file() or hash_file(task.predictions) != digest:
        reporter.note(f"{task.predictions}: missing or changed; evaluating again")
    elif new := list_new_metrics(task.output, document, task.study):
        reporter.note(f"{task.output}: written before there was {list_names(new)}; evaluating again")
    else:
        return read_evaluation(task.output)
    return None


def _write(task: _Task, run: RunInfo, measured: Measured, examples: list[str], leak: Contamination) -> AnyEvaluation:
    """Write the predictions, then the evaluation that carries their sha256, which is returned."""
    recipe = task.recipe.to_json(task.output.parent)
    part, path = recipe["config"]["part"], recipe["inputs"]["data"]["path"]
    data = Data(study=task.study.name, part=part, n=len(examples), path=path, fingerprint=measured.fingerprint)
    digests = np.frombuffer(bytes.fromhex("".join(examples)), np.uint8).reshape(-1, 32)
    arrays = {**measured.arrays, "examples": digests}
    tensors.write(task.predictions, tensors.PREDICTIONS, arrays, {**recipe, "data": msgspec.to_builtins(data)})
    tries = task.metadata.get("tries")
    own = identify_run(task.metadata)
    trained = Trained(
        stage=str(task.metadata.get("stage")), recipe=own.recipe, seed=own.seed, fold=own.fold,
        examples=measured.trained,
    )  # fmt: skip
    evaluation: AnyEvaluation = Evaluation(
        **recipe | {"inputs": msgspec.convert(recipe["inputs"], dict[str, InputFile])},
        data=data,
        trained=trained,
        **vars(summarize(task.study, measured.arrays, measured.baselines)),
        collapse=measured.collapse,
        details=measured.details,
        contamination=leak,
        tries=tries if type(tries) is int and tries > 0 else 0,
        predictions=OutputFile(path=task.predictions.name, sha256=hash_file(task.predictions)),
        run=run.to_json(*measured.packages, **measured.machine),
    )
    write_document(task.output, evaluation)
    return evaluation


def locate_data(checkpoint: Path, metadata: JSON, data: Path | None, context: Context) -> tuple[Path, Context]:
    """Return the data that a checkpoint was trained with, and the context with the root that it was trained in.

    Args:
        data: stands for the path in the checkpoint, whose file must be unchanged.

    Raises:
        FileError: the data is missing or has changed, or the checkpoint does not say what it was.
    """
    try:
        recorded = metadata["inputs"][study_of(checkpoint, metadata).data_role]
        path, digest, root = data or checkpoint.parent / recorded["path"], recorded["sha256"], recorded.get("root")
    except (KeyError, TypeError, AttributeError):
        raise FileError(checkpoint, "damaged: its metadata does not say what it was trained with") from None
    if not path.is_file():
        raise FileError(path, f"no such file, but {checkpoint} was trained with it: give its place with --data")
    if hash_file(path) != digest:
        if data is None:
            raise FileError(path, f"has changed since {checkpoint} was trained with it: restore it, or use --data")
        context.reporter.note(f"{path} is not the file that {checkpoint} was trained with")
    if context.root or data or not isinstance(root, str):
        return path, context
    return path, replace(context, root=checkpoint.parent / root)


def write_tables(result: Evaluated, per_class: Path | None, per_image: Path | None, force: bool) -> None:
    """Write the classes, and the images, of an evaluation as CSV files.

    Raises:
        DlcvError: a file exists with other content (unless `force`), the data is gone, or the study has no such rows.
    """
    evaluation = result.evaluation
    study = study_named(evaluation.data.study)
    for path in filter(None, (per_class, per_image)):
        check_output(path, ".csv")
    if per_class:
        _write_csv(per_class, study.list_classes(evaluation), force)
    if per_image:
        arrays = read_predictions(result.output, evaluation)
        data = result.output.parent / evaluation.data.path
        checkpoint = result.output.parent / str(evaluation.inputs["checkpoint"].path)
        fold = identify_run(tensors.read_metadata(checkpoint, tensors.CHECKPOINT)).fold
        _write_csv(per_image, study.list_examples(data, fold, evaluation, arrays), force)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]], force: bool) -> None:
    write_text(path, format_csv(rows), force)


def format_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows, of which there is at least one, as CSV with a heading."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_text(path: Path, text: str, force: bool) -> bool:
    """Write a text file whole; return whether it is new or other than before. DlcvError: as `require_replaceable`."""
    require_replaceable(path, text, force)
    content = _encode(text)
    if path.exists() and path.read_bytes() == content:
        return False
    with write_whole(path) as temporary:
        temporary.write_bytes(content)
    return True


def require_replaceable(path: Path, text: str, force: bool) -> None:
    """Raise DlcvError if a path is a folder, or exists with other content than this text (unless `force`)."""
    if path.is_dir():
        raise DlcvError(f"{path}: is a folder; give a file name")
    if path.exists() and not force and path.read_bytes() != _encode(text):
        raise ExistsError(path, ["it has other content"])


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
