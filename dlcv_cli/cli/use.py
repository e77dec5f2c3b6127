"""`dlcv calibrate`, `dlcv export` and `dlcv card`: make a checkpoint ready for use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlcv_cli.cli.console import print_outcome
from dlcv_cli.cli.evaluate import DataFile, ImageFolder
from dlcv_cli.cli.options import IN_FILES, PLACES, UNCHECKED, Json, configured
from dlcv_cli.config import Machine
from dlcv_cli.context import Context

Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint.", **UNCHECKED)]
Calibrated = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="File to write. Default: NAME.calibrated.safetensors.", **IN_FILES
    ),
]


@configured(Machine, places=PLACES | {"root": ImageFolder})
def calibrate(
    context: Context, checkpoint: Checkpoint, output: Calibrated = None, data: DataFile = None, as_json: Json = False
) -> None:
    """Fit a checkpoint's probabilities to its validation part: the same checkpoint with a temperature."""
    from dlcv_cli.files.disk import replace_ending
    from dlcv_cli.stages.calibrate import calibrate as stage

    output = output or replace_ending(checkpoint, ".calibrated.safetensors")
    outcome = stage(checkpoint, output, data=data, context=context)
    summary = outcome.summary
    changes = [
        f"{label} {100 * summary['before'][key]:.2f} % to {100 * summary['after'][key]:.2f} %"
        if key != "loss"
        else f"{label} {summary['before'][key]:.4g} to {summary['after'][key]:.4g}"
        for key, label in (("loss", "loss"), ("expected_calibration_error", "ECE"))
    ]
    text = f"temperature {summary['temperature']:.4g}; on validation: {', '.join(changes)}"
    print_outcome(outcome, as_json, text)
