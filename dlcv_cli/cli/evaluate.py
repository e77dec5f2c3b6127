"""`dlcv eval`: how good checkpoints are, and whether the differences between them are real."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import typer

from dlcv_cli.cli.console import print_json, say
from dlcv_cli.cli.inputs import (
    AllowContaminated,
    Checkpoints,
    Common,
    DataFile,
    ImageFolder,
    Reference,
    name_checkpoints,
)
from dlcv_cli.cli.options import CacheFolder, Force, Json, NoCache, configured, context_from
from dlcv_cli.config import EvalConfig, Machine, Part
from dlcv_cli.errors import SettingError

Compare = Annotated[bool, typer.Option("--compare", help="Print one table of all, with baselines and tests.")]
TableFormat = Annotated[
    Literal["plain", "github", "latex", "csv", "json"] | None,
    typer.Option("--format", help="With --compare: format of the table.", show_default="plain"),
]
SplitOption = Annotated[Part | None, typer.Option("--split", hidden=True, help="Older name of --part.")]


@configured(EvalConfig, Machine)
def evaluate(
    config: EvalConfig,
    machine: Machine,
    checkpoints: Checkpoints,
    cache: CacheFolder,
    compare: Compare = False,
    table: TableFormat = None,
    data: DataFile = None,
    root: ImageFolder = None,
    reference: Reference = None,
    common: Common = False,
    allow_contaminated: AllowContaminated = False,
    split: SplitOption = None,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Evaluate checkpoints: NAME.PART.eval.json and predictions beside each."""
    from dlcv_cli.cli.tables import describe, render
    from dlcv_cli.results.codec import encode
    from dlcv_cli.stages import evaluate as stage

    if not compare and (reference or common or table):
        raise SettingError("--reference, --common and --format need --compare")
    names = name_checkpoints(checkpoints, reference)
    config = replace(config, part=split) if split else config
    context = context_from(machine, cache=cache, no_cache=no_cache, root=root, force=force)
    results = []
    for path in checkpoints:
        result = stage.evaluate(path, config, data=data, allow_contaminated=allow_contaminated, context=context)
        context.reporter.note(f"{result.output}: {'written' if result.made else 'up to date'}")
        results.append(result)
    if compare:
        from dlcv_cli.stages.compare import compare as compare_evaluations

        outputs = [(name, result.output) for name, result in zip(names, results, strict=True)]
        comparison = compare_evaluations(outputs, reference=reference, common=common)
        as_json = as_json or table == "json"
        print_json(encode(comparison)) if as_json else say(render(comparison, table or "plain"))
        return
    if as_json:
        documents = [encode(result.evaluation) for result in results]
        print_json(documents if len(documents) > 1 else documents[0])
        return
    for path, result in zip(checkpoints, results, strict=True):
        say(f"{path}: {describe(result.evaluation)}")
