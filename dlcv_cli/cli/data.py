"""`dlcv data`: from folders of images to split files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlcv_cli.cli.console import print_json, print_outcome, say
from dlcv_cli.cli.options import (
    IN_FILES,
    PLACES,
    UNCHECKED,
    ConfigFile,
    Json,
    OutputFile,
    OutputFolder,
    Root,
    SplitFile,
    Weights,
    configured,
    example,
    output_option,
)
from dlcv_cli.config import DoubtsConfig, DrawConfig, Machine, SplitConfig
from dlcv_cli.context import Context
from dlcv_cli.vision.architectures import ARCHITECTURES

TOP_PAIRS = 5  # of classes that are listed on the screen

app = typer.Typer(no_args_is_help=True, help="Divide images into parts; find wrong labels; write built-in images.")


@app.command("split", epilog=example("dlcv data split photos -o photos.split.json"))
@configured(SplitConfig)
def split(
    config: SplitConfig,
    context: Context,
    root: Annotated[
        Path,
        typer.Argument(
            metavar="ROOT", help="Folder with one folder per class, or train, val and test with such.", **UNCHECKED
        ),
    ],
    output: Annotated[Path | None, output_option("runs/ROOT.split.json")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            metavar="FILE",
            help="CSV that lists images below ROOT with their labels, and maybe parts and groups.",
            **(IN_FILES | UNCHECKED),
        ),
    ] = None,
    download: Annotated[
        bool,
        typer.Option("--download", help="caltech101: download it to ROOT if needed (137 MB).", **IN_FILES),
    ] = False,
    as_json: Json = False,
) -> None:
    """Divide images into train, val and test: FILE.split.json. Every image is decoded once, to check it."""
    from dlcv_cli.stages.data import write_split

    output = output or Path("runs", f"{root.resolve().name}.split.json")
    outcome = write_split(root, output, config, labels=labels, download=download, context=context)
    parts = ", ".join(f"{part} {count:,}" for part, count in outcome.summary["counts"].items())
    print_outcome(outcome, as_json, f"{len(outcome.summary['classes'])} classes: {parts}")


@app.command("show", epilog=example("dlcv data show photos.split.json"))
def show(split_file: SplitFile, root: Root = None, as_json: Json = False, config_file: ConfigFile = None) -> None:
    """Print a split file's classes with the number of images in each part."""
    from tabulate import tabulate

    from dlcv_cli.stages.data import describe_split

    summary = describe_split(split_file, root)
    if as_json:
        print_json(summary)
        return
    rows = [[name, *counts.values(), sum(counts.values())] for name, counts in summary["classes"].items()]
    total = ["all", *summary["counts"].values(), sum(summary["counts"].values())]
    say(tabulate([*rows, total], headers=["class", *summary["counts"], "all"]))
    for which in ("smallest", "largest"):
        extreme = summary[f"{which}_class"]
        say(f"{which} class: {extreme['name']} ({extreme['count']:,})")
    if groups := summary["groups"]:
        say(f"{sum(groups.values()):,} groups: {', '.join(f'{part} {count:,}' for part, count in groups.items())}")
    notes = [f"{summary[key]} {text}" for key, text in _NOTES.items() if summary[key]]
    if notes:
        say("; ".join(notes))


_NOTES = {
    "skipped": "unreadable images skipped",
    "identical": "images under several names",
    "label_conflicts": "images in several classes",
    "in_several_parts": "images in several parts, byte for byte: a leak",
}


@app.command("doubts", epilog=example("dlcv data doubts photos.split.json -o doubts.csv --page doubts.html"))
@configured(DoubtsConfig, Machine, places=PLACES, choices={"arch": ARCHITECTURES})
def doubts(
    config: DoubtsConfig,
    context: Context,
    split: SplitFile,
    output: OutputFile = Path("runs/doubts.csv"),
    weights: Weights = None,
    page: Annotated[
        Path | None,
        typer.Option("--page", metavar="FILE", help="Also write an HTML page of the images in doubt.", **IN_FILES),
    ] = None,
    as_json: Json = False,
) -> None:
    """List images whose label looks wrong. FILE has a row for every image, the most doubtful first."""
    from dlcv_cli.stages.label_doubts import find_label_doubts

    outcome = find_label_doubts(split, output, config, weights=weights, page=page, context=context)
    summary = outcome.summary
    print_outcome(outcome, as_json, f"{summary['doubts']:,} of {summary['images']:,} labels in doubt")
    if as_json:
        return
    for pair in summary["pairs"][:TOP_PAIRS]:
        say(f"{pair['images']:5,}  {pair['class']} that look like {pair['suggested']}")
    if len(summary["pairs"]) > TOP_PAIRS:
        say(f"       and {len(summary['pairs']) - TOP_PAIRS:,} more pairs of classes")
    if page:
        say(f"page: {page}")


@app.command("digits", epilog=example("dlcv data digits -o digits"))
@configured()
def digits(context: Context, output: OutputFolder = Path("runs/digits"), as_json: Json = False) -> None:
    """Write the built-in data set: 1,797 handwritten digits as class folders of PNGs."""
    from dlcv_cli.stages.data import write_digits

    outcome = write_digits(output, context=context)
    print_outcome(outcome, as_json, f"{outcome.summary['images']:,} images")


@app.command("draw", epilog=example("dlcv data draw --classes 50 -o figures"))
@configured(DrawConfig)
def draw(
    config: DrawConfig, context: Context, output: OutputFolder = Path("runs/figures"), as_json: Json = False
) -> None:
    """Write drawn figures as class folders of PNGs, for pretraining without any download."""
    from dlcv_cli.stages.data import write_drawings

    outcome = write_drawings(output, config, context=context)
    print_outcome(outcome, as_json, f"{outcome.summary['images']:,} images")
