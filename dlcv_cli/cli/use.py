"""`dlcv calibrate`, `dlcv export` and `dlcv card`: make a checkpoint ready for use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlcv_cli.cli.console import print_outcome, say
from dlcv_cli.cli.evaluate import DataFile, ImageFolder
from dlcv_cli.cli.options import FORCE, IN_FILES, PLACES, UNCHECKED, CacheFolder, Json, configured
from dlcv_cli.config import ExportConfig, Machine
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
    from dlcv_cli.files.disk import replace_ending, require_file
    from dlcv_cli.stages.calibrate import calibrate as stage

    require_file(checkpoint)
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


Exported = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE|DIR",
        help="File to write, or folder for timm. Default: NAME.onnx, NAME.pt, NAME-timm.",
        **IN_FILES,
    ),
]
ENDINGS = {"onnx": ".onnx", "torchscript": ".pt", "timm": "-timm"}


@configured(ExportConfig, places={"cache": CacheFolder, "root": ImageFolder, **FORCE})
def export(
    config: ExportConfig,
    context: Context,
    checkpoint: Checkpoint,
    output: Exported = None,
    data: DataFile = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint for other programs, preprocessing included, and compare it with the checkpoint first."""
    from dlcv_cli.files.disk import replace_ending, require_file
    from dlcv_cli.stages.export import export as stage

    require_file(checkpoint)
    output = output or replace_ending(checkpoint, ENDINGS[config.format])
    outcome = stage(checkpoint, output, config, data=data, context=context)
    text = ""
    if outcome.made:
        first, *others = outcome.summary["differences"].items()
        pairs = [f"{what} by at most {value:.1g}" for what, value in others]
        text = f"in float32, on {outcome.summary['checked_on']}: {first[0]} differ by at most {first[1]:.1g}"
        text = ", ".join([text, *pairs])
    print_outcome(outcome, as_json, text)


CardFile = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="File to write, with the ending .md. Default: print it.", **IN_FILES
    ),
]


@configured()
def card(context: Context, checkpoint: Checkpoint, output: CardFile = None) -> None:
    """Write a model card: what a checkpoint is, what it achieves, and how it was made and is used."""
    from dlcv_cli.files.disk import check_output
    from dlcv_cli.stages.card import write_card
    from dlcv_cli.stages.evaluate import write_text

    if output:
        check_output(output, ".md")
    text = write_card(checkpoint)
    if not output:
        say(text.rstrip("\n"))
        return
    write_text(output, text, context.force)
    say(f"wrote {output}")
