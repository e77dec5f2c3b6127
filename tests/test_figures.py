"""The data of figures, and how they are drawn for the page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint
from test_report import Page

from dlcv_cli.report.axes import Axis, spanning_axis
from dlcv_cli.report.figures import draw_comparison, draw_learning, line_over_runs, thin_out
from dlcv_cli.report.kinds import Dots, FigureGroup, Forest, Graph, Matrix, Node, Panel, Reliability
from dlcv_cli.report.page import Section, write_page
from dlcv_cli.report.palette import VARIABLES
from dlcv_cli.report.render import render_files, render_inline
from dlcv_cli.report.reported import Reported, ReportedRow, choose_median, pair_runs
from dlcv_cli.report.summary import choose_findings, list_limits
from dlcv_cli.results.comparison import Comparison
from dlcv_cli.results.evaluation import Evaluation, ImageDetails
from dlcv_cli.results.metrics import TrainingMetrics
from dlcv_cli.studies.images.pictures import share_out
from dlcv_cli.studies.images.report import (
    draw_calibration,
    draw_confusion,
    draw_confusion_difference,
    draw_figures,
    draw_recall,
    sum_confusion,
)
from dlcv_cli.studies.sequences.study import draw_predictions

Images = Evaluation[ImageDetails]
RECORDS: list[dict[str, Any]] = [{"epoch": k, "train_loss": 1, "val_loss": 1} for k in (1, 2)]
DATA = {"study": "images", "part": "test", "n": 1736, "path": "a.split.json", "fingerprint": "f"}
COLLAPSE = {"collapsed": False, "why": None, "classes_predicted": 9, "most_frequent": "a", "share": 0.1}
LEAK = {"checked": [], "unchecked": [], "unrecorded": [], "examples": 0, "chosen": 0, "of": 1736, "by_chance": False}


def random_evaluation(classes: int, rng: np.random.Generator, seed: int = 0, fold: int | None = None) -> Images:
    """Return an evaluation over many classes with errors everywhere."""
    counts = rng.integers(8, 40, classes)
    confusion, per_class = [], []
    for label, n in enumerate(counts):
        answers = np.bincount(np.where(rng.random(n) < 0.6, label, rng.integers(0, classes, n)), minlength=classes)
        confusion += [[label, int(a), int(answers[a])] for a in np.flatnonzero(answers)]
        row = {"class": f"class_number_{label}", "n": int(n), "recall": float(answers[label] / n), "precision": 0.5}
        per_class.append(row | {"predicted": 3})
    bins = [
        {"low": k / 15, "high": (k + 1) / 15, "n": 3 + 2 * k, "confidence": k / 15, "accuracy": k / 16}
        for k in range(15)
    ]
    details = {"per_class": per_class, "confusion": confusion, "confused": [], "calibration": bins}
    document = {
        "stage": "eval", "config": {}, "inputs": {}, "data": DATA, "intervals": {},
        "trained": {"stage": "vgg.head", "recipe": "0" * 64, "seed": seed, "fold": fold, "examples": 10},
        "metrics": {"top1_accuracy": 0.6 + 0.01 * seed, "expected_calibration_error": 0.1}, "baselines": [],
        "collapse": COLLAPSE, "details": details | {"highest_loss": [], "root": "."},
        "contamination": LEAK | {"allowed": False}, "predictions": {"path": "p", "sha256": "0" * 64}, "run": {},
    }  # fmt: skip
    return msgspec.convert(document, Images)


def make_row(name: str, evaluations: list[Images], records: list[dict[str, Any]] = RECORDS) -> ReportedRow:
    """Return a row with a run for each evaluation."""
    metrics = training_metrics(records)
    networks = [Reported(f"{name}.seed{k}", Path(), Path(), e, metrics) for k, e in enumerate(evaluations)]
    return ReportedRow(name, tuple(networks), "top1_accuracy")


def random_row(name: str, classes: int, rng: np.random.Generator, runs: int = 1) -> ReportedRow:
    """Return a row of random evaluations."""
    return make_row(name, [random_evaluation(classes, rng, seed) for seed in range(runs)])


def training_metrics(records: list[dict[str, Any]]) -> TrainingMetrics:
    """Return the metrics of a training with these records, the second of which is the best."""
    document = {
        "stage": "seq.train", "config": {}, "inputs": {}, "parameters": {"total": 1, "trainable": 1}, "run": {},
        "records": records, "best": records[1], "checkpoint": {"path": "a", "sha256": "0" * 64},
    }  # fmt: skip
    return msgspec.convert(document, TrainingMetrics)


def make_comparison(rows: list[dict[str, Any]], pairs: list[dict[str, Any]], n: int = 1736) -> Comparison:
    """Return a comparison in the top-1 accuracy of these rows and pairs, with what is not given filled in."""
    row = {"baseline": False, "intervals": {}, "intervals_over": "examples", "contaminated": False, "difference": 0}
    pair = {
        "reference": "net0", "metric": "top1_accuracy", "interval": [-1, 1], "p": 0.5, "test": "t", "over": "examples",
        "n": n, "runs": [1, 1], "question": "q",
    }  # fmt: skip
    column = {"key": "top1_accuracy", "heading": "top-1 %", "noun": "accuracy", "higher_is_better": True}
    document = {
        "data": DATA, "common": None, "reference": "net0", "metric": "top1_accuracy", "columns": [column],
        "rows": [row | {"metrics": {"top1_accuracy": 0.6}, "best": []} | own for own in rows],
        "pairs": [pair | own for own in pairs],
    }  # fmt: skip
    return msgspec.convert(document, Comparison)


def write_synthetic_page(classes: int, count: int) -> str:
    """Return the page of rows with a run each over this many classes, all cells random."""
    rng = np.random.default_rng(0)
    rows = tuple(random_row(f"net{k}", classes, rng) for k in range(count))
    runs = [{"name": f"{row.name}.seed0", "seed": 0, "metrics": {"top1_accuracy": 0.6}} for row in rows]
    named = [{"name": row.name, "runs": [run]} for row, run in zip(rows, runs, strict=True)]
    comparison = make_comparison(named, [])
    lineage = FigureGroup("Lineage", "", [Graph("lineage", "Lineage", "One file.", (Node("a", "b", "c" * 64),))])
    groups = (FigureGroup("Curves", "", draw_learning(rows, "epoch")), *draw_figures(rows, "net0"))
    sizes = {"train": 1, "val": 1, "test": 1}
    return write_page([Section(comparison, rows, classes, sizes, draw_comparison(comparison), groups, lineage)], {})


@pytest.mark.parametrize(("classes", "limit"), [(101, 1_300_000), (1000, 600_000)])
def test_page_has_a_bounded_size(classes: int, limit: int) -> None:
    """Without pictures, a page of six rows is well below 2 MB at 101 classes and 5 MB at 1,000, whatever the errors."""
    text = write_synthetic_page(classes, 6)
    Page(text)
    assert len(text) < limit


def test_figures_do_not_grow_with_the_classes_squared() -> None:
    """At 1,000 classes there is no matrix, and no figure has more than 36 classes or mistakes."""
    rng = np.random.default_rng(0)
    figures = [
        own for group in draw_figures([random_row(name, 1000, rng) for name in "ab"], "a") for own in group.figures
    ]
    assert {type(figure) for figure in figures} == {Dots, Reliability}
    assert {len(figure.names) for figure in figures if isinstance(figure, Dots)} == {36}


@pytest.mark.parametrize("rows", [1, 2, 3, 6, 20, 100])
def test_pictures_of_many_rows_are_fewer_each(rows: int) -> None:
    """Pictures of all rows together are at most 150 and two more per row: with 4 kB each, below 0.7 MB for six rows."""
    shown = 3 * share_out(10, rows) + share_out(16, rows) + 3 * share_out(6, rows)
    assert rows * shown <= 3 * (3 * 10 + 16 + 3 * 6) + 7 * rows
    assert share_out(6, rows) >= 1


def test_matrix_names_every_class() -> None:
    """A matrix has the name of each class at both sides; beyond 120 classes, the most frequent mistakes are a list."""
    rng = np.random.default_rng(0)
    matrix = ElementTree.fromstring(render_inline(draw_confusion(sum_confusion(random_row("a", 101, rng))), "f"))
    assert sum((label.text or "").startswith("class_number_") for label in matrix.iter("text")) == 202
    rows = [random_row("a", 121, rng), random_row("b", 121, rng)]
    [mistakes] = draw_figures(rows, "a")[0].figures
    assert isinstance(mistakes, Dots)
    cells = rows[0].networks[0].evaluation.details.confusion
    shares = {(t, p): n / sum(m for true, _, m in cells if true == t) for t, p, n in cells}
    first = [int(word.rpartition("_")[2]) for word in mistakes.names[0].split(" → ")]
    assert mistakes.series[0][1][0] == pytest.approx(shares.get((first[0], first[1]), 0.0))


def test_confusion_of_runs_is_their_sum() -> None:
    """The cells of a row are the sums over its runs, one square each, and the table starts with the worst mistake."""
    rng = np.random.default_rng(1)
    row = random_row("net", 5, rng, runs=3)
    expected: Counter[tuple[int, int]] = Counter()
    for network in row.networks:
        for true, predicted, n in network.evaluation.details.confusion:
            expected[true, predicted] += n
    figure = draw_confusion(sum_confusion(row))
    assert {cell[:2]: cell[2] for cell in figure.cells} == expected
    for true in range(5):
        assert sum(cell[3] for cell in figure.cells if cell[0] == true) == pytest.approx(1)
    root = ElementTree.fromstring(render_inline(figure, "f"))
    shaded = [path.get("d") or "" for path in root.iter("path") if "fill:var(--h" in (path.get("style") or "")]
    assert sum(d.count("M") for d in shaded) == len(expected)
    assert figure.table().rows[0][2] == str(max(n for (t, a), n in expected.items() if t != a))


def test_difference_of_confusions() -> None:
    """A difference is the row's share minus the reference's; less is another colour; without any nothing is drawn."""
    rng = np.random.default_rng(2)
    rows = [random_row(name, 4, rng) for name in ("a", "b")]
    a, b = map(sum_confusion, rows)
    figure = draw_confusion_difference(b, a)
    dense = [np.zeros((4, 4)), np.zeros((4, 4))]
    for table, row in zip(dense, rows, strict=True):
        for true, predicted, n in row.networks[0].evaluation.details.confusion:
            table[true, predicted] = n
    expected = dense[1] / dense[1].sum(1, keepdims=True) - dense[0] / dense[0].sum(1, keepdims=True)
    assert {cell[:2] for cell in figure.cells} == {(int(i), int(j)) for i, j in np.argwhere(expected)}
    for true, predicted, _, share in figure.cells:
        assert share == pytest.approx(expected[true, predicted])
    assert figure.full == pytest.approx(abs(expected).max())
    svg = render_inline(figure, "f")
    assert "--h9" in svg or "--n9" in svg
    assert "--n" in svg
    titles = [drawn.title for drawn in draw_figures(rows, "a")[0].figures]
    assert titles == ["Confusion: b minus a", "Confusion matrix: a", "Confusion matrix: b"]
    same = [rows[0], ReportedRow("c", rows[0].networks, "top1_accuracy")]
    assert not [own for own in draw_figures(same, "a")[0].figures if isinstance(own, Matrix) and own.signed]


def test_recall_is_one_order_for_all_rows() -> None:
    """Recall is the mean over runs; every class is in one of the figures, ordered by the mean over rows."""
    rng = np.random.default_rng(3)
    rows = [random_row("a", 80, rng, runs=2), random_row("b", 80, rng)]
    figures = draw_recall(rows)
    assert len(figures) == 3
    names = [name for figure in figures for name in figure.names]
    assert sorted(names) == sorted(f"class_number_{k}" for k in range(80))
    both = [[v for figure in figures for v in figure.series[k][1]] for k in range(2)]
    means = np.mean(np.array(both, float), axis=0)
    assert (np.diff(means) >= -1e-12).all()
    label = int(names[0].rpartition("_")[2])
    own = [network.evaluation.details.per_class[label].recall for network in rows[0].networks]
    assert both[0][0] == pytest.approx(np.mean(own))
    assert len(draw_recall([random_row("a", 151, rng)])) == 1
    assert len(draw_recall([random_row("a", 151, rng), random_row("b", 151, rng)])) == 2


def test_calibration_has_wilson_intervals_of_images() -> None:
    """Intervals are Wilson's of as many images as a run sees; bins of few images have neither line nor interval."""
    row = random_row("net", 5, np.random.default_rng(4), runs=4)
    figure = draw_calibration(row)
    last = figure.bins[-1]
    assert (last.n, last.images) == (4 * 31, 31)
    right = round(31 * 14 / 16)
    assert last.interval == pytest.approx(proportion_confint(right, 31, method="wilson"))
    thin = [b.images < 10 for b in figure.bins]
    assert [b.is_thin for b in figure.bins] == thin
    assert 0 < sum(thin) < 15
    root = ElementTree.fromstring(render_inline(figure, "f"))
    bars = [
        p for p in root.iter("path") if "stroke-opacity" in (p.get("style") or "") or "opacity:0.35" in str(p.attrib)
    ]
    assert sum((p.get("d") or "").count("M") for p in bars) == 15 - sum(thin)
    folds = make_row("net", [random_evaluation(5, np.random.default_rng(k), fold=k + 1) for k in range(3)])
    assert draw_calibration(folds).bins[-1].images == 3 * 31  # each fold tests other images


