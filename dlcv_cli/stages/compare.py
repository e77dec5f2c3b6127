"""`eval --compare`: stored evaluations in, one comparison out. Nothing is computed that an evaluation has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dlcv_cli.errors import FileError
from dlcv_cli.files.disk import JSON
from dlcv_cli.results import documents as metrics
from dlcv_cli.results import predictions
from dlcv_cli.results.columns import Evaluated
from dlcv_cli.results.columns import compare as compared

COMPARISON = "dlcv.comparison/1"


def compare(evaluations: Sequence[tuple[str, Path]], *, reference: str | None = None, common: bool = False) -> JSON:
    """The `dlcv.comparison/1` document of (name, `*.eval.json`) pairs, from their stored predictions.

    Args:
        reference: the name that the others are tested against; None: the first.
        common: compare on the examples they share, where they were measured on different ones.

    Raises:
        DlcvError: a damaged file, predictions that are not the evaluation's, or evaluations of different data.
    """
    found = []
    for name, path in evaluations:
        document = metrics.read_eval(path)
        found.append(Evaluated(name, document, predictions.read(path, document)))
    known: dict[str, tuple[Path, Evaluated]] = {}
    for (_, path), one in zip(evaluations, found, strict=True):
        other_path, other = known.setdefault(one.document["data"]["fingerprint"], (path, one))
        for key in ("examples", "labels", "targets"):
            if not np.array_equal(one.arrays.get(key, ()), other.arrays.get(key, ())):
                raise FileError(
                    path, f"damaged: its {key} are not those of {other_path}, which has the same fingerprint"
                )
    return {"schema": COMPARISON, **compared(found, reference, common)}
