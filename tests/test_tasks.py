"""The adding problem of 1997, the answer of one who knows one of two things, and evaluation by length."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, run_dlcv
from numpy.typing import NDArray
from scipy import stats

from dlcv_cli.config import GenConfig
from dlcv_cli.errors import SettingError
from dlcv_cli.files import sequences
from dlcv_cli.sequences.tasks import TASKS, Sequences, generate
from dlcv_cli.studies.sequences.study import METRICS, Predicted, measure_by_length


def draw(task: str, count: int, low: int, high: int, seed: int = 0) -> Sequences:
    """Return `count` sequences of a task."""
    return generate(GenConfig(task=task, min_length=low, max_length=high, seed=seed), count, 0)


def list_sequences(data: Sequences) -> list[NDArray[np.float32]]:
    """Return the inputs (T, F) of every sequence."""
    return np.split(data.inputs, np.cumsum(data.lengths)[:-1])


# ------------------------------------------------------------------------------------------------------- adding-1997


@pytest.mark.parametrize(("low", "high"), [(20, 22), (21, 21), (100, 110)])
def test_adding_1997_sequences(low: int, high: int) -> None:
    """Values are in [-1, 1], markers -1 at both ends and 1 at two steps (a first step counts 0), the sum scaled."""
    data, first_marked, least = draw("adding-1997", 3000, low, high), 0, 0.0
    assert set(data.lengths.tolist()) == set(range(low, high + 1))
    for x, target in zip(list_sequences(data), data.targets, strict=True):
        values, markers = x.T.astype(np.float64)
        assert np.abs(values).max() <= 1
        least = min(least, values.min())
        marked = np.flatnonzero(markers == 1)
        assert len(marked) == 2
        assert marked[0] < 10, "one is among the first ten"
        late = marked[1] if marked[1] >= 10 or marked[0] >= low // 2 - 1 else marked.min()
        assert late < low // 2 - 1, "the other is among the first T/2 - 1 of the shortest T"
        assert markers[-1] == -1
        assert markers[0] == (1 if 0 in marked else -1)
        assert not np.delete(markers, [0, *marked, len(markers) - 1]).any()
        if 0 in marked:
            first_marked += 1
            assert values[0] == 0
        assert target == np.float32(0.5 + values[marked].sum() / 4)
        assert 0 <= target <= 1
    assert first_marked > 0, "the case occurs"
    assert least < -0.99
    assert data.inputs.dtype == data.targets.dtype == np.float32


@pytest.mark.parametrize("low", [20, 21, 22, 60])
def test_adding_1997_marks(low: int) -> None:
    """Every pair of steps is marked as often as the definition says."""
    count, limit = 20_000, low // 2 - 1
    expected: dict[tuple[int, int], float] = {}
    for early in range(10):
        others = [late for late in range(limit) if late != early]
        for late in others:
            pair = (min(early, late), max(early, late))
            expected[pair] = expected.get(pair, 0) + count / 10 / len(others)
    actual = dict.fromkeys(expected, 0)
    for x in list_sequences(draw("adding-1997", count, low, low)):
        number, other = np.flatnonzero(x[:, 1] == 1).tolist()
        actual[number, other] += 1
    assert stats.chisquare([*actual.values()], [*expected.values()]).pvalue > 1e-4


def test_adding_1997_values() -> None:
    """Values are uniform in [-1, 1], except at the first step."""
    values = np.concatenate([x[1:, 0] for x in list_sequences(draw("adding-1997", 2000, 20, 22))])
    assert stats.kstest(values, "uniform", (-1, 2)).pvalue > 1e-4


def test_adding_1997_lengths(run: Run, tmp_path: Path) -> None:
    """Sequences too short for the definition are refused; the shortest possible ones are drawn."""
    with pytest.raises(SettingError, match="--min-length is 19: adding-1997 needs at least 20"):
        draw("adding-1997", 3, 19, 40)
    assert draw("adding-1997", 3, 20, 20).lengths.tolist() == [20] * 3
    result = run("seq", "gen", "--task", "adding-1997", "-o", tmp_path / "d.safetensors")
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])


# --------------------------------------------------------------------------------------------------------- knows one


def get_first(task: str, x: NDArray[np.float32]) -> float:
    """Return the first marked value, or the first symbol."""
    if task == "temporal-order":
        return float(next(row[:2].argmax() for row in x if row[:2].any()))
    return next(float(value) for value, mark in x if mark == 1)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_guess_is_the_conditional_mean(task: str) -> None:
    """The guess is the mean target given the first value, in ten bins, to four standard errors."""
    data = draw(task, 20_000, 22, 24)
    firsts = np.array([get_first(task, x) for x in list_sequences(data)])
    answers = np.array([TASKS[task].guess(x) for x in list_sequences(data)])
    edges = np.unique(np.quantile(firsts, np.linspace(0, 1, 11)))
    bins = np.searchsorted(edges[1:-1], firsts, "right") if len(edges) > 2 else firsts
    assert len(np.unique(bins)) >= (2 if task == "temporal-order" else 9)
    for number in np.unique(bins):
        errors = data.targets[bins == number] - answers[bins == number]
        assert abs(errors.mean()) < 4 * errors.std() / len(errors) ** 0.5
    assert (np.abs(np.diff(answers[np.argsort(firsts)])) < 0.7).all()
    slopes = {"adding": 1, "adding-1997": 1 / 4, "multiplication": 1 / 2, "temporal-order": 2 / 3}
    np.testing.assert_allclose(answers - answers[0], slopes[task] * (firsts - firsts[0]), atol=1e-6)


def score_numbers(predictions: Any, targets: Any) -> dict[str, float]:
    """Return the metrics of numbers."""
    return {metric.column.key: metric.value(Predicted(predictions, targets)) for metric in METRICS}


@pytest.mark.parametrize(
    ("task", "mse", "mae"),
    [
        ("adding", 1 / 12, 1 / 4),  # one uniform number's variance, and its mean distance from 1/2
        ("adding-1997", 1 / 3 / 16, 1 / 2 / 4),
        ("multiplication", 1 / 3 / 12, 1 / 2 / 4),
        ("temporal-order", 1 / 36, 1 / 6),
    ],
)
def test_errors_of_the_guess(task: str, mse: float, mae: float) -> None:
    """Its squared and absolute errors have the means computed by hand, to 3 %."""
    data = draw(task, 20_000, 200, 200) if task == "adding-1997" else draw(task, 20_000, 2, 4)
    actual = score_numbers(np.array([TASKS[task].guess(x) for x in list_sequences(data)]), data.targets)
    assert actual["mse"] == pytest.approx(mse, rel=0.03)
    assert actual["mae"] == pytest.approx(mae, rel=0.03)


def test_baselines_in_the_evaluation(run: Run, tmp_path: Path) -> None:
    """The evaluation has the baselines of the task; a sequence without marks is refused by name."""
    for task in TASKS:
        data, output = tmp_path / f"{task}.safetensors", tmp_path / f"{task}.baseline.safetensors"
        run_dlcv("seq", "gen", "--task", task, "--count", 200, "--min-length", 20, "--max-length", 24, "-o", data)
        run_dlcv("seq", "train", data, "--cell", "baseline", "-o", output)
        result = run("eval", "--compare", output, "--format", "csv")
        part = sequences.read(data).parts["test"]
        for line, answers in zip(
            list(csv.DictReader(result.stdout.splitlines()))[1:],
            (np.full(40, TASKS[task].constant), np.array([TASKS[task].guess(x) for x in list_sequences(part)])),
            strict=True,
        ):
            scores = [float(line[key]) for key in ("mse", "mae", "close", "r2")]
            assert scores == pytest.approx([*score_numbers(answers, part.targets).values()], rel=1e-6)


# --------------------------------------------------------------------------------------------------------- by length


def test_by_length_sums_to_the_total() -> None:
    """The metrics by length, weighted by their numbers, give the total; lengths are in order."""
    rng = np.random.default_rng(0)
    lengths, targets = rng.choice([2, 3, 7, 50], 60), rng.random(60, np.float32)
    answers = (targets + rng.normal(0, 0.06, 60)).astype(np.float32)
    rows = measure_by_length(answers, targets, lengths)
    assert [row.length for row in rows] == [2, 3, 7, 50]
    assert [row.n for row in rows] == [int((lengths == length).sum()) for length in (2, 3, 7, 50)]
    for key, total in score_numbers(answers, targets).items():
        if key == "r2":  # no mean over sequences
            continue
        assert sum(row.n * getattr(row, key) for row in rows) / 60 == pytest.approx(total, rel=1e-12)
    errors = np.abs(answers - targets)[lengths == 7]
    assert rows[2].mae == pytest.approx(errors.mean(), rel=1e-6)
    assert rows[2].close == pytest.approx((errors < 0.04).mean())
