"""`report`: checkpoints of any study in, one HTML page out, and figures for papers."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dlcv_cli.config import CompareConfig, EvalConfig
from dlcv_cli.context import Context, Outcome
from dlcv_cli.errors import DlcvError
from dlcv_cli.files.disk import hash_file, write_whole
from dlcv_cli.files.locks import claim_outputs
from dlcv_cli.files.recipes import Input, Recipe, is_up_to_date
from dlcv_cli.report.figures import draw_comparison, draw_differences, draw_learning
from dlcv_cli.report.kinds import FigureGroup
from dlcv_cli.report.page import SCHEMA, Section, read_recipe, write_page
from dlcv_cli.report.reported import Reported, ReportedRow, pair_runs
from dlcv_cli.results.comparison import Comparison
from dlcv_cli.results.metrics import metrics_path, read_metrics
from dlcv_cli.stages.compare import compare
from dlcv_cli.stages.data import fill_folder
from dlcv_cli.stages.evaluate import evaluate
from dlcv_cli.stages.groups import Network, group_runs
from dlcv_cli.stages.lineage import draw_lineage
from dlcv_cli.studies import study_named
from dlcv_cli.studies.base import Places

PAPER_FORMATS = ("svg", "pdf", "png")


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows, beside the evaluations."""

    figures: Path | None = None  # folder for each figure as SVG, PDF and PNG
    compare: CompareConfig = CompareConfig()  # a study without the reference compares with its first row
    data: Path | None = None  # data file, if it is not where it was
    allow_contaminated: bool = False  # as in `evaluate`


def write_report(
    checkpoints: Sequence[tuple[str, Path]],
    output: Path,
    config: EvalConfig,
    *,
    options: ReportOptions = ReportOptions(),
    context: Context = Context(),
) -> Outcome:
    """Write the page of (name, checkpoint) pairs, one section per study.

    Checkpoints whose evaluation is missing or out of date are evaluated first. `context.force` lets the page and the
    folder of figures be replaced.

    Raises:
        DlcvError: from `evaluate` or `compare`, missing metrics, or an output made by another recipe.
    """
    if not output.name.lower().endswith((".html", ".htm")):
        raise DlcvError(f"{output}: the report's name must end in .html")
    networks = [_evaluate(name, path, config, options, context) for name, path in checkpoints]
    names = [network.name for network in networks]
    settings = {**config.to_json(), **options.compare.to_json(), "networks": names}
    recipe = Recipe("report", settings, _inputs(networks))
    current = is_up_to_date(output, recipe, read_recipe, context.force)
    with claim_outputs(output):
        studies = dict.fromkeys(network.evaluation.data.study for network in networks)
        # costly: only if needed
        sections = functools.cache(lambda: [_make_section(study, networks, options, context) for study in studies])
        if options.figures:
            paper_recipe = Recipe("report.figures", settings, recipe.inputs)
            filled = fill_folder(
                options.figures, paper_recipe, lambda: _draw_files(sections()), 0, context=context,
                packages=("matplotlib",),
            )  # fmt: skip
            context.reporter.note(f"{options.figures}: {'written' if filled.made else 'up to date'}")
        if not current:
            page = write_page(sections(), {"schema": SCHEMA, **recipe.to_json(output.parent)})
            with write_whole(output) as temporary:
                temporary.write_bytes(page.encode("utf-8"))
    summary = {"networks": names, **({"figures": str(options.figures)} if options.figures else {})}
    return Outcome(output, not current, summary)


def _evaluate(name: str, path: Path, config: EvalConfig, options: ReportOptions, context: Context) -> Reported:
    own = replace(context, force=False)  # --force is about the report: current evaluations stay
    outcome = evaluate(path, config, data=options.data, allow_contaminated=options.allow_contaminated, context=own)
    context.reporter.note(f"{outcome.output}: {'written' if outcome.made else 'up to date'}")
    metrics = read_metrics(path, outcome.evaluation.inputs["checkpoint"].sha256)
    return Reported(name, path, outcome.output, outcome.evaluation, metrics)


