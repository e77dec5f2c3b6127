"""Predictions of other programs as rows of a comparison."""

from __future__ import annotations

from pathlib import Path

import msgspec

from dlcv_cli.errors import FileError
from dlcv_cli.files.disk import hash_file
from dlcv_cli.results.evaluation import Contamination, Trained
from dlcv_cli.results.metrics import InputFile, OutputFile
from dlcv_cli.stages.groups import Network
from dlcv_cli.stages.predictions_csv import read_predictions_csv
from dlcv_cli.studies import study_named
from dlcv_cli.studies.base import measure

ENDING = ".csv"
UNKNOWN = Contamination(
    checked=[], unchecked=[], unrecorded=[], examples=0, chosen=0, of=0, by_chance=False, allowed=False
)


def import_network(name: str, path: Path, evaluation_file: Path, like: Network) -> Network:
    """Return the predictions in a CSV as a network that was evaluated on the examples of another.

    Args:
        evaluation_file: of the network `like`, from which its data is located.

    Raises:
        FileError: the CSV, or the data, is not as it should be.
    """
    of = like.evaluation
    if of.trained.fold:
        raise FileError(path, f"cannot be compared with {like.name}, which is of a fold: use a split without folds")
    study = study_named(of.data.study)
    imported = read_predictions_csv(path, evaluation_file.parent / of.data.path, of.data.part)
    arrays = {**imported.arrays, **{key: like.arrays[key] for key in ("examples", "baselines")}}
    own, rules = study.score(arrays)
    complete = study.expected_arrays(of).keys() <= arrays.keys()  # answers alone have the metrics of baselines
    shown = [m for m in study.metrics if m.column.key in of.metrics and (complete or m.of_baselines)]
    metrics, intervals = measure(shown, own)
    digest = hash_file(path)
    evaluation = msgspec.structs.replace(
        of,
        trained=Trained(stage="imported", recipe=digest, seed=0, fold=None, examples=of.trained.examples),
        inputs={**of.inputs, "checkpoint": InputFile(path=path.name, sha256=digest)},
        metrics=metrics,
        intervals=intervals,
        collapse=study.judge(own, rules[0], study.class_names(of)),
        contamination=UNKNOWN,
        tries=0,
        predictions=OutputFile(path=path.name, sha256=digest),
    )
    return Network(name, evaluation, arrays)
