"""`dlcv eval`: the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dlcv_cli.cli.console import Terminal, print_json, say
from dlcv_cli.cli.options import UNCHECKED, CacheFolder, Force, Json, NoCache, configured
from dlcv_cli.cli.tables import line, render
from dlcv_cli.config import EvalConfig, Machine
from dlcv_cli.errors import SettingError, look_up


@configured(EvalConfig, Machine)
def evaluate(
    config: EvalConfig,
    machine: Machine,
    checkpoints: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINT...", help="One or many.", show_default=False, **UNCHECKED)
    ],
    cache: CacheFolder,
    comparing: Annotated[bool, typer.Option("--compare", help="One table of all, with the baseline.")] = False,
    table: Annotated[
        Literal["plain", "github", "latex", "csv", "json"], typer.Option("--format", help="Of the table.")
    ] = "plain",
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Split or sequence file, when not where it was.", **UNCHECKED)
    ] = None,
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="The images' folder, when not where it was.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="--compare: whom the others are tested against; default: the first."),
    ] = None,
    common: Annotated[
        bool, typer.Option("--common", help="--compare: on the examples they share, if measured on different ones.")
    ] = False,
    allow_contaminated: Annotated[
        bool, typer.Option("--allow-contaminated", help="Evaluate on examples that were trained on, and say so.")
    ] = False,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Evaluate checkpoints on the data they were trained with: NAME.PART.eval.json and predictions beside each."""
    from dlcv_cli.stages import evaluate as stage

    if not comparing and (reference or common):
        raise SettingError("--reference and --common go with --compare")
    names = short_names(checkpoints)
    if reference:
        look_up(dict.fromkeys(names), reference, "reference")
    if len({path.resolve() for path in checkpoints}) < len(checkpoints):
        raise SettingError("a checkpoint is given twice")
    done, report = [], Terminal()
    for path in checkpoints:
        kept = None if no_cache else cache
        outcome = stage.evaluate(
            path, config, data=data, root=root, machine=machine, force=force,
            allow_contaminated=allow_contaminated, cache=kept, report=report,
        )  # fmt: skip
        report.note(f"{outcome.output}: {'written' if outcome.made else 'up to date'}")
        done.append(outcome)
    as_json = as_json or table == "json"
    if comparing:
        from dlcv_cli.stages.compare import compare

        outputs = [outcome.output for outcome in done]
        comparison = compare(list(zip(names, outputs, strict=True)), reference=reference, common=common)
        print_json(comparison) if as_json else say(render(comparison, table))
    elif as_json:
        print_json([outcome.summary for outcome in done] if len(done) > 1 else done[0].summary)
    else:
        for path, outcome in zip(checkpoints, done, strict=True):
            say(f"{path}: {line(outcome.summary)}")


def short_names(paths: list[Path]) -> list[str]:
    """File names without ending where these tell the checkpoints apart, else their paths."""
    names = [path.name.removesuffix(".safetensors") for path in paths]
    return names if len(set(names)) == len(names) else [str(path).removesuffix(".safetensors") for path in paths]
