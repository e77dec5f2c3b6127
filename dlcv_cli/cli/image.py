"""`dlcv vgg`, with the second name `dlcv image`: train image networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlcv_cli.cli.console import print_training
from dlcv_cli.cli.options import (
    UNCHECKED,
    CacheFolder,
    Force,
    Json,
    NoCache,
    OutputFile,
    Root,
    SplitFile,
    configured,
    context_from,
    example,
)
from dlcv_cli.config import FinetuneConfig, HeadConfig, ScratchConfig, TrainMachine
from dlcv_cli.vision.architectures import ARCHITECTURES

app = typer.Typer(no_args_is_help=True, help="Images: train a head, fine-tune, or start from random weights.")
CHOICES = {"arch": ARCHITECTURES}


@app.command("head", epilog=example("dlcv image head photos.split.json -o head.safetensors"))
@configured(HeadConfig, TrainMachine, choices=CHOICES)
def head(
    config: HeadConfig,
    machine: TrainMachine,
    split: SplitFile,
    output: OutputFile,
    cache: CacheFolder,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="imagenet (vgg16_mini: drawn), or a .pth, .safetensors or dlcv checkpoint.",
            show_default="imagenet; vgg16_mini: drawn",
        ),
    ] = None,
    root: Root = None,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train only a new classification layer on pretrained weights."""
    from dlcv_cli.stages.train_images import train_head

    context = context_from(machine, cache=cache, no_cache=no_cache, root=root, force=force)
    print_training(train_head(split, output, config, weights=weights, context=context), as_json)


@app.command(
    "finetune", epilog=example("dlcv image finetune photos.split.json --from head.safetensors -o finetune.safetensors")
)
@configured(FinetuneConfig, TrainMachine)
def finetune(
    config: FinetuneConfig,
    machine: TrainMachine,
    split: SplitFile,
    output: OutputFile,
    cache: CacheFolder,
    start: Annotated[Path, typer.Option("--from", metavar="FILE", help="Checkpoint to start from.", **UNCHECKED)],
    root: Root = None,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train more layers of a checkpoint, by default its last stage and its classifier."""
    from dlcv_cli.stages.train_images import train_finetune

    context = context_from(machine, cache=cache, no_cache=no_cache, root=root, force=force)
    print_training(train_finetune(split, output, config, start=start, context=context), as_json)


@app.command("scratch", epilog=example("dlcv image scratch photos.split.json -o scratch.safetensors"))
@configured(ScratchConfig, TrainMachine, choices=CHOICES)
def scratch(
    config: ScratchConfig,
    machine: TrainMachine,
    split: SplitFile,
    output: OutputFile,
    root: Root = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train all layers from random weights, for comparison."""
    from dlcv_cli.stages.train_images import train_scratch

    print_training(train_scratch(split, output, config, context=context_from(machine, root=root, force=force)), as_json)
