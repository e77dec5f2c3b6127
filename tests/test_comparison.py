"""What evaluations of the same data come to, what of different data, and which networks have collapsed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats

from dlcv_cli.errors import DlcvError
from dlcv_cli.results import codec
from dlcv_cli.results.comparison import Comparison
from dlcv_cli.results.evaluation import (
    Contamination,
    Data,
    Evaluation,
)
from dlcv_cli.results.metrics import OutputFile
from dlcv_cli.stages.compare import Network, compare_networks
from dlcv_cli.statistics.collapse import Collapse, judge_classes, judge_numbers
from dlcv_cli.statistics.metrics import score_logits
from dlcv_cli.studies.base import summarize, systems_of
from dlcv_cli.studies.images.study import ImageStudy, describe_errors
from dlcv_cli.studies.sequences.study import SequenceStudy, measure_by_length
from dlcv_cli.vision.splits import Example

# ----------------------------------------------------------------------------------------------------------- collapse


def judge(answers: list[int], labels: list[int]) -> Collapse:
    """Return the verdict on these predictions, where the baseline predicts class 0."""
    classes = max(labels) + 1
    right = sum(a == b for a, b in zip(answers, labels, strict=True))
    answered = np.bincount(answers, minlength=classes)
    return judge_classes(answered, np.array(labels), right, 0, [f"c{k}" for k in range(classes)])


def test_constant_classifier_has_collapsed() -> None:
    """A classifier that always predicts one class has collapsed; the verdict has class and share."""
    labels = [0] * 40 + [k for k in range(1, 20) for _ in range(5)]
    collapse = judge([0] * len(labels), labels)
    assert collapse.collapsed is True
    assert (collapse.classes_predicted, collapse.most_frequent, collapse.share) == (1, "c0", 1.0)
    assert "1 of 20 classes" in collapse.why


def test_classifier_of_few_classes_has_collapsed() -> None:
    """A classifier of a quarter of the classes has collapsed, however accurate; one of more classes has not."""
    labels = [k for k in range(8) for _ in range(25)]
    assert judge([label if label < 2 else 1 for label in labels], labels).why == "predicts 2 of 8 classes"
    assert not judge([label if label < 3 else 1 for label in labels], labels).collapsed


def test_classifier_no_better_than_baseline_has_collapsed() -> None:
    """A varied classifier within the baseline's interval has collapsed."""
    labels = [0] * 30 + [k for k in range(1, 10) for _ in range(10)]
    shuffled = np.random.default_rng(0).permutation(labels).tolist()
    collapse = judge(shuffled, labels)
    assert collapse.collapsed is True
    assert "no better than always c0" in collapse.why
    assert not judge(labels, labels).collapsed
    assert judge([0, 1] * 15, [0, 0, 1] * 10).collapsed, "30 examples"
    assert not judge([0, 1] * 14, [0, 0, 1, 1] * 7).collapsed, "fewer say nothing"


@pytest.mark.parametrize(
    ("noise", "scale", "why"),
    [(0.01, 0.0, "the same within"), (0.45, 1.0, "no better than constant 1"), (0.1, 1.0, None)],
)
def test_collapsed_cells(noise: float, scale: float, why: str | None) -> None:
    """Constant predictions, and predictions no better than the constant, are collapses; moderate ones are not."""
    rng = np.random.default_rng(0)
    targets = rng.random((2, 400)).sum(0).astype(np.float32)
    answers = (1 + scale * (targets - 1) + rng.normal(0, noise, 400)).astype(np.float32)
    collapse = judge_numbers(answers[None], targets, 1.0)
    assert collapse.collapsed is (why is not None)
    assert (why or "") in (collapse.why or "")
    good = targets + rng.normal(0, 0.01, 400).astype(np.float32)
    several = judge_numbers(np.array([answers, good, good]), targets, 1.0)
    assert (several.why or "").startswith("1 of 3 runs") is (why is not None)
    assert not judge_numbers(answers[None], targets, 1.0, learns=False).collapsed


# -------------------------------------------------------------------------------------------------------- comparisons


NO_LEAK = Contamination(
    checked=[], unchecked=[], unrecorded=[], examples=0, chosen=0, of=0, by_chance=False, allowed=False
)
GOOD = Collapse(collapsed=False, why=None, classes_predicted=None, most_frequent="", share=0)


def store_evaluation(
    study: Any, name: str, arrays: Any, details: Any, seeds: list[int], baseline: str, fingerprint: str
) -> Network:
    """Return an evaluation as it is stored, with its predictions."""
    data = Data(study=study.name, part="test", n=len(arrays["examples"]), path=name, fingerprint=fingerprint)
    summary = summarize(study, systems_of(study, arrays, name, seeds, [baseline]))
    evaluation: Any = Evaluation(
        stage="eval", config={}, inputs={}, data=data, **vars(summary), collapse=GOOD, details=details,
        contamination=NO_LEAK, predictions=OutputFile(path="", sha256=""), run={},
    )  # fmt: skip
    return Network(name, evaluation, arrays)


