"""`dlcv vgg`, with the second name `dlcv image`: train image networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlcv_cli.cli.console import print_trainings
from dlcv_cli.cli.options import (
    FORCE,
    LOGS,
    PLACES,
    UNCHECKED,
    Json,
    OutputFile,
    Root,
    SplitFile,
    Weights,
    configured,
    example,
)
from dlcv_cli.config import FinetuneConfig, HeadConfig, ScratchConfig, TrainMachine
from dlcv_cli.context import Context
from dlcv_cli.vision.architectures import ARCHITECTURES

app = typer.Typer(no_args_is_help=True, help="Images: train a head, fine-tune, or start from random weights.")
CHOICES = {"arch": ARCHITECTURES}


@app.command("head", epilog=example("dlcv image head photos.split.json -o head.safetensors"))
@configured(HeadConfig, TrainMachine, places=PLACES | LOGS, choices=CHOICES)
def head(
    config: HeadConfig,
    context: Context,
    split: SplitFile,
    output: OutputFile = Path("runs/head.safetensors"),
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Train only a new classification layer on pretrained weights."""
    from dlcv_cli.stages.train_images import train_image_runs

    print_trainings(train_image_runs(split, output, config, weights=weights, context=context), as_json)


@app.command(
    "finetune", epilog=example("dlcv image finetune photos.split.json --from head.safetensors -o finetune.safetensors")
)
@configured(FinetuneConfig, TrainMachine, places=PLACES | LOGS)
def finetune(
    config: FinetuneConfig,
    context: Context,
    split: SplitFile,
    start: Annotated[
        Path,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Checkpoint to start from; of several runs, also the name that their own follow from.",
            **UNCHECKED,
        ),
    ],
    output: OutputFile = Path("runs/finetune.safetensors"),
    as_json: Json = False,
) -> None:
    """Train more layers of a checkpoint, by default its last stage and its classifier."""
    from dlcv_cli.stages.train_images import train_image_runs

    print_trainings(train_image_runs(split, output, config, start=start, context=context), as_json)


@app.command("scratch", epilog=example("dlcv image scratch photos.split.json -o scratch.safetensors"))
@configured(ScratchConfig, TrainMachine, places={"root": Root, **FORCE, **LOGS}, choices=CHOICES)
def scratch(
    config: ScratchConfig,
    context: Context,
    split: SplitFile,
    output: OutputFile = Path("runs/scratch.safetensors"),
    as_json: Json = False,
) -> None:
    """Train all layers from random weights, for comparison."""
    from dlcv_cli.stages.train_images import train_image_runs

    print_trainings(train_image_runs(split, output, config, context=context), as_json)
