"""`predict`: a checkpoint of any study and new files in, a prediction for each out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from dlcv_cli.config import PredictConfig
from dlcv_cli.context import Context
from dlcv_cli.errors import SettingError
from dlcv_cli.files import tensors
from dlcv_cli.stages.training import warn_if_unpaired
from dlcv_cli.studies import study_of
from dlcv_cli.studies.base import Prediction


def predict(
    checkpoint: Path,
    files: Iterable[Path],
    config: PredictConfig,
    *,
    explain: Path | None = None,
    context: Context = Context(),
) -> Iterator[Prediction]:
    """Yield predictions for files, and for the images below folders, in their order and in constant memory.

    Args:
        explain: new or empty folder for a heat map of each image; `context.force` lets it have files.

    Raises:
        DlcvError: the checkpoint is damaged. What is wrong with a file is its prediction's `problem`.
    """
    if config.of_class and not explain:
        raise SettingError("--of-class says which class --explain draws heat maps of: give both")
    study = study_of(checkpoint, tensors.read_metadata(checkpoint, tensors.CHECKPOINT))
    warn_if_unpaired(checkpoint, context.reporter)
    yield from study.predict(checkpoint, files, config, explain, context)
