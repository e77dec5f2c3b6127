"""`dlcv data`: from folders of images to split files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from tabulate import tabulate

from dlcv_cli.cli.console import Terminal, print_json, print_outcome, say
from dlcv_cli.cli.options import UNCHECKED, Force, Json, OutputFile, OutputFolder, Root, SplitFile, configured
from dlcv_cli.config import DrawConfig, SplitConfig

app = typer.Typer(no_args_is_help=True, help="Images: divide a folder of class folders; built-in sets.")


@app.command("split")
@configured(SplitConfig)
def split(
    config: SplitConfig,
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="Folder of class folders.", show_default=False, **UNCHECKED)
    ],
    output: OutputFile,
    download: Annotated[
        bool, typer.Option("--download", help="caltech101: fetch it to ROOT if it is not there.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Divide images into train, val and test: FILE.split.json. Decodes every image once."""
    from dlcv_cli.stages import data

    outcome = data.split(root, output, config, download=download, force=force, report=Terminal())
    print_outcome(outcome, as_json, _counts(outcome.summary))


def _counts(summary: dict[str, Any]) -> str:
    parts = ", ".join(f"{part} {count:,}" for part, count in summary["counts"].items())
    return f"{len(summary['classes'])} classes: {parts}"


@app.command("show")
def show(split_file: SplitFile, root: Root = None, as_json: Json = False) -> None:
    """Print a split file's classes, the counts of each part, the smallest and the largest class."""
    from dlcv_cli.stages import data

    summary = data.show(split_file, root)
    if as_json:
        print_json(summary)
        return
    rows = [[name, *counts.values(), sum(counts.values())] for name, counts in summary["classes"].items()]
    total = ["all", *summary["counts"].values(), sum(summary["counts"].values())]
    say(tabulate([*rows, total], headers=["class", *summary["counts"], "all"]))
    for what in ("smallest", "largest"):
        chosen = summary[f"{what}_class"]
        say(f"{what} class: {chosen['name']} ({chosen['count']:,})")
    notes = [f"{summary[key]} {text}" for key, text in _NOTES.items() if summary[key]]
    if notes:
        say("; ".join(notes))


_NOTES = {
    "skipped": "unreadable images left out",
    "identical": "images under several names",
    "label_conflicts": "images in several classes",
}


@app.command("digits")
def digits(output: OutputFolder, force: Force = False, as_json: Json = False) -> None:
    """Write the built-in data set: 1,797 handwritten digits as class folders of PNGs."""
    from dlcv_cli.stages import data

    outcome = data.digits(output, force=force, report=Terminal())
    print_outcome(outcome, as_json, f"{outcome.summary['images']:,} images")


@app.command("draw")
@configured(DrawConfig)
def draw(config: DrawConfig, output: OutputFolder, force: Force = False, as_json: Json = False) -> None:
    """Write drawn figures as class folders of PNGs, to pretrain on without any download."""
    from dlcv_cli.stages import data

    outcome = data.draw(output, config, force=force, report=Terminal())
    print_outcome(outcome, as_json, f"{outcome.summary['images']:,} images")