def test_median_run_stands_for_a_row() -> None:
    """The median run in the first metric is shown; pairs are of the same fold."""
    rng = np.random.default_rng(5)
    row = random_row("a", 3, rng, runs=4)
    assert choose_median(row.networks[:3], "top1_accuracy").name == "a.seed1"
    assert row.representative.name == "a.seed1"
    ours = make_row("a", [random_evaluation(3, rng, seed=k, fold=k + 1) for k in range(3)])
    theirs = make_row("b", [random_evaluation(3, rng, fold=fold) for fold in (3, 2, 1)])
    assert [network.fold for network in pair_runs(ours, theirs)] == [2, 2]
    lone = make_row("b", [random_evaluation(3, rng, fold=3)])
    assert [network.fold for network in pair_runs(ours, lone)] == [3, 3]


def test_findings_are_the_strongest_first() -> None:
    """Three tests of the first metric stand on top: shown ones before others, collapsed rows and baselines last."""
    run = {"seed": 0, "metrics": {"top1_accuracy": 0.6}}
    names = ("net0", "small", "large", "fallen", "unsure")
    rows = [{"name": n, "runs": [run | {"name": n} | ({"collapsed": "x"} if n == "fallen" else {})]} for n in names]
    rows.append({"name": "rule", "baseline": True})
    values = {
        "small": (0.01, 0.01),
        "large": (0.2, 0.01),
        "fallen": (-0.5, 0.001),
        "unsure": (0.3, 0.4),
        "rule": (-0.6, 0),
    }
    pairs = [
        {"name": n, "difference": d, "p_holm": p, "sentence": n, "doubt": "odd" if n == "small" else ""}
        for n, (d, p) in values.items()
    ]
    comparison = make_comparison(rows, pairs)
    assert [pair.name for pair in choose_findings(comparison)] == ["large", "small", "unsure"]
    kinds = [limit.kind for limit in list_limits(comparison, [], [])]
    assert kinds == ["Collapse", "Single runs", "No equality", "One reference", "Doubt"]