def _inputs(networks: Sequence[Reported]) -> dict[str, Input]:
    """Return all that a page is made from except the images, whose sha256 the evaluations hold."""
    inputs = {}
    for network in networks:
        metrics = metrics_path(network.checkpoint)
        inputs[network.name] = Input(network.evaluation.inputs["checkpoint"].sha256, network.checkpoint)
        inputs[f"evaluation of {network.name}"] = Input(hash_file(network.file), network.file)
        inputs[f"metrics file of {network.name}"] = Input(hash_file(metrics), metrics)
    return inputs


def _make_section(name: str, all_networks: Sequence[Reported], options: ReportOptions, context: Context) -> Section:
    study, networks = study_named(name), [n for n in all_networks if n.evaluation.data.study == name]
    grouped = group_runs([Network(network.name, network.evaluation, {}) for network in networks], options.compare.group)
    known = {*(row.name for row in grouped), *(network.name for network in networks)}
    is_here = options.compare.reference in known or len({n.evaluation.data.study for n in all_networks}) == 1
    how = options.compare if is_here else replace(options.compare, reference=None)
    comparison = compare([(network.name, network.file) for network in networks], how)
    rows = _make_rows(comparison, networks)
    places = Places(context.root, options.data)
    shown = tuple(
        replace(row, galleries=study.load_pictures(row.representative, len(rows), places)) for row in rows.values()
    )
    reference = rows[comparison.reference]
    pairs = [pair_runs(row, reference) for row in shown if row.name != reference.name]
    disagreements = [study.find_disagreement(pair, len(rows), places) for pair in pairs]
    several = any(len(row.networks) > 1 for row in shown)
    runs = " A line is the median of a row's runs, and its band their range." if several else ""
    groups = [
        FigureGroup(
            "Differences",
            "The dot is the difference and the bar its 95 % interval; the dashed line is no difference. "
            "An arrow marks a value far beyond the axis.",
            draw_differences(comparison),
        ),
        FigureGroup(
            "Learning curves",
            f"The ring marks the {study.step} whose weights were kept.{runs} "
            "Training and validation have the same scale.",
            draw_learning(shown, study.step, study.log_loss),
        ),
        *study.draw_figures(shown, comparison.reference),
    ]
    first = networks[0]
    data = options.data or first.file.parent / first.evaluation.data.path
    parts = study.digest_examples(data, first.evaluation.trained.fold)
    return Section(
        comparison,
        shown,
        len(study.class_names(first.evaluation)),
        {part: len(examples) for part, examples in parts.items()},
        draw_comparison(comparison),
        tuple(groups),
        draw_lineage(shown, comparison),
        tuple(own for own in disagreements if own),
    )


def _make_rows(comparison: Comparison, networks: Sequence[Reported]) -> dict[str, ReportedRow]:
    """Return the rows of a comparison that have runs, by name, with the checkpoints of these."""
    by_name = {network.name: network for network in networks}
    return {
        row.name: ReportedRow(row.name, tuple(by_name[run.name] for run in row.runs), comparison.metric)
        for row in comparison.rows
        if row.runs
    }


def _draw_files(sections: Sequence[Section]) -> Iterator[tuple[str, bytes]]:
    """Yield each figure in each format, under a name of letters, digits and dashes."""
    from dlcv_cli.report.render import render_files

    taken: set[str] = set()
    for section in sections:
        for figure in (section.forest, *(figure for group in section.all_groups for figure in group.figures)):
            stem = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{section.comparison.data.study}-{figure.key}").strip("-.")
            stems = (stem, *(f"{stem}-{number}" for number in range(2, 10**6)))
            name = next(name for name in stems if name not in taken)
            taken.add(name)
            for suffix, data in render_files(figure, PAPER_FORMATS).items():
                yield f"{name}.{suffix}", data
