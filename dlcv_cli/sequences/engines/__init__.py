"""The engines, which compute the cells: one entry each in ENGINES."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import cast

from dlcv_cli.config import SeqTrainConfig
from dlcv_cli.sequences.cells import Cell, Parameters
from dlcv_cli.sequences.engines.base import Constant, Engine
from dlcv_cli.sequences.tasks import Sequences


@dataclass(frozen=True)
class EngineEntry:
    """One engine: where its class is (imported when first used, for a fast start), and how it computes."""

    module: str
    name: str
    package: str  # the library that it computes with; checkpoints record its version
    compiled: bool  # whether it uses kernels, which not every cell has, and which train several seeds in threads


ENGINES: dict[str, EngineEntry] = {
    "compiled": EngineEntry("dlcv_cli.sequences.engines.compiled", "Compiled", "numba", compiled=True),
    "torch": EngineEntry("dlcv_cli.sequences.engines.reference", "Reference", "torch", compiled=False),
}


def build_engine(
    cell: Cell, parameters: Parameters, config: SeqTrainConfig, train: Sequences | None = None
) -> Engine | Constant:
    """Return the engine of the settings for a cell with these weights; with `train`, ready to train on that data."""
    if cell.module is None:
        return Constant(parameters)
    entry = ENGINES[config.engine]
    engine = getattr(importlib.import_module(entry.module), entry.name)
    return cast("Engine", engine(cell, parameters, config, train))