def test_learning_curves_are_of_rows() -> None:
    """A figure per quantity has a line for each row: median and range of its runs, and where weights were kept."""
    rows = []
    for name, seeds in (("gru", 3), ("lstm", 1)):
        networks = []
        for seed in range(seeds):
            records = [
                {"iteration": step, "train_loss": 2.0 + seed, "val_loss": (1.0 + seed) / step} for step in (100, 200)
            ]
            evaluation = random_evaluation(3, np.random.default_rng(0), seed)
            metrics = training_metrics(records[::-1] if seed < 2 else records)  # the second is the best one
            networks.append(Reported(f"{name}{seed}", Path(), Path(), evaluation, metrics))
        rows.append(ReportedRow(name, tuple(networks), "top1_accuracy"))
    validation, training = draw_learning(rows, "iteration", log_loss=True)
    assert [line.name for line in validation.lines] == ["gru", "lstm"]
    gru, lstm = validation.lines
    assert (gru.x, gru.y) == ((100, 200), (0.02, 0.01))
    assert gru.band == ((0.01, 0.03), (0.005, 0.015))
    assert gru.marks == ((100, 0.02),)
    assert lstm.band == ()
    assert validation.y == training.y
    assert len(ElementTree.fromstring(render_inline(validation, "f")).findall(".//text")) > 4


