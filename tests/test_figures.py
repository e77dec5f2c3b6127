"""The data of figures, and how they are drawn for the page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from test_report import Page

from dlcv_cli.report.figures import draw_comparison, draw_learning
from dlcv_cli.report.kinds import Axis, FigureGroup, Forest, Graph, Node, Panel, spanning_axis
from dlcv_cli.report.page import Section, write_page
from dlcv_cli.report.palette import VARIABLES
from dlcv_cli.report.render import render_files, render_inline
from dlcv_cli.report.reported import Reported
from dlcv_cli.results.comparison import Comparison
from dlcv_cli.results.evaluation import Evaluation, ImageDetails
from dlcv_cli.results.metrics import TrainingMetrics
from dlcv_cli.studies.images.report import draw_calibration, draw_confusion, draw_recall
from dlcv_cli.studies.sequences.study import draw_predictions

DATA = {"study": "images", "part": "test", "n": 1736, "path": "a.split.json", "fingerprint": "f"}
COLLAPSE = {"collapsed": False, "why": None, "classes_predicted": 9, "most_frequent": "a", "share": 0.1}
LEAK = {"checked": [], "unchecked": [], "unrecorded": [], "examples": 0, "chosen": 0, "of": 1736, "by_chance": False}


def random_evaluation(classes: int, rng: np.random.Generator) -> Evaluation[ImageDetails]:
    """Return an evaluation over many classes with errors everywhere."""
    counts = rng.integers(8, 40, classes)
    confusion, per_class = [], []
    for label, n in enumerate(counts):
        answers = np.bincount(np.where(rng.random(n) < 0.6, label, rng.integers(0, classes, n)), minlength=classes)
        confusion += [[label, int(a), int(answers[a])] for a in np.flatnonzero(answers)]
        row = {"class": f"class_number_{label}", "n": int(n), "recall": float(answers[label] / n), "precision": 0.5}
        per_class.append(row | {"predicted": 3})
    bins = [{"low": k / 15, "high": (k + 1) / 15, "n": 9, "confidence": k / 15, "accuracy": k / 16} for k in range(15)]
    details = {"per_class": per_class, "confusion": confusion, "confused": [], "calibration": bins}
    document = {
        "stage": "eval", "config": {}, "inputs": {}, "data": DATA, "intervals": {}, "intervals_over": "examples",
        "metrics": {"top1_accuracy": 0.6, "expected_calibration_error": 0.1}, "baselines": [], "collapse": COLLAPSE,
        "per_seed": [], "seed_spread": {}, "details": details | {"highest_loss": [], "root": "."},
        "contamination": LEAK | {"allowed": False}, "predictions": {"path": "p", "sha256": "0" * 64}, "run": {},
    }  # fmt: skip
    return msgspec.convert(document, Evaluation[ImageDetails])


def training_metrics(records: list[dict[str, Any]]) -> TrainingMetrics:
    """Return the metrics of a training with these records, the second of which is the best."""
    document = {
        "stage": "seq.train", "config": {}, "inputs": {}, "parameters": {"total": 1, "trainable": 1}, "run": {},
        "records": records, "best": records[1], "checkpoint": {"path": "a", "sha256": "0" * 64},
    }  # fmt: skip
    return msgspec.convert(document, TrainingMetrics)


def test_page_of_a_hundred_classes_is_small() -> None:
    """A page of three networks over 101 classes is below 1 MB and names every class."""
    rng = np.random.default_rng(0)
    evaluations = {f"net{k}": random_evaluation(101, rng) for k in range(3)}
    row = {"baseline": False, "intervals": {}, "intervals_over": "examples", "contaminated": False, "difference": 0}
    rows = [row | {"name": name, "metrics": e.metrics, "best": []} for name, e in evaluations.items()]
    column = {"key": "top1_accuracy", "heading": "top-1 %", "noun": "accuracy", "higher_is_better": True}
    document = {"data": DATA, "common": None, "reference": "net0", "metric": "top1_accuracy", "columns": [column]}
    comparison = msgspec.convert(document | {"rows": rows, "pairs": []}, Comparison)
    confusions = [draw_confusion(*pair) for pair in evaluations.items()]
    groups = (
        FigureGroup("Confusion", "", confusions),
        FigureGroup("Recall", "", [draw_recall(*pair) for pair in evaluations.items()]),
        FigureGroup("Calibration", "", [draw_calibration(*pair) for pair in evaluations.items()]),
    )
    lineage = FigureGroup("Lineage", "", [Graph("lineage", "Lineage", "One file.", (Node("a", "b", "c" * 64),))])
    records: list[dict[str, Any]] = [{"epoch": k, "train_loss": 1, "val_loss": 1} for k in (1, 2)]
    networks = tuple(Reported(n, Path(), Path(), e, training_metrics(records)) for n, e in evaluations.items())
    text = write_page([Section(comparison, networks, draw_comparison(comparison), groups, lineage)], {})
    assert len(text) < 1_000_000
    Page(text)
    matrix = ElementTree.fromstring(render_inline(confusions[0], "f"))
    assert sum((label.text or "").startswith("class_number_") for label in matrix.iter("text")) == 202


def test_confusion_shows_every_cell() -> None:
    """A matrix has one square per cell, and its table starts with the most frequent error."""
    evaluation = random_evaluation(5, np.random.default_rng(1))
    figure = draw_confusion("net", evaluation)
    root = ElementTree.fromstring(render_inline(figure, "f"))
    shaded = [path.get("d") or "" for path in root.iter("path") if "fill:var(--h" in (path.get("style") or "")]
    assert sum(d.count("M") for d in shaded) == len(evaluation.details.confusion)
    assert figure.table().rows[0][2] == str(max(n for t, a, n in evaluation.details.confusion if t != a))


def test_learning_curves_over_seeds() -> None:
    """Several runs become median and range; the best record of each run is marked."""
    records = [
        {"seed": seed, "iteration": step, "train_loss": 2.0 + seed, "val_loss": (1.0 + seed) / step}
        for seed in range(3)
        for step in (100, 200)
    ]
    [curves] = draw_learning([("gru", training_metrics(records))], "iteration", log_loss=True)
    validation = curves.lines[0]
    assert validation.x == (100, 200)
    assert validation.y == (0.02, 0.01)
    assert validation.band == ((0.01, 0.03), (0.005, 0.015))
    assert validation.marks == ((200, 0.005), (200, 0.01), (200, 0.015))


def test_density_counts_every_prediction() -> None:
    """Each prediction of each run is in one cell, outliers in the last one."""
    targets = np.linspace(0, 2, 50, dtype=np.float32)
    predictions = np.stack([targets, targets + 100]).astype(np.float32)
    figure = draw_predictions("net", predictions, targets)
    assert figure.counts.sum() == 100
    assert figure.counts[:, -1].sum() == 50
    assert "50 lie beyond the axis" in figure.text
    assert sum(row[2] for row in figure.deciles) == 100


def test_colours_are_variables_of_the_style_sheet() -> None:
    """Inline figures have no colour of their own, and the page defines every variable in light and dark."""
    css = (resources.files("dlcv_cli.report") / "templates" / "page.css").read_text("utf-8")
    for variable in VARIABLES.values():
        assert css.count(f"{variable}: #") >= 2, variable
    svg = render_inline(draw_confusion("net", random_evaluation(5, np.random.default_rng(1))), "f")
    assert not re.search("#[0-9a-f]{6}", svg)


def test_figures_are_reproducible() -> None:
    """The same figure gives the same bytes in every format, for paper and page."""
    figure = draw_recall("net", random_evaluation(5, np.random.default_rng(1)))
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
