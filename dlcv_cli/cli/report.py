"""`dlcv report`: results as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlcv_cli.cli.console import Terminal, print_outcome
from dlcv_cli.cli.inputs import (
    AllowContaminated,
    Checkpoints,
    Common,
    DataFile,
    ImageFolder,
    Reference,
    name_checkpoints,
)
from dlcv_cli.cli.options import CacheFolder, Force, Json, NoCache, OutputFile, configured
from dlcv_cli.config import EvalConfig, Machine
from dlcv_cli.context import Context


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
    """Write one HTML page about checkpoints: metrics, learning curves, errors, pictures and lineage.

    Example: dlcv report head.safetensors finetune.safetensors -o report.html
    """
    from dlcv_cli.stages.report import ReportOptions, write_report

    names = name_checkpoints(checkpoints, reference)
    outcome = write_report(
        list(zip(names, checkpoints, strict=True)),
        output,
        config,
        options=ReportOptions(figures, reference, common, data, allow_contaminated),
        context=Context(machine, None if no_cache else cache, root, force, reporter=Terminal()),
    )
    print_outcome(outcome, as_json)
