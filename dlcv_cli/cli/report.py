"""`dlcv report`: results as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlcv_cli.cli.console import Terminal, print_outcome
from dlcv_cli.cli.evaluate import short_names
from dlcv_cli.cli.options import UNCHECKED, CacheFolder, Force, Json, NoCache, OutputFile, configured
from dlcv_cli.config import EvalConfig, Machine
from dlcv_cli.errors import SettingError, look_up


@configured(EvalConfig, Machine)
def report(
    config: EvalConfig,
    machine: Machine,
    checkpoints: Annotated[
        list[Path],
        typer.Argument(metavar="CHECKPOINT...", help="Checkpoints of any study.", show_default=False, **UNCHECKED),
    ],
    output: OutputFile,
    cache: CacheFolder,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write each figure as SVG, PDF and PNG, for papers.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Split or sequence file, if it has moved.", **UNCHECKED)
    ] = None,
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the images, if it has moved.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Network that the others are compared with; default: the first of each study."),
    ] = None,
    common: Annotated[
        bool, typer.Option("--common", help="Compare on the examples that all share, if they were evaluated on different ones.")
    ] = False,
    allow_contaminated: Annotated[
        bool, typer.Option("--allow-contaminated", help="Evaluate on training examples too, with a warning on the page.")
    ] = False,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write one HTML page about checkpoints: metrics, learning curves, errors, pictures and lineage.

    Example: dlcv report head.safetensors finetune.safetensors -o report.html
    """
    from dlcv_cli.context import Context
    from dlcv_cli.stages.report import ReportOptions, write_report

    if len({path.resolve() for path in checkpoints}) < len(checkpoints):
        raise SettingError("the same checkpoint is listed twice")
    names = short_names(checkpoints)
    if reference:
        look_up(dict.fromkeys(names), reference, "--reference")
    outcome = write_report(
        list(zip(names, checkpoints, strict=True)),
        output,
        config,
        options=ReportOptions(figures, reference, common, data, allow_contaminated),
        context=Context(machine, None if no_cache else cache, root, force, reporter=Terminal()),
    )
    print_outcome(outcome, as_json)