def test_long_curves_are_thinned_out() -> None:
    """Of thousands of records, some hundred points are drawn, the last and the marked one among them."""
    line = line_over_runs("a", [(x, x / 7) for x in range(10_000)], 0)
    thin = thin_out(line, 777)
    assert len(thin.x) < 210
    assert {0, 777, 9999} <= set(thin.x)
    assert all(y == x / 7 for x, y in zip(thin.x, thin.y, strict=True))


def test_forest_has_a_dot_for_each_run() -> None:
    """Each run of a row is a dot of its own colour in the row; a row without runs does not disturb the layout."""
    panel = Panel(Axis("x", 0, 1), ((0.5, (0.3, 0.7)), (0.2, None)), runs=((0.4, 0.5, 0.6), ()))
    figure = Forest("key", "title", "text", ("several", "one"), (panel, panel, panel))
    root = ElementTree.fromstring(render_inline(figure, "f"))
    dots = [path for path in root.iter("path") if "fill:var(--s1)" in (path.get("style") or "")]
    assert sum((path.get("d") or "").count("M") for path in dots) == 9
    render_files(figure, ("svg", "pdf", "png"))  # warnings are errors


def test_density_counts_every_prediction() -> None:
    """Each prediction of each run is in one cell, outliers in the last one."""
    targets = np.linspace(0, 2, 50, dtype=np.float32)
    predictions = np.concatenate([targets, targets + 100]).astype(np.float32)
    figure = draw_predictions("net", predictions, np.concatenate([targets, targets]))
    assert figure.counts.sum() == 100
    assert figure.counts[:, -1].sum() == 50
    assert "50 lie beyond the axis" in figure.text
    assert sum(row[2] for row in figure.deciles) == 100


