"""`predict`: a checkpoint of any study and new files in, a prediction for each out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dlcv_cli.config import PredictConfig
from dlcv_cli.context import Context
from dlcv_cli.errors import SettingError
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import JSON, hash_file
from dlcv_cli.results.metrics import TrainingMetrics, read_metrics
from dlcv_cli.stages.show import list_settings
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


@dataclass(frozen=True)
class Checkpoint:
    """A trained network, by what its file says of it. Its weights are read when it predicts."""

    path: Path
    metadata: JSON = field(repr=False)

    @property
    def stage(self) -> str:
        """The stage that wrote it: `vgg.head`, `vgg.finetune`, `vgg.scratch`, `calibrate` or `seq.train`."""
        return str(self.metadata["stage"])

    @property
    def arch(self) -> str | None:
        """The name of an image network; None for a cell, whose name is `settings["cell"]`."""
        return self.metadata.get("arch")

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the logits; empty for a cell."""
        return list(self.metadata.get("classes", []))

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that it was trained with; those that a search chose have the value that was kept."""
        return {setting.name: setting.value for setting in list_settings(self.metadata)}

    @cached_property
    def metrics(self) -> TrainingMetrics:
        """How its training went, from the file beside it. FileError: that is missing, damaged or another's."""
        return read_metrics(self.path, hash_file(self.path))

    def predict(
        self,
        files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        top: int = 3,
        abstain: float | None = None,
        explain: Path | None = None,
        context: Context = Context(),
    ) -> Iterator[Prediction]:
        """Yield predictions as the stage `predict` does. The weights are read anew in each call: give many files.

        Args:
            files: images and folders of them, or CSV and JSON files of sequences; one, or several.
            top: how many of the most probable classes an image's prediction lists.
            abstain: share of wrong answers that a calibrated checkpoint may give; where it is not sure enough, the
                class is None.
        """
        several = [files] if isinstance(files, str | os.PathLike) else files
        config = PredictConfig(top=top, abstain=abstain)
        return predict(self.path, map(Path, several), config, explain=explain, context=context)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Return a checkpoint of any study. FileError: the file is missing, or is no checkpoint."""
    metadata = tensors.read_metadata(Path(path), tensors.CHECKPOINT)
    study_of(Path(path), metadata)
    return Checkpoint(Path(path), metadata)
