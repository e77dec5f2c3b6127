"""`dlcv report`: what came out, in pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlcv_cli.cli.console import Terminal, print_outcome
from dlcv_cli.cli.inputs import name_checkpoints
from dlcv_cli.cli.options import UNCHECKED, CacheFolder, Force, Json, NoCache, OutputFile, configured
from dlcv_cli.config import EvalConfig, Machine


@configured(EvalConfig, Machine)
def report(
    config: EvalConfig,
    machine: Machine,
    checkpoints: Annotated[
        list[Path],
        typer.Argument(metavar="CHECKPOINT...", help="Of one study, or of both.", show_default=False, **UNCHECKED),
    ],
    output: OutputFile,
    cache: CacheFolder,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each figure as SVG, PDF and PNG too, for papers.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Split or sequence file, when not where it was.", **UNCHECKED)
    ] = None,
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="The images' folder, when not where it was.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whom the others are tested against; default: the first of each study."),
    ] = None,
    common: Annotated[
        bool, typer.Option("--common", help="Compare on the examples they share, if measured on different ones.")
    ] = False,
    allow_contaminated: Annotated[
        bool, typer.Option("--allow-contaminated", help="Measure on examples that were trained on, and say so.")
    ] = False,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write one HTML page of checkpoints: comparison, curves, confusions, calibration, pictures, the line of files."""
    from dlcv_cli.stages.report import write_report

    names = name_checkpoints(checkpoints, reference)
    outcome = write_report(
        list(zip(names, checkpoints, strict=True)),
        output,
        config,
        figures_folder=figures,
        reference=reference,
        common=common,
        data=data,
        root=root,
        machine=machine,
        force=force,
        allow_contaminated=allow_contaminated,
        cache=None if no_cache else cache,
        report=Terminal(),
    )
    print_outcome(outcome, as_json)
