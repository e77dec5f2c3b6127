"""`dlcv report`: results as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlcv_cli.cli.console import print_outcome
from dlcv_cli.cli.inputs import (
    AllowContaminated,
    Checkpoints,
    Common,
    DataFile,
    ImageFolder,
    Reference,
    name_checkpoints,
)
from dlcv_cli.cli.options import CacheFolder, Force, Json, NoCache, OutputFile, configured, context_from
from dlcv_cli.config import EvalConfig, Machine


@configured(EvalConfig, Machine)
def report(
    config: EvalConfig,
    machine: Machine,
    checkpoints: Checkpoints,
    output: OutputFile,
    cache: CacheFolder,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write each figure as SVG, PDF and PNG, for papers.")
    ] = None,
    data: DataFile = None,
    root: ImageFolder = None,
    reference: Reference = None,
    common: Common = False,
    allow_contaminated: AllowContaminated = False,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write one HTML page about checkpoints: metrics, learning curves, errors, pictures and lineage."""
    from dlcv_cli.stages.report import ReportOptions, write_report

    names = name_checkpoints(checkpoints, reference)
    outcome = write_report(
        list(zip(names, checkpoints, strict=True)),
        output,
        config,
        options=ReportOptions(figures, reference, common, data, allow_contaminated),
        context=context_from(machine, cache=cache, no_cache=no_cache, root=root, force=force),
    )
    print_outcome(outcome, as_json)
