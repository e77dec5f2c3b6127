"""`dlcv eval` and `dlcv report`: how good checkpoints are, and whether the differences between them are real."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from dlcv_cli.cli.console import print_json, print_outcome, say
from dlcv_cli.cli.options import IN_FILES, PLACES, UNCHECKED, Json, OutputFile, configured
from dlcv_cli.config import CompareConfig, EvalConfig, Machine, Part
from dlcv_cli.context import Context
from dlcv_cli.errors import SettingError

Checkpoints = Annotated[list[Path], typer.Argument(metavar="CHECKPOINT", help="Checkpoints.", **UNCHECKED)]
OR_CSV = "Checkpoints; with --compare also CSV files of other programs' predictions."
Compared = Annotated[list[Path], typer.Argument(metavar="CHECKPOINT", help=OR_CSV, **UNCHECKED)]
CSV = ".csv"  # predictions of other programs
MOVED = "Split or sequence file, if it has moved since the training."
DataFile = Annotated[Path | None, typer.Option("--data", metavar="FILE", help=MOVED, **(IN_FILES | UNCHECKED))]
ImageFolder = Annotated[
    Path | None,
    typer.Option("--root", metavar="DIR", help="Folder of the images, if it has moved.", **IN_FILES),
]
AllowContaminated = Annotated[
    bool, typer.Option("--allow-contaminated", help="Evaluate on examples that were trained on, with a warning.")
]
Compare = Annotated[bool, typer.Option("--compare", help="Print one table of all, with baselines and tests.")]
TableFormat = Annotated[
    Literal["plain", "github", "latex", "csv", "json"] | None,
    typer.Option("--format", help="With --compare: format of the table.", show_default="plain"),
]
PerClass = Annotated[
    Path | None,
    typer.Option("--per-class", metavar="FILE", help="Also write a CSV file with a row for each class.", **IN_FILES),
]
PerImage = Annotated[
    Path | None,
    typer.Option("--per-image", metavar="FILE", help="Also write a CSV file with a row for each image.", **IN_FILES),
]
SplitOption = Annotated[Part | None, typer.Option("--split", hidden=True, help="Older name of --part.")]


@configured(EvalConfig, CompareConfig, Machine, places=PLACES | {"root": ImageFolder})
def evaluate(
    config: EvalConfig,
    how: CompareConfig,
    context: Context,
    checkpoints: Compared,
    compare: Compare = False,
    table: TableFormat = None,
    data: DataFile = None,
    allow_contaminated: AllowContaminated = False,
    per_class: PerClass = None,
    per_image: PerImage = None,
    split: SplitOption = None,
    as_json: Json = False,
) -> None:
    """Evaluate checkpoints: NAME.PART.eval.json and predictions beside each."""
    from dlcv_cli.cli.tables import describe, render
    from dlcv_cli.results.codec import encode
    from dlcv_cli.stages import evaluate as stage

    if not compare and (table or how != CompareConfig()):
        raise SettingError("--reference, --no-group, --margin, --common and --format need --compare")
    if (per_class or per_image) and len(checkpoints) > 1:
        raise SettingError("--per-class and --per-image are of one checkpoint: give one")
    checkpoints = leave_out_predictions(checkpoints)
    names = name_checkpoints(checkpoints, how.reference)
    config = replace(config, part=split) if split else config
    results, outputs = [], list[Path]()
    for path in checkpoints:
        if compare and path.suffix.lower() == CSV:
            outputs.append(path)
            continue
        result = stage.evaluate(path, config, data=data, allow_contaminated=allow_contaminated, context=context)
        context.reporter.note(f"{result.output}: {'written' if result.made else 'up to date'}")
        results.append(result)
        outputs.append(result.output)
        stage.write_tables(result, per_class, per_image, context.force)
    if compare:
        from dlcv_cli.stages.compare import compare as compare_evaluations

        comparison = compare_evaluations([*zip(names, outputs, strict=True)], how)
        as_json = as_json or table == "json"
        print_json(encode(comparison)) if as_json else say(render(comparison, table or "plain"))
        return
    if as_json:
        documents = [encode(result.evaluation) for result in results]
        print_json(documents if len(documents) > 1 else documents[0])
        return
    for path, result in zip(checkpoints, results, strict=True):
        say(f"{path}: {describe(result.evaluation)}")


@configured(EvalConfig, CompareConfig, Machine, places=PLACES | {"root": ImageFolder})
def report(
    config: EvalConfig,
    how: CompareConfig,
    context: Context,
    checkpoints: Checkpoints,
    output: OutputFile = Path("runs/report.html"),
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write each figure as SVG, PDF and PNG, for papers.")
    ] = None,
    data: DataFile = None,
    allow_contaminated: AllowContaminated = False,
    as_json: Json = False,
) -> None:
    """Write one HTML page about checkpoints: metrics, learning curves, errors, pictures and lineage."""
    from dlcv_cli.stages.report import ReportOptions, write_report

    checkpoints = leave_out_predictions(checkpoints)
    names = name_checkpoints(checkpoints, how.reference)
    outcome = write_report(
        list(zip(names, checkpoints, strict=True)),
        output,
        config,
        options=ReportOptions(figures, how, data, allow_contaminated),
        context=context,
    )
    print_outcome(outcome, as_json)


def leave_out_predictions(paths: list[Path]) -> list[Path]:
    """Return the paths without predictions of checkpoints among them, which `head.seed*.safetensors` matches too."""
    listed = {*paths}
    made = re.compile(rf"\.({'|'.join(get_args(Part))})\.predictions\.safetensors$")
    return [path for path in paths if path.with_name(made.sub(".safetensors", path.name)) not in listed - {path}]


def name_checkpoints(paths: list[Path], reference: str | None) -> list[str]:
    """Return a name for each checkpoint: its file's without ending if these differ, else its path.

    Raises:
        SettingError: a checkpoint is listed twice, or no row has the reference's name.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise SettingError("a checkpoint is listed twice")
    names = [re.sub(rf"(\.safetensors|{re.escape(CSV)})$", "", path.name) for path in paths]
    if len(set(names)) < len(names):
        names = [str(path).removesuffix(".safetensors") for path in paths]
    if reference:
        from dlcv_cli.stages.groups import check_reference

        check_reference([*zip(names, paths, strict=True)], reference)
    return names