def test_colours_are_variables_of_the_style_sheet() -> None:
    """Inline figures have no colour of their own, and the page defines every variable in light and dark."""
    css = (resources.files("dlcv_cli.report") / "templates" / "page.css").read_text("utf-8")
    for variable in VARIABLES.values():
        assert css.count(f"{variable}: #") >= 2, variable
    rows = [random_row(name, 5, np.random.default_rng(k)) for k, name in enumerate("ab")]
    svg = "".join(render_inline(figure, "f") for group in draw_figures(rows, "a") for figure in group.figures)
    assert not re.search("#[0-9a-f]{6}", svg)


def test_figures_are_reproducible() -> None:
    """The same figure gives the same bytes in every format, for paper and page."""
    [figure] = draw_recall([random_row("net", 5, np.random.default_rng(1))])
    formats = ("svg", "pdf", "png")
    assert render_files(figure, formats) == render_files(figure, formats)
    assert render_inline(figure, "f") == render_inline(figure, "f")


def test_lineage_draws_direct_edges_only() -> None:
    """An edge that a longer path implies is not drawn, but is in the table."""
    nodes = (Node("split", "", "1"), Node("head", "", "2", (0,)), Node("fine", "", "3", (0, 1)))
    graph = Graph("line", "", "", nodes)
    assert graph.edges() == [(0, 1), (1, 2)]
    assert graph.layers == (0, 1, 2)
    assert graph.table().rows[2][2] == "split, head"


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [(0.1, 0.9), (5e-5, 0.3), (3.0,), (1e-9, 1e9), (0.97, 1.0), (-2.0, 5.0)])
def test_axis_covers_values_and_ticks(values: tuple[float, ...], log: bool) -> None:
    """An axis covers its values and has two to six ticks, in order (one value: one or more)."""
    axis = spanning_axis("x", values, log=log, percent=values[0] < 1 < 3 and values[-1] <= 1 and values[0] > 0)
    assert axis.low <= min(values) <= max(values) <= axis.high
    assert 0 <= axis.place(min(values)) <= axis.place(max(values)) <= 1
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 7
    assert ticks == sorted(ticks)
    assert all(axis.low - 1e-9 <= tick <= axis.high + 1e-9 for tick in ticks)


@pytest.mark.parametrize("char", ["\x1b", "\u202e", "\u2028", "\u2066"])
def test_control_characters_are_escaped(char: str) -> None:
    """Characters that control a terminal or the direction of text are shown as escapes."""
    figure = Forest("key", f"a{char}b", char, (char,), (Panel(Axis("x", 0, 1), ((0.5, None),)),))
    svg = render_inline(figure, "f")
    assert char not in svg
    assert "a" + char.encode("unicode_escape").decode() + "b" in svg


@pytest.mark.parametrize("name", ["straße", "猫", "فارسی\u200cها", "👩\u200d🔬", "नमस्ते", "$x_1$", "<b>&"])
def test_names_are_drawn_as_they_are(name: str) -> None:
    """Names in any script, with joiners, emoji, formulas or markup, are text in the figure."""
    figure = Forest("key", "title", "text", (name,), (Panel(Axis("x", 0, 1), ((0.5, None),)),))
    root = ElementTree.fromstring(render_inline(figure, "f"))
    assert name in [element.text for element in root.iter("text")]
