"""The studies, one line each; a study is imported when it is first used. Imports neither torch nor numba."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlcv_cli.errors import FileError

if TYPE_CHECKING:
    from dlcv_cli.studies.base import Study

STUDIES = {
    "images": "dlcv_cli.studies.images.study:ImageStudy",
    "sequences": "dlcv_cli.studies.sequences.study:SequenceStudy",
}


def study_named(name: str) -> Study[Any]:
    """Return the study of that name. KeyError if this version has none."""
    module, _, kind = STUDIES[name].partition(":")
    study: Study[Any] = getattr(importlib.import_module(module), kind)()
    return study


def study_of(checkpoint: Path, metadata: Mapping[str, Any]) -> Study[Any]:
    """Return the study that a checkpoint belongs to, by the stage that wrote it. FileError if no study has it."""
    for name in STUDIES:
        study = study_named(name)
        if metadata.get("stage") in study.stages:
            return study
    raise FileError(checkpoint, f"is no checkpoint of a study that this version knows ({metadata.get('stage')})")
