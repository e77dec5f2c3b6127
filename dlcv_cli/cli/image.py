"""`dlcv vgg`: train image networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlcv_cli.cli.console import Terminal, describe_record, print_outcome
from dlcv_cli.cli.options import UNCHECKED, CacheFolder, Force, Json, NoCache, OutputFile, Root, SplitFile, configured
from dlcv_cli.config import FinetuneConfig, HeadConfig, ScratchConfig, TrainMachine
from dlcv_cli.context import Outcome
from dlcv_cli.vision.architectures import ARCHITECTURES

app = typer.Typer(no_args_is_help=True, help="Images: train a head, fine-tune, or start from random weights.")
CHOICES = {"arch": ARCHITECTURES}


@app.command("head")
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
    from dlcv_cli.stages import train_images as vgg

    kept = None if no_cache else cache
    outcome = vgg.head(
        split, output, config, source=weights, root=root, machine=machine, force=force, cache=kept, report=Terminal()
    )
    _print(outcome, as_json)


@app.command("finetune")
@configured(FinetuneConfig, TrainMachine)
def finetune(
    config: FinetuneConfig,
    machine: TrainMachine,
    split: SplitFile,
    output: OutputFile,
    cache: CacheFolder,
    start: Annotated[
        Path,
        typer.Option("--from", metavar="FILE", help="Checkpoint to go on from.", show_default=False, **UNCHECKED),
    ],
    root: Root = None,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Go on from a head: all fully connected layers and the last convolution train."""
    from dlcv_cli.stages import train_images as vgg

    kept = None if no_cache else cache
    outcome = vgg.finetune(
        split, output, config, source=start, root=root, machine=machine, force=force, cache=kept, report=Terminal()
    )
    _print(outcome, as_json)


@app.command("scratch")
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
    """Train all layers from random weights, for contrast."""
    from dlcv_cli.stages import train_images as vgg

    _print(vgg.scratch(split, output, config, root=root, machine=machine, force=force, report=Terminal()), as_json)


def _print(outcome: Outcome, as_json: bool) -> None:
    print_outcome(outcome, as_json, f"best {describe_record(outcome.summary)}")
