"""The collapse rule against random permutations, and how often it is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.typing import NDArray
from sklearn.metrics import recall_score

from dlcv_cli.statistics import collapse
from dlcv_cli.statistics.collapse import Collapse, judge_classes, judge_numbers

Labels = NDArray[np.int64]


def judge(answers: Labels, labels: Labels, classes: int = 2) -> Collapse:
    """Return the verdict on these answers, where the baseline always answers 0."""
    counts = [np.bincount(values, minlength=classes) for values in (answers, answers[answers == labels])]
    return judge_classes(counts[0], counts[1], labels, 0, [f"c{k}" for k in range(classes)])


def test_guessing_matches_permutations() -> None:
    """Mean and deviation of the recall of guessing are those over random orders of the answers."""
    for seed in range(8):
        rng = default_rng(seed)
        labels, answers = rng.choice(4, 60, p=[0.6, 0.25, 0.1, 0.05]), rng.integers(0, 5, 60)
        counts = [np.bincount(v, minlength=5) for v in (answers, answers[answers == labels], labels)]
        recall, mean, deviation = collapse._compare_with_guessing(*counts)
        present = np.unique(labels)
        assert recall == pytest.approx(recall_score(labels, answers, labels=present, average="macro", zero_division=0))
        orders = rng.permuted(np.tile(answers, (8000, 1)), axis=1)
        recalls = np.mean([(orders[:, labels == c] == c).mean(1) for c in present], axis=0)
        assert mean == pytest.approx(recalls.mean(), abs=4 * recalls.std() / np.sqrt(8000))
        assert deviation == pytest.approx(recalls.std(), rel=0.05)


@pytest.mark.parametrize(("n", "rare"), [(50, 0.1), (100, 0.1), (1000, 0.05)])
def test_networks_that_see_rare_classes_have_not_collapsed(n: int, rare: float) -> None:
    """At most 3 % of networks with recalls of 0.98 and 0.6 are called collapsed, although few beat the baseline."""
    fallen = 0
    for seed in range(400):
        rng = default_rng((n, seed))
        labels = (rng.random(n) < rare).astype(np.int64)
        fallen += judge((rng.random(n) < np.where(labels, 0.6, 0.02)).astype(np.int64), labels).collapsed
    assert fallen <= 12


@pytest.mark.parametrize(("rare", "answered"), [(0.05, 0.05), (0.05, 0.4), (0.5, 0.5)])
def test_answers_without_regard_to_the_image_have_collapsed(rare: float, answered: float) -> None:
    """Of 1,000 images, at least 95 % of networks that guess are called collapsed, and the words say why."""
    fallen = 0
    for seed in range(400):
        rng = default_rng((1, seed))
        labels = (rng.random(1000) < rare).astype(np.int64)
        verdict = judge((rng.random(1000) < answered).astype(np.int64), labels)
        fallen += verdict.collapsed
        assert verdict.runs_collapsed == verdict.collapsed
        assert verdict.why is None or verdict.why.startswith("no better than always c0 (")
    assert fallen >= 380


def test_few_images_of_other_classes_say_nothing() -> None:
    """With nine images that are not of the baseline's class nothing is judged, with ten it is."""
    answers = np.arange(100) % 2
    labels = np.zeros(100, np.int64)
    labels[:9] = 1
    assert not judge(answers, labels).collapsed
    labels[9] = 1
    assert judge(answers, labels).collapsed


def test_a_better_accuracy_is_enough() -> None:
    """A network that is better than the baseline by McNemar's test has not collapsed, whatever its mean recall."""
    labels = np.concatenate([np.repeat([0, 1], [50, 40]), np.arange(2, 10)])
    answers = np.minimum(labels, 1)
    answers[labels > 1] = 0
    answers[50:70] = 2 + np.arange(20) % 8  # so that a guess is right of a rare class now and then
    counts = [np.bincount(v, minlength=10) for v in (answers, answers[answers == labels], labels)]
    recall, guessing, deviation = collapse._compare_with_guessing(*counts)
    assert recall < guessing + 1.96 * deviation
    assert not judge(answers, labels, 10).collapsed
    answers[70:90] = 0
    assert judge(answers, labels, 10).collapsed


def test_cells_are_compared_on_the_same_sequences() -> None:
    """With 400 sequences, a cell that explains a tenth of the variance has not collapsed; noise has."""
    weak, none = 0, 0
    for seed in range(100):
        rng = default_rng(seed)
        targets = rng.random((2, 400)).sum(0).astype(np.float32)
        answers = (1 + 0.1 * (targets - 1) + rng.normal(0, 0.04, 400)).astype(np.float32)
        weak += judge_numbers(answers, targets, 1.0).collapsed
        none += judge_numbers((1 + rng.normal(0, 0.1, 400)).astype(np.float32), targets, 1.0).collapsed
    assert weak <= 3
    assert none >= 97
