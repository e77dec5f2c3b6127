"""The data of figures, and how they are drawn for the page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
from dlcv_cli.report.markup import plain
from dlcv_cli.report.page_parts import Network, Study
from dlcv_cli.report.svg import draw
from test_report import Page

from dlcv_cli.report import figures
from dlcv_cli.report.axes import Axis, over
from dlcv_cli.report.kinds import AnyFigure, Forest, Graph, Node, Panel
from dlcv_cli.report.page import page


def many(classes: int, rng: np.random.Generator) -> dict[str, Any]:
    """An evaluation over many classes, as the files have it, with errors everywhere."""
    counts = rng.integers(8, 40, classes)
    confusion, per_class = [], []
    for label, n in enumerate(counts):
        answers = np.bincount(np.where(rng.random(n) < 0.6, label, rng.integers(0, classes, n)), minlength=classes)
        confusion += [[label, int(a), int(answers[a])] for a in np.flatnonzero(answers)]
        row = {"class": f"class_number_{label}", "n": int(n), "recall": answers[label] / n, "precision": 0.5}
        per_class.append(row | {"answered": 3})
    bins = [{"low": k / 15, "high": (k + 1) / 15, "n": 9, "confidence": k / 15, "accuracy": k / 16} for k in range(15)]
    values = {"top1_accuracy": 0.6, "top5_accuracy": 0.8, "mean_per_class_recall": 0.6, "loss": 1.5}
    values["expected_calibration_error"] = 0.1
    return {"metrics": values, "confusion": confusion, "per_class": per_class, "calibration": bins}


def test_a_hundred_classes_stay_small() -> None:
    """Four networks over 101 classes, all figures and tables but no photos, are less than 1 MB; every name is there."""
    rng = np.random.default_rng(0)
    documents = {f"net{k}": many(101, rng) for k in range(4)}
    rows = [{"name": name, "metrics": d["metrics"], "best": []} for name, d in documents.items()]
    comparison = {"study": "images", "split": "test", "n": 1736, "rows": rows}
    drawn: dict[str, list[AnyFigure]] = {
        "confusion": [figures.confusion(name, d) for name, d in documents.items()],
        "recall": [figures.recall(name, d) for name, d in documents.items()],
        "calibration": [figures.calibration(name, d) for name, d in documents.items()],
        "line": [Graph("line", "line", "a line of files from here to there", (Node("a", "b", "c" * 64),))],
    }
    networks = tuple(Network(name, d, {}) for name, d in documents.items())
    made = page([Study(comparison, networks, figures.comparison(comparison), drawn)], {})
    assert len(made) < 1_000_000
    Page(made)
    matrix = ElementTree.fromstring(draw(drawn["confusion"][0], "f"))
    assert sum((text.text or "").startswith("class_number_") for text in matrix.iter("text")) == 202


def test_confusion_shows_every_cell() -> None:
    """The cells of a drawn matrix are those of the evaluation, each in its row and column."""
    document = many(5, np.random.default_rng(1))
    figure = figures.confusion("net", document)
    drawn = draw(figure, "f")
    assert len(re.findall(r"M[\d.]+ [\d.]+h26", drawn)) == len(document["confusion"])
    assert figure.table().rows[0][2] == str(max(n for t, a, n in document["confusion"] if t != a))


def test_learning_curves_over_seeds() -> None:
    """Several runs become median and range; each run's best record is marked."""
    records = [
        {"seed": seed, "iteration": step, "train_loss": 2.0 + seed, "val_loss": (1.0 + seed) / step}
        for seed in range(3)
        for step in (100, 200)
    ]
    [curves] = figures.learning([("gru", {"records": records, "best": records[1]})], "sequences")
    validation = curves.lines[0]
    assert validation.x == (100, 200)
    assert validation.y == (0.02, 0.01)
    assert validation.band == ((0.01, 0.03), (0.005, 0.015))
    assert validation.marks == ((200, 0.005), (200, 0.01), (200, 0.015))


def test_density_counts_every_answer() -> None:
    """Each answer of each run is in one cell, what lies beyond the axis at its end."""
    targets = np.linspace(0, 2, 50, dtype=np.float32)
    answers = np.stack([targets, targets + 100]).astype(np.float32)
    figure = figures.predicted("net", answers, targets)
    assert figure.counts.sum() == 100
    assert figure.counts[:, -1].sum() == 50
    assert "50 lie beyond the axis" in figure.text
    assert sum(row[2] for row in figure.deciles) == 100


def test_lines_between_files_are_the_direct_ones() -> None:
    """A line that a longer way says already is not drawn, though the table behind names it."""
    nodes = (Node("split", "", "1"), Node("head", "", "2", (0,)), Node("fine", "", "3", (0, 1)))
    graph = Graph("line", "", "", nodes)
    assert graph.edges() == [(0, 1), (1, 2)]
    assert graph.layers == (0, 1, 2)
    assert graph.table().rows[2][2] == "split, head"


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [(0.1, 0.9), (5e-5, 0.3), (3.0,), (1e-9, 1e9), (0.97, 1.0), (-2.0, 5.0)])
def test_axes(values: tuple[float, ...], log: bool) -> None:
    """An axis holds its values, has two to six ticks within its ends (one value: at least one), and all in order."""
    axis = over("x", values, log=log, percent=values[0] < 1 < 3 and values[-1] <= 1 and values[0] > 0)
    assert axis.low <= min(values) <= max(values) <= axis.high
    assert 0 <= axis.place(min(values)) <= axis.place(max(values)) <= 1
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 7
    assert ticks == sorted(ticks)
    assert all(axis.low - 1e-9 <= tick <= axis.high + 1e-9 for tick in ticks)


@pytest.mark.parametrize("char", ["\0", "\x1b", "\u202e", "\udcff", "\u2028", "\ufffe", "\u2066"])
def test_control_characters_are_escapes(char: str) -> None:
    """What controls a terminal, turns the text around or is no text at all is shown as an escape."""
    assert plain(f"a{char}b") == "a" + char.encode("unicode_escape").decode() + "b"
    figure = Forest("key", f"a{char}b", char, (char,), (Panel(Axis("x", 0, 1), ((0.5, None),)),))
    assert char not in draw(figure, "f")


def test_letters_of_all_scripts_stay() -> None:
    """Names in any script are shown as they are, joiners and emoji included."""
    for name in ("straße", "猫", "فارسی‌ها", "👩‍🔬", "नमस्ते"):
        assert plain(name) == name
