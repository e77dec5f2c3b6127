"""`dlcv demo`: both studies on built-in data, with the commands that a user would type."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer

from dlcv_cli.cli.console import say
from dlcv_cli.cli.options import FILES, ConfigFile

COMMANDS = r"""
data digits -o {o}/digits
data split {o}/digits -o {o}/digits.split.json --train-per-class 5 --val-per-class 20 --test-per-class 100
image head {o}/digits.split.json --arch vgg16_mini --batch-size 10 -o {o}/head.safetensors
image finetune {o}/digits.split.json --from {o}/head.safetensors --batch-size 10 --epochs 10 --lr 0.0003 \
    -o {o}/finetune.safetensors
image scratch {o}/digits.split.json --arch vgg16_mini --batch-size 10 --epochs 16 --lr 0.001 -o {o}/scratch.safetensors
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
LOG, REPORT = "demo.log", "report.html"
YOUR_PHOTOS = """
for your own photos, in one folder for each class:
  dlcv data split photos -o photos.split.json
  dlcv image head photos.split.json --recipe auto -o head.safetensors
  dlcv predict head.safetensors new-photo.jpg"""


class Recorder(io.StringIO):
    """What is printed, which also goes to the log at once: a demo that is killed leaves what it has printed."""

    def __init__(self, log: TextIO) -> None:
        super().__init__()
        self.log = log

    def write(self, text: str) -> int:
        self.log.write(text)
        self.log.flush()
        return super().write(text)


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.", rich_help_panel=FILES)
    ] = Path("dlcv-demo"),
    config_file: ConfigFile = None,
) -> None:
    """Run both studies on built-in data: each command as it runs, and at the end what came out (about a minute)."""
    output.mkdir(parents=True, exist_ok=True)
    path, tables = output / LOG, []
    with path.open("w", encoding="utf-8", errors="backslashreplace") as log:
        say(f"all that the commands print is in {path}")
        for line in COMMANDS.strip().replace("\\\n", "").splitlines():
            words = [word.format(o=output) for word in shlex.split(line)]
            typed = f"\n$ dlcv {shlex.join(words)}"
            say(typed)
            log.write(f"{typed}\n")
            lines = _run(words, log).splitlines()
            if len(lines) > 1:
                tables.append("\n".join(lines))
            say("compared: the table is at the end" if len(lines) > 1 else "".join(lines))
    for table in tables:
        say(f"\n{table}")
    say(f"\nopen {output / REPORT}\n{YOUR_PHOTOS}")


def _run(words: list[str], log: TextIO) -> str:
    """Run a command. Return what it prints on stdout; of its stderr, pass on what the user should act on.

    Raises:
        typer.Exit: it failed.
    """
    from dlcv_cli.cli.app import app

    out, err = Recorder(log), Recorder(log)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = typer.main.get_command(app).main(words, prog_name="dlcv", standalone_mode=False)
    for line in err.getvalue().splitlines():
        if line.startswith(("warning: ", "dlcv: ")):
            print(line, file=sys.stderr)
    if code:
        raise typer.Exit(code)
    return out.getvalue()
