"""`dlcv data`: from folders of images to split files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    duplicates_page: Annotated[
        Path | None,
        typer.Option("--duplicates-page", metavar="FILE", help="Also show near-duplicates: FILE.html.", **IN_FILES),
    ] = None,
    as_json: Json = False,
) -> None:
    """Divide images into train, val and test: FILE.split.json. Every image is decoded once, to check it."""
    from dlcv_cli.stages.data import write_split

    if duplicates_page:
        from dlcv_cli.stages.duplicates_page import check_page, write_page

        check_page(duplicates_page)
    output = output or Path("runs", f"{root.resolve().name}.split.json")
    outcome = write_split(root, output, config, labels=labels, download=download, context=context)
    if duplicates_page:
        write_page(output, duplicates_page, context.force)
    counts = outcome.summary["counts"]
    if folds := outcome.summary.get("folds"):
        ranges = {part: sorted(own[part] for own in counts) for part in counts[0]}
        text = ", ".join(f"{part} {_format_range(own)}" for part, own in ranges.items())
        classes, images = len(outcome.summary["classes"]), outcome.summary["images"]
        text = f"{folds} folds of {images:,} images in {classes} classes: {text}"
    else:
        parts = ", ".join(f"{part} {count:,}" for part, count in counts.items())
        text = f"{len(outcome.summary['classes'])} classes: {parts}"
    print_outcome(outcome, as_json, text)


def _format_range(ordered: list[int]) -> str:
    low, high = f"{ordered[0]:,}", f"{ordered[-1]:,}"
    return low if low == high else f"{low} to {high}"


@app.command("show", epilog=example("dlcv data show photos.split.json"))
def show(split_file: SplitFile, root: Root = None, as_json: Json = False, config_file: ConfigFile = None) -> None:
    """Print a split file's classes with the number of images in each part."""
    from dlcv_cli.stages.data import describe_split

    summary = describe_split(split_file, root)
    if as_json:
        print_json(summary)
    elif "folds" in summary:
        _show_folds(summary)
    else:
        _show_parts(summary)
    notes = [f"{summary[key]} {text}" for key, text in _NOTES.items() if summary.get(key)]
    if notes and not as_json:
        say("; ".join(notes))


def _show_folds(summary: dict[str, Any]) -> None:
    """Print the images of each class, and the counts of each fold."""
    from tabulate import tabulate

    count, per_repeat = summary["folds"], summary["folds_per_repeat"]
    divisions = count // per_repeat if per_repeat else 0
    repeats = "each a random division" if not divisions else "every image is a test image in one of them"
    if divisions > 1:
        repeats = f"{divisions} divisions into {per_repeat}"
    say(tabulate([*summary["classes"].items(), ("all", summary["images"])], headers=["class", "images"]))
    say(f"{count} folds: {repeats}")
    rows = [[number, *own.values()] for number, own in enumerate(summary["counts"], 1)]
    say(tabulate(rows, headers=["fold", *summary["counts"][0]]))
    if groups := summary["groups"]:
        say(f"{groups:,} groups")


def _show_parts(summary: dict[str, Any]) -> None:
    """Print the images of each class in each part."""
    from tabulate import tabulate

    rows = [[name, *counts.values(), sum(counts.values())] for name, counts in summary["classes"].items()]
    total = ["all", *summary["counts"].values(), sum(summary["counts"].values())]
    say(tabulate([*rows, total], headers=["class", *summary["counts"], "all"]))
    for which in ("smallest", "largest"):
        extreme = summary[f"{which}_class"]
        say(f"{which} class: {extreme['name']} ({extreme['count']:,})")
    if groups := summary["groups"]:
        say(f"{sum(groups.values()):,} groups: {', '.join(f'{part} {count:,}' for part, count in groups.items())}")


_NOTES = {
    "skipped": "unreadable images skipped",
    "identical": "images under several names",
    "label_conflicts": "images in several classes",
    "in_several_parts": "images in several parts, byte for byte: a leak",
    "near_duplicates": "pairs of near-duplicates",
    "near_duplicates_across_parts": "of these pairs in two parts",
    "near_duplicates_across_classes": "of these pairs in two classes",
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
