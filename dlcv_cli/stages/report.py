"""`report`: checkpoints of one study or of both in, one HTML page out, and figures for papers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache as cached
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dlcv_cli.config import EvalConfig, Machine
from dlcv_cli.context import Context, Outcome, Reporter
from dlcv_cli.errors import DlcvError
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import JSON, hash_file
from dlcv_cli.files.locks import claim_outputs
from dlcv_cli.files.recipes import Input, Recipe, is_up_to_date
from dlcv_cli.report import figures
from dlcv_cli.report import report_file as pages
from dlcv_cli.report.kinds import AnyFigure, Density
from dlcv_cli.report.page import page
from dlcv_cli.report.page_parts import Network, Study
from dlcv_cli.results import documents as metrics
from dlcv_cli.stages.compare import compare
from dlcv_cli.stages.data import fill_folder
from dlcv_cli.stages.evaluate import evaluate
from dlcv_cli.stages.lineage import line_of_files
from dlcv_cli.studies.images.thumbnails import confused, highest_loss, root_of

PAPER = ("svg", "pdf", "png")


@dataclass(frozen=True)
class _Evaluated:
    """A checkpoint with its evaluation."""

    name: str
    checkpoint: Path
    file: Path
    document: JSON
    trained: JSON  # its metrics


def write_report(
    checkpoints: Sequence[tuple[str, Path]],
    output: Path,
    config: EvalConfig,
    *,
    figures_folder: Path | None = None,
    reference: str | None = None,
    common: bool = False,
    data: Path | None = None,
    root: Path | None = None,
    machine: Machine | None = None,
    force: bool = False,
    allow_contaminated: bool = False,
    cache: Path | None = None,
    report: Reporter | None = None,
) -> Outcome:
    """Writes the page for (name, checkpoint) pairs, one section a study; evaluates what is not evaluated yet.

    Args:
        figures_folder: where each figure is written as SVG, PDF and PNG too.
        reference, common: as `compare` has them; a study without the reference compares with its first.

    Raises:
        DlcvError: what `evaluate` and `compare` raise, metrics that are missing, or an output made differently.
    """
    report = report or Reporter()
    if not output.name.lower().endswith((".html", ".htm")):
        raise DlcvError(f"{output}: the report's name must end in .html")
    measured = partial(
        evaluate, config=config, data=data, root=root, machine=machine, allow_contaminated=allow_contaminated,
        cache=cache, report=report,
    )  # fmt: skip
    found = []
    for name, path in checkpoints:
        outcome = measured(path)
        report.note(f"{outcome.output}: {'written' if outcome.made else 'up to date'}")
        own = metrics.read_metrics(path, outcome.summary["inputs"]["checkpoint"]["sha256"])
        found.append(_Evaluated(name, path, outcome.output, outcome.summary, own))
    names = [one.name for one in found]
    settings = {**config.to_json(), "networks": names, "reference": reference, "common": common}
    recipe = Recipe("report", settings, _inputs(found))
    fresh = is_up_to_date(output, recipe, pages.read_record, force)
    with claim_outputs(output):
        studies = cached(lambda: _studies(found, reference, common, data, root))  # made when first needed
        if figures_folder:
            paper = Recipe("report.figures", settings, recipe.inputs)
            saving = Context(force=force, reporter=report)
            drawn = fill_folder(
                figures_folder, paper, lambda: _paper(studies()), 0, context=saving, packages=("matplotlib",)
            )
            report.note(f"{figures_folder}: {'written' if drawn else 'up to date'}")
        if not fresh:
            pages.write(output, page(studies(), {"schema": pages.SCHEMA, **recipe.to_json(output.parent)}))
    figures_written = {"figures": str(figures_folder)} if figures_folder else {}
    return Outcome(output, not fresh, {"networks": names, **figures_written})


def _inputs(found: Sequence[_Evaluated]) -> dict[str, Input]:
    """All that a page is made from but the images, which the evaluations name by sha256."""
    inputs = {}
    for one in found:
        record = metrics.metrics_path(one.checkpoint)
        inputs[one.name] = Input(one.document["inputs"]["checkpoint"]["sha256"], one.checkpoint)
        inputs[f"evaluation of {one.name}"] = Input(hash_file(one.file), one.file)
        inputs[f"metrics of {one.name}"] = Input(hash_file(record), record)
    return inputs


def _studies(
    found: Sequence[_Evaluated], reference: str | None, common: bool, data: Path | None, root: Path | None
) -> list[Study]:
    kinds = dict.fromkeys(one.document["data"]["study"] for one in found)
    made = []
    for kind in kinds:
        chosen = [one for one in found if one.document["data"]["study"] == kind]
        known = reference if reference in [one.name for one in chosen] else None
        comparison = compare([(one.name, one.file) for one in chosen], reference=known, common=common)
        made.append(_study(chosen, kind, comparison, data, root))
    return made


def _study(found: Sequence[_Evaluated], kind: str, comparison: JSON, data: Path | None, root: Path | None) -> Study:
    named = [(one.name, one.document) for one in found]
    drawn: dict[str, list[AnyFigure]] = {
        "differences": [*figures.differences(comparison)],
        "learning": [*figures.learning([(one.name, one.trained) for one in found], kind)],
    }
    if kind == "images":
        drawn["confusion"] = [figures.confusion(*one) for one in named]
        drawn["recall"] = [figures.recall(*one) for one in named]
        drawn["calibration"] = [figures.calibration(*one) for one in named]
    else:
        drawn["predicted"] = [_predicted(one) for one in found]
        drawn["length"] = [figures.by_length(named)]
    drawn["line"] = [line_of_files([(one.checkpoint, one.file, one.document) for one in found], comparison)]
    networks = []
    for one in found:
        pictures: tuple[Any, ...] = ()
        if kind == "images":
            place = root_of(one.document, one.file, root)
            pictures = confused(one.document, one.file, place, data), highest_loss(one.document, place)
        networks.append(Network(one.name, one.document, one.trained, *pictures))
    return Study(comparison, tuple(networks), figures.comparison(comparison), drawn)


def _predicted(one: _Evaluated) -> Density:
    file = tensors.read(one.file.parent / one.document["predictions"]["path"], tensors.PREDICTIONS)
    targets = tensors.get_array(file, "targets", np.float32, 1)
    answers = tensors.get_array(file, "predictions", np.float32, file.arrays["predictions"].ndim)
    return figures.predicted(one.name, answers, targets)


def _paper(studies: Sequence[Study]) -> Iterator[tuple[str, bytes]]:
    """Each figure in each format, under a name made of letters, digits and dashes."""
    from dlcv_cli.report.plots import plot

    taken: set[str] = set()
    for study in studies:
        for figure in (study.forest, *(figure for group in study.figures.values() for figure in group)):
            stem = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{study.comparison['study']}-{figure.key}").strip("-.")
            name = next(name for name in (stem, *(f"{stem}-{k}" for k in range(2, 10**6))) if name not in taken)
            taken.add(name)
            for kind, data in plot(figure, PAPER).items():
                yield f"{name}.{kind}", data
