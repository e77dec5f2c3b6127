"""`dlcv demo`: both studies on built-in data, with the commands that a user would type."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from dlcv_cli.cli.options import FILES, ConfigFile

COMMANDS = r"""
data digits -o {o}/digits
data split {o}/digits -o {o}/digits.split.json --train-per-class 5 --val-per-class 20 --test-per-class 100
vgg head {o}/digits.split.json --arch vgg16_mini --batch-size 10 -o {o}/head.safetensors
vgg finetune {o}/digits.split.json --from {o}/head.safetensors --batch-size 10 --epochs 10 --lr 0.0003 \
    -o {o}/finetune.safetensors
vgg scratch {o}/digits.split.json --arch vgg16_mini --batch-size 10 --epochs 16 --lr 0.001 -o {o}/scratch.safetensors
eval --compare {o}/head.safetensors {o}/finetune.safetensors {o}/scratch.safetensors

seq gen -o {o}/adding.safetensors
seq train {o}/adding.safetensors --cell baseline -o {o}/baseline.safetensors
seq train {o}/adding.safetensors --cell elman -o {o}/elman.safetensors
seq train {o}/adding.safetensors --cell lstm -o {o}/lstm.safetensors
seq train {o}/adding.safetensors --cell gru -o {o}/gru.safetensors
eval --compare {o}/elman.safetensors {o}/lstm.safetensors {o}/gru.safetensors {o}/baseline.safetensors

report {o}/head.safetensors {o}/finetune.safetensors {o}/scratch.safetensors {o}/elman.safetensors \
    {o}/lstm.safetensors {o}/gru.safetensors {o}/baseline.safetensors -o {o}/report.html
"""


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.", rich_help_panel=FILES)
    ] = Path("dlcv-demo"),
    config_file: ConfigFile = None,
) -> None:
    """Run both studies on built-in data, printing each command as it runs (about a minute)."""
    from dlcv_cli.cli.app import app

    command = typer.main.get_command(app)
    for line in COMMANDS.strip().replace("\\\n", "").splitlines():
        words = [word.format(o=output) for word in shlex.split(line)]
        typer.echo(f"\n$ dlcv {shlex.join(words)}" if words else "")
        if words:
            code = command.main(words, prog_name="dlcv", standalone_mode=False)
            if code:
                raise typer.Exit(code)