def evaluate_images(name: str, logits: Any, labels: Any, examples: Any, fingerprint: str = "f" * 64) -> Network:
    """Return an evaluation of images by these logits."""
    labels = np.asarray(labels)
    arrays = {"logits": logits.astype(np.float32), "labels": labels, "examples": np.asarray(examples)}
    arrays["baselines"] = np.zeros((1, len(labels)), np.int64)
    names = [f"c{k}" for k in range(logits.shape[1])]
    known = [Example(f"{k}.png", int(label), "0" * 64) for k, label in enumerate(labels)]
    details = describe_errors(score_logits(arrays["logits"], labels), names, known, "photos")
    return store_evaluation(ImageStudy(), name, arrays, details, [], "always c0", fingerprint)


def evaluate_cells(name: str, errors: Any, seeds: list[int], fingerprint: str = "f" * 64) -> Network:
    """Return an evaluation of sequences by these errors (N,)."""
    n = len(errors)
    targets = np.linspace(0, 2, n, dtype=np.float32)
    predictions = (targets + errors).astype(np.float32)
    arrays = {"predictions": predictions, "targets": targets, "lengths": np.full(n, 5)}
    arrays |= {"baselines": np.ones((1, n), np.float32), "examples": draw_keys(n)}
    rows = measure_by_length(predictions, targets, arrays["lengths"])
    details = SequenceStudy.details(by_length=rows)
    return store_evaluation(SequenceStudy(), name, arrays, details, seeds, "constant 1", fingerprint)


def compare(networks: list[Network], reference: str | None = None, common: bool = False) -> dict[str, Any]:
    """Return the comparison's document."""
    comparison: Comparison = compare_networks(networks, reference, common)
    return codec.encode(comparison)


def draw_logits(seed: int, labels: Any, right: float) -> Any:
    """Return logits over 4 classes whose accuracy is `right`."""
    rng = np.random.default_rng(seed)
    answers = np.where(rng.random(len(labels)) < right, labels, (labels + 1) % 4)
    return np.eye(4)[answers] * 3 + rng.normal(0, 0.1, (len(labels), 4))


def draw_keys(n: int) -> Any:
    """Return n different rows of 32 bytes."""
    rows = np.zeros((n, 32), np.uint8)
    rows[:, :4] = np.arange(n, dtype=np.uint32)[:, None].view(np.uint8)
    return rows


LABELS = np.arange(400) % 4


def test_image_comparison_tests_each_pair() -> None:
    """Accuracies are tested by McNemar, recalls by permutation and bootstrap, corrected over the rows."""
    evaluations = [evaluate_images(n, draw_logits(s, LABELS, r), LABELS, draw_keys(400)) for n, s, r in
             (("a", 0, 0.7), ("b", 1, 0.9), ("c", 2, 0.72))]  # fmt: skip
    comparison = compare(evaluations, reference="b")
    assert comparison["reference"] == "b"
    pairs = {(pair["name"], pair["metric"]): pair for pair in comparison["pairs"]}
    assert len(pairs) == 6
    right = {e.name: e.arrays["logits"].argmax(1) == LABELS for e in evaluations} | {"baseline: always c0": LABELS == 0}
    for name, answers in right.items():
        if name == "b":
            continue
        pair = pairs[name, "top1_accuracy"]
        only, lost = int((answers & ~right["b"]).sum()), int((right["b"] & ~answers).sum())
        assert (pair["only_row"], pair["only_reference"]) == (only, lost)
        assert pair["difference"] == pytest.approx(answers.mean() - right["b"].mean())
        exact = stats.binomtest(only, only + lost).pvalue
        assert pair["p_exact"] == pytest.approx(exact)
        assert pair["p"] == pytest.approx(exact - stats.binom.pmf(only, only + lost, 0.5))
        assert pair["interval"][0] <= pair["difference"] <= pair["interval"][1]
        recall = pairs[name, "mean_per_class_recall"]
        assert recall["difference"] == pytest.approx(pair["difference"]), "all classes are as large"
        assert (recall["n"], recall["over"]) == (400, "examples")
    for metric in ("top1_accuracy", "mean_per_class_recall"):
        of_metric = sorted((p["p"], p["p_holm"]) for p in comparison["pairs"] if p["metric"] == metric)
        assert of_metric[0][1] == pytest.approx(3 * of_metric[0][0])
    assert compare(evaluations, reference="b") == comparison, "the same predictions, the same numbers"


