"""Reads stored evaluations and their predictions, checked against the study that they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dlcv_cli.errors import FileError
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import JSON, as_object, hash_file, read_json
from dlcv_cli.results.codec import decode
from dlcv_cli.results.evaluation import SCHEMA, AnyEvaluation, Evaluation
from dlcv_cli.studies import STUDIES, study_named
from dlcv_cli.studies.base import Array, Study


def read_evaluation(path: Path) -> AnyEvaluation:
    """Read an evaluation of any study. Raise FileError, naming the field, if anything in it is wrong."""
    document = read_json(path, SCHEMA)
    name = as_object(document.get("data")).get("study")
    if not isinstance(name, str) or name not in STUDIES:
        raise FileError(path, f"damaged: `$.data.study`: no study of this version ({name})")
    study = study_named(name)
    evaluation: AnyEvaluation = decode(path, Evaluation[study.details], document)  # type: ignore[name-defined]  # made at run time
    if problem := _find_problem(study, evaluation):
        raise FileError(path, f"damaged: {problem}; remove it and evaluate again")
    return evaluation


def _find_problem(study: Study[Any], evaluation: AnyEvaluation) -> str | None:
    """Return which of the study's metrics is missing or out of its range, if any is."""
    required = [m for m in study.metrics if not m.applies or m.column.key in evaluation.metrics]
    places = [("metrics", evaluation.metrics, evaluation.intervals, required)]
    for number, baseline in enumerate(evaluation.baselines):
        rules = [m for m in required if m.of_baselines]
        places.append((f"baselines[{number}].metrics", baseline.metrics, baseline.intervals, rules))
    for place, values, intervals, metrics in places:
        for metric in metrics:
            key, (low, high) = metric.column.key, metric.range
            if key not in values or not low <= values[key] <= high:
                return f"`$.{place}.{key}`: expected a number from {low:g} to {high:g}"
            if metric.interval and key not in intervals:
                return f"`$.{place.replace('metrics', 'intervals')}.{key}`: missing"
    return None


def list_new_metrics(path: Path, document: JSON, study: Study[Any]) -> list[str]:
    """Return the keys of metrics that the study has got since the evaluation at `path` was written."""
    absent = [metric for metric in study.metrics if metric.column.key not in as_object(document.get("metrics"))]
    new = [metric for metric in absent if not metric.applies]
    if absent and not new:
        evaluation = read_evaluation(path)
        scores, _ = study.score(read_predictions(path, evaluation))
        new = [metric for metric in absent if metric.applies and metric.applies(scores)]
    return [metric.column.key for metric in new]


def read_predictions(path: Path, evaluation: AnyEvaluation) -> tensors.Arrays:
    """Read the predictions that belong to the evaluation at `path`.

    Returns: the arrays that the study expects, and examples (N, 32) uint8, the sha256 of each.

    Raises:
        FileError: they are missing, belong to another evaluation, or are damaged.
    """
    file_path = path.with_name(Path(evaluation.predictions.path).name)
    remedy = "evaluate again with --force"
    if not file_path.is_file():
        raise FileError(file_path, f"no such file, but {path} needs it: {remedy}")
    if hash_file(file_path) != evaluation.predictions.sha256:
        raise FileError(file_path, f"is not the file that {path} was written with: {remedy}")
    file = tensors.read(file_path, tensors.PREDICTIONS)
    study = study_named(evaluation.data.study)
    expected = study.expected_arrays(evaluation) | {"examples": Array(np.uint8, (evaluation.data.n, 32))}
    for name, array in expected.items():
        values = tensors.get_array(file, name, array.dtype, len(array.shape))
        if values.shape != array.shape:
            raise FileError(file_path, f"damaged: {name} is {values.shape}, but its evaluation says {array.shape}")
        if array.below is not None and values.size and not 0 <= values.min() <= values.max() < array.below:
            raise FileError(file_path, f"damaged: {name} has values beyond its {array.below} classes")
    return {name: file.arrays[name] for name in expected}
