"""`report`: checkpoints of any study in, one HTML page out, and figures for papers."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dlcv_cli.config import EvalConfig
from dlcv_cli.context import Context, Outcome
from dlcv_cli.errors import DlcvError
from dlcv_cli.files.disk import hash_file, hash_json
from dlcv_cli.files.locks import claim_outputs
from dlcv_cli.files.recipes import Input, Recipe, is_up_to_date
from dlcv_cli.report import report_file
from dlcv_cli.report.figures import draw_comparison, draw_differences, draw_learning
from dlcv_cli.report.kinds import FigureGroup, Graph, Node
from dlcv_cli.report.page import Network, Section, write_page
from dlcv_cli.results.codec import encode
from dlcv_cli.results.comparison import Comparison
from dlcv_cli.results.metrics import metrics_path, read_metrics
from dlcv_cli.stages.compare import compare
from dlcv_cli.stages.data import fill_folder
from dlcv_cli.stages.evaluate import evaluate
from dlcv_cli.stages.lineage import DATA, Source, trace_sources
from dlcv_cli.studies import study_named
from dlcv_cli.studies.base import Reported

PAPER_FORMATS = ("svg", "pdf", "png")


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows, beside the evaluations.

    Attributes:
        figures: folder for each figure as SVG, PDF and PNG; None: no such files.
        reference, common: as in `compare`; a study without the reference compares with its first network.
        data: data file, if it is not where it was; allow_contaminated: as in `evaluate`.
    """

    figures: Path | None = None
    reference: str | None = None
    common: bool = False
    data: Path | None = None
    allow_contaminated: bool = False


def write_report(
    checkpoints: Sequence[tuple[str, Path]],
    output: Path,
    config: EvalConfig,
    *,
    options: ReportOptions | None = None,
    context: Context | None = None,
) -> Outcome:
    """Write the page of (name, checkpoint) pairs, one section per study.

    Checkpoints whose evaluation is missing or out of date are evaluated first. `context.force` lets the page and the
    folder of figures be replaced.

    Raises:
        DlcvError: from `evaluate` or `compare`, missing metrics, or an output made by another recipe.
    """
    options, context = options or ReportOptions(), context or Context()
    if not output.name.lower().endswith((".html", ".htm")):
        raise DlcvError(f"{output}: the report's name must end in .html")
    networks = [_evaluate(name, path, config, options, context) for name, path in checkpoints]
    names = [network.name for network in networks]
    settings = {**config.to_json(), "networks": names, "reference": options.reference, "common": options.common}
    recipe = Recipe("report", settings, _inputs(networks))
    current = is_up_to_date(output, recipe, report_file.read_recipe, context.force)
    with claim_outputs(output):
        sections = functools.cache(lambda: _make_sections(networks, options, context))  # costly: only if needed
        if options.figures:
            paper_recipe = Recipe("report.figures", settings, recipe.inputs)
            written = fill_folder(
                options.figures, paper_recipe, lambda: _draw_files(sections()), 0, context=context,
                packages=("matplotlib",),
            )  # fmt: skip
            context.reporter.note(f"{options.figures}: {'written' if written else 'up to date'}")
        if not current:
            document = {"schema": report_file.SCHEMA, **recipe.to_json(output.parent)}
            report_file.write(output, write_page(sections(), document))
    summary = {"networks": names, **({"figures": str(options.figures)} if options.figures else {})}
    return Outcome(output, not current, summary)


def _evaluate(name: str, path: Path, config: EvalConfig, options: ReportOptions, context: Context) -> Reported:
    outcome = evaluate(
        path,
        config,
        data=options.data,
        allow_contaminated=options.allow_contaminated,
        context=replace(context, force=False),  # --force is about the report: current evaluations stay
    )
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


def _make_sections(networks: Sequence[Reported], options: ReportOptions, context: Context) -> list[Section]:
    studies = dict.fromkeys(network.evaluation.data.study for network in networks)
    return [
        _make_section([network for network in networks if network.evaluation.data.study == study], options, context)
        for study in studies
    ]


def _make_section(networks: Sequence[Reported], options: ReportOptions, context: Context) -> Section:
    study = study_named(networks[0].evaluation.data.study)
    names = [network.name for network in networks]
    reference = options.reference if options.reference in names else None
    evaluations = [(network.name, network.file) for network in networks]
    comparison = compare(evaluations, reference=reference, common=options.common)
    trainings = [(network.name, network.metrics) for network in networks]
    groups = [
        FigureGroup(
            "Differences",
            "The dot is the difference and the bar its 95 % interval; the dashed line is no difference. "
            "An arrow marks a value far beyond the axis.",
            draw_differences(comparison),
        ),
        FigureGroup(
            "Learning curves",
            "The ring marks the record whose weights were kept. All curves of a quantity have the same vertical scale.",
            draw_learning(trainings, study.step, study.log_loss),
        ),
        *study.draw_figures(networks),
    ]
    shown = tuple(
        Network(
            network.name, network.evaluation, network.metrics, study.load_pictures(network, context.root, options.data)
        )
        for network in networks
    )
    lineage = draw_lineage(networks, comparison)
    return Section(comparison, shown, draw_comparison(comparison), tuple(groups), lineage)


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


def draw_lineage(networks: Sequence[Reported], comparison: Comparison) -> FigureGroup:
    """Return the graph of all files that the comparison was made from, as the files themselves record it."""
    nodes: dict[tuple[str, str], Node] = {}  # by name and content, each after its sources
    evaluations = [
        _add_node(
            nodes, Source("evaluation", network.file.name, hash_file(network.file), sources=_trace_evaluation(network))
        )
        for network in networks
    ]
    table = Node("comparison", "this table", hash_json(encode(comparison)), tuple(evaluations))
    origins = ", ".join(node.name for node in nodes.values() if not node.sources)
    text = f"{len(nodes) + 1} files, from {origins} to the table. The table below has the hashes in full."
    graph = Graph("lineage", f"Lineage: {comparison.data.study}", text, (*nodes.values(), table))
    hint = "Each file with the first digits of its sha256; lines lead to what was made from it."
    return FigureGroup("From data to table", hint, [graph])


def _trace_evaluation(network: Reported) -> tuple[Source, ...]:
    """Return the checkpoint as the report read it, and the data."""
    known = {network.evaluation.inputs["checkpoint"].sha256: network.checkpoint}
    inputs = {role: {"path": file.path, "sha256": file.sha256} for role, file in network.evaluation.inputs.items()}
    return trace_sources(network.file, {"inputs": inputs}, known)


def _add_node(nodes: dict[tuple[str, str], Node], source: Source) -> int:
    """Return the place of a file's node among the nodes, new or known; its sources come before it."""
    key = source.name, source.sha256
    if key not in nodes:
        ordered = sorted(source.sources, key=lambda other: other.role in DATA)  # drawn lowest: fewer lines cross
        places = tuple(dict.fromkeys(_add_node(nodes, other) for other in ordered))
        nodes[key] = Node(source.name, _describe_file(source), source.sha256, places, _describe_change(source))
    return list(nodes).index(key)


def _describe_file(source: Source) -> str:
    """Return what a file is: the stage that wrote a checkpoint, the schema of data, otherwise the role."""
    if source.role in DATA and "schema" in source.metadata:
        return str(source.metadata["schema"]).removeprefix("dlcv.").partition("/")[0]
    return source.role if source.role in DATA else str(source.metadata.get("stage", source.role))


def _describe_change(source: Source) -> str:
    if not source.problem or source.path is None:
        return ""
    return "changed since" if source.path.exists() else "missing now"