def test_comparison_sentences() -> None:
    """A sentence names the winner first, with points, interval and p; without significance it claims nothing."""
    evaluations = [evaluate_images(n, draw_logits(s, LABELS, r), LABELS, draw_keys(400)) for n, s, r in
             (("a", 0, 0.7), ("b", 1, 0.9), ("c", 2, 0.7), ("same", 0, 0.7))]  # fmt: skip
    sentences = [pair["sentence"] for pair in compare(evaluations)["pairs"][:4]]
    points = 100 * (
        evaluations[1].evaluation.metrics["top1_accuracy"] - evaluations[0].evaluation.metrics["top1_accuracy"]
    )
    assert sentences[0].startswith(f"b beats a by {points:.1f} points in top-1 accuracy (95 % interval ")
    assert sentences[0].endswith(", p < 0.001)")
    assert sentences[1].startswith("no evidence of a difference between c and a in top-1 accuracy (")
    assert sentences[2].startswith("no evidence of a difference between same and a in top-1 accuracy (+0.0 points, ")
    assert sentences[2].endswith("p = 1)")
    assert sentences[3].startswith("a beats baseline: always c0 by "), "the reference may win"


def test_common_examples_are_compared() -> None:
    """Different examples are refused with their number; --common compares the shared ones alone."""
    a = evaluate_images("a", draw_logits(0, LABELS, 0.7), LABELS, draw_keys(400))
    logits = draw_logits(1, LABELS, 0.9)
    order = np.random.default_rng(0).permutation(400)[:300]
    extra = evaluate_images("b", logits[order], LABELS[order], draw_keys(400)[order], "e" * 64)
    with pytest.raises(DlcvError, match=r"b and a were evaluated on different .* --common .* the 300"):
        compare([a, extra])
    comparison = compare([a, extra], common=True)
    shared = np.sort(order)
    first, second = (evaluate_images(n, x[shared], LABELS[shared], draw_keys(400)[shared]) for n, x in
                  (("a", a.arrays["logits"]), ("b", logits)))  # fmt: skip
    alone = compare([first, second])
    assert (comparison["data"]["n"], comparison["common"], alone["common"]) == (300, {"a": 400, "b": 300}, None)
    for mine, theirs in zip(comparison["rows"] + comparison["pairs"], alone["rows"] + alone["pairs"], strict=True):
        assert mine == theirs
    stranger = evaluate_images("s", logits, LABELS, draw_keys(800)[400:], "d" * 64)
    with pytest.raises(DlcvError, match="they share no example"):
        compare([a, stranger], common=True)
    relabelled = evaluate_images("r", logits, (LABELS + 1) % 4, draw_keys(400), "c" * 64)
    with pytest.raises(DlcvError, match="another set of labels"):
        compare([a, relabelled], common=True)


def test_equal_networks_are_both_best() -> None:
    """Two networks with the same best value both get the star, and a better baseline gets none."""
    networks = [evaluate_cells("a", np.full(9, 3.0), [0]), evaluate_cells("b", np.full(9, 3.0), [0])]
    rows = compare(networks)["rows"]
    assert [row["best"] for row in rows] == [["mse", "mae", "close", "r2"]] * 2 + [[]]
    assert rows[2]["metrics"]["mse"] < rows[0]["metrics"]["mse"], "the case can tell"


def test_a_collapsed_network_is_never_best() -> None:
    """A collapsed network never gets the star; the best of the others does."""
    best, other = (evaluate_images(n, draw_logits(s, LABELS, r), LABELS, draw_keys(400)) for n, s, r in
                   (("a", 1, 0.9), ("b", 0, 0.7)))  # fmt: skip
    fallen = msgspec.structs.replace(best.evaluation, collapse=replace(GOOD, collapsed=True, why="x"))
    rows = compare([replace(best, evaluation=fallen), other])["rows"]
    assert rows[0]["best"] == []
    assert rows[1]["best"] == [*other.evaluation.metrics]
    assert not any(row["best"] for row in compare([replace(best, evaluation=fallen)])["rows"])


@pytest.mark.parametrize(("key", "what"), [("study", "study"), ("part", "part"), ("fingerprint", "data file")])
def test_compare_refuses_different_data(key: str, what: str) -> None:
    """Evaluations of different studies, parts or data are not compared; the message names both."""
    a, b, c = (evaluate_cells(name, np.full(9, 3.0), [0]) for name in "abc")
    data = msgspec.structs.replace(c.evaluation.data, **{key: "different" * 8})
    c = replace(c, evaluation=msgspec.structs.replace(c.evaluation, data=data))
    with pytest.raises(DlcvError, match=rf"c and a were evaluated on different data \(another {what}: "):
        compare([a, b, c])
