"""What evaluations of the same data come to, what of different data, and which networks have collapsed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats

from dlcv_cli.config import CompareConfig
from dlcv_cli.errors import DlcvError, SettingError
from dlcv_cli.files.disk import hash_json
from dlcv_cli.results import codec
from dlcv_cli.results.evaluation import Contamination, Data, Evaluation, Trained
from dlcv_cli.results.metrics import OutputFile
from dlcv_cli.stages.compare import compare_networks
from dlcv_cli.stages.groups import Network, name_group
from dlcv_cli.statistics import recipes
from dlcv_cli.statistics.collapse import Collapse, judge_classes, judge_numbers
from dlcv_cli.statistics.metrics import score_logits
from dlcv_cli.studies.base import summarize
from dlcv_cli.studies.images.errors import describe_errors
from dlcv_cli.studies.images.study import ImageStudy
from dlcv_cli.studies.sequences.study import SequenceStudy, measure_by_length
from dlcv_cli.vision.splits import Example

# ----------------------------------------------------------------------------------------------------------- collapse


def judge(answers: list[int], labels: list[int]) -> Collapse:
    """Return the verdict on these predictions, where the baseline predicts class 0."""
    classes = max(labels) + 1
    right = np.bincount([a for a, b in zip(answers, labels, strict=True) if a == b], minlength=classes)
    answered = np.bincount(answers, minlength=classes)
    return judge_classes(answered, right, np.array(labels), 0, [f"c{k}" for k in range(classes)])


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
    assert judge_numbers(answers, targets, 1.0) == collapse, "one run without an axis for runs"
    fallen = why is not None
    minority = judge_numbers(np.array([answers, good, good]), targets, 1.0)
    assert (minority.collapsed, minority.why, minority.runs_collapsed) == (False, None, int(fallen))
    half = judge_numbers(np.array([answers, good, good, answers]), targets, 1.0)
    assert half.collapsed is (half.why or "").startswith("2 of 4 runs") is fallen
    assert half.runs_collapsed == 2 * fallen
    assert not judge_numbers(answers[None], targets, 1.0, learns=False).collapsed


# -------------------------------------------------------------------------------------------------------- comparisons


NO_LEAK = Contamination(
    checked=[], unchecked=[], unrecorded=[], examples=0, chosen=0, of=0, by_chance=False, allowed=False
)
GOOD = Collapse(collapsed=False, why=None, classes_predicted=None, most_frequent="", share=0)


def store_evaluation(
    study: Any, name: str, arrays: Any, details: Any, baseline: str, fingerprint: str, trained: Trained
) -> Network:
    """Return an evaluation as it is stored, with its predictions."""
    data = Data(study=study.name, part="test", n=len(arrays["examples"]), path=name, fingerprint=fingerprint)
    evaluation: Any = Evaluation(
        stage="eval", config={}, inputs={}, data=data, trained=trained,
        **vars(summarize(study, arrays, [baseline])), collapse=GOOD, details=details,
        contamination=NO_LEAK, predictions=OutputFile(path="", sha256=""), run={},
    )  # fmt: skip
    return Network(name, evaluation, arrays)


def describe_training(name: str, seed: int = 0, fold: int | None = None) -> Trained:
    """Return a run of a recipe of its own for each first letter of a name."""
    return Trained(stage="s", recipe=hash_json(name[0]), seed=seed, fold=fold, examples=300)


def evaluate_images(
    name: str, logits: Any, labels: Any, examples: Any, fingerprint: str = "f" * 64, **run: Any
) -> Network:
    """Return an evaluation of images by these logits."""
    labels = np.asarray(labels)
    arrays = {"logits": logits.astype(np.float32), "labels": labels, "examples": np.asarray(examples)}
    arrays["baselines"] = np.zeros((1, len(labels)), np.int64)
    names = [f"c{k}" for k in range(logits.shape[1])]
    known = [Example(f"{k}.png", int(label), "0" * 64) for k, label in enumerate(labels)]
    details = describe_errors(score_logits(arrays["logits"], labels), names, known, "photos")
    trained = describe_training(name, **run)
    return store_evaluation(ImageStudy(), name, arrays, details, "always c0", fingerprint, trained)


def evaluate_cell(name: str, errors: Any, fingerprint: str = "f" * 64, **run: Any) -> Network:
    """Return an evaluation of sequences by these errors (N,)."""
    n = len(errors)
    targets = np.linspace(0, 2, n, dtype=np.float32)
    predictions = (targets + errors).astype(np.float32)
    arrays = {"predictions": predictions, "targets": targets, "lengths": np.full(n, 5)}
    arrays |= {"baselines": np.ones((1, n), np.float32), "examples": draw_keys(n)}
    details = SequenceStudy.details(by_length=measure_by_length(predictions, targets, arrays["lengths"]))
    trained = describe_training(name, **run)
    return store_evaluation(SequenceStudy(), name, arrays, details, "constant 1", fingerprint, trained)


def compare(networks: list[Network], **settings: Any) -> dict[str, Any]:
    """Return the comparison's document."""
    return codec.encode(compare_networks(networks, CompareConfig(**settings)))


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


def test_single_runs_are_tested_over_examples() -> None:
    """Two runs: accuracies by McNemar, recalls by their paired differences, corrected over all pairs of both."""
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
    ordered = sorted((p["p"], p["p_holm"]) for p in comparison["pairs"])
    assert ordered[0][1] == pytest.approx(6 * ordered[0][0])
    assert compare(evaluations, reference="b") == comparison, "the same predictions, the same numbers"


def test_a_single_run_never_beats_another() -> None:
    """Of single runs a sentence says which did better, and that other seeds may reverse it; else it claims nothing."""
    evaluations = [evaluate_images(n, draw_logits(s, LABELS, r), LABELS, draw_keys(400)) for n, s, r in
             (("a", 0, 0.7), ("b", 1, 0.9), ("c", 2, 0.7), ("same", 0, 0.7))]  # fmt: skip
    comparison = compare(evaluations)
    sentences = [pair["sentence"] for pair in comparison["pairs"][:4]]
    points = 100 * (
        evaluations[1].evaluation.metrics["top1_accuracy"] - evaluations[0].evaluation.metrics["top1_accuracy"]
    )
    better = f"this run of b did better than this run of a by {points:.1f} points in top-1 accuracy (95 % interval "
    assert sentences[0].startswith(better)
    assert sentences[0].endswith(", p < 0.001; over 400 examples); other seeds may reverse it")
    assert sentences[1].startswith("no evidence of a difference between this run of c and this run of a in top-1 ")
    assert ", p = 1; over 400 examples)" in sentences[2]
    assert sentences[3].startswith("this run of a did better than baseline: always c0 by "), "the reference may win"
    assert not any("beats" in pair["sentence"] for pair in comparison["pairs"])


def draw_runs(name: str, count: int, spread: float, seeds: list[int] | None = None) -> list[Network]:
    """Return runs of one recipe whose errors differ by seed and by example."""
    rng = np.random.default_rng([ord(letter) for letter in name])
    shape, scale = rng.normal(0, 1, 60), spread * np.exp(0.2 * rng.normal(0, 1, (count, 1)))
    errors = scale * (shape + 0.3 * rng.normal(0, 1, (count, 60)))
    seeds = seeds or [*range(count)]
    return [evaluate_cell(f"{name}.seed{s}", own, seed=s) for s, own in zip(seeds, errors, strict=True)]


def test_runs_of_a_recipe_are_one_row() -> None:
    """Runs that differ by seed alone are one row: means, spread, and intervals over seeds and examples."""
    a, b = draw_runs("a", 6, 0.5), draw_runs("b", 6, 0.2)
    comparison = compare([*a, *b])
    rows = {row["name"]: row for row in comparison["rows"]}
    assert [*rows] == ["a", "b", "baseline: constant 1"]
    mses = [network.evaluation.metrics["mse"] for network in a]
    row = rows["a"]
    assert row["metrics"]["mse"] == pytest.approx(np.mean(mses))
    assert [run["metrics"]["mse"] for run in row["runs"]] == mses
    assert [run["seed"] for run in row["runs"]] == [*range(6)]
    expected = {"mean": np.mean(mses), "std": np.std(mses, ddof=1), "min": min(mses), "max": max(mses)}
    assert row["spread"]["mse"] == pytest.approx(expected | {"iqm": stats.trim_mean(mses, 0.25)})
    assert row["intervals_over"] == "seeds and examples"
    assert rows["baseline: constant 1"]["intervals_over"] == "examples"
    assert row["success"] == pytest.approx(stats.binomtest(6, 6).proportion_ci(method="wilson")), "6 of 6"
    assert row["intervals"]["mse"][0] < row["metrics"]["mse"] < row["intervals"]["mse"][1]


def test_recipes_are_compared_over_seeds_and_examples() -> None:
    """Groups are tested over seeds and examples, paired where the seeds are the same; only they beat one another."""
    a, b, c = draw_runs("a", 6, 0.5), draw_runs("b", 6, 0.2), draw_runs("c", 5, 0.2, [7, 8, 9, 10, 11])
    [single] = draw_runs("d", 1, 0.2)
    comparison = compare([*a, *b, *c, single])
    of_b, of_c, of_d, constant = comparison["pairs"]
    assert [pair["over"] for pair in comparison["pairs"]] == ["seeds and examples"] * 4
    assert (of_b["runs"], of_c["runs"], of_d["runs"], constant["runs"]) == ((6, 6), (5, 6), (1, 6), (0, 6))
    assert (of_b.get("paired"), of_c.get("paired"), of_d.get("paired")) == (True, None, None)
    values = {n[0].name[0]: np.array([network.evaluation.metrics["mse"] for network in n]) for n in (a, b, c)}
    for name, pair in (("b", of_b), ("c", of_c)):
        assert pair["difference"] == pytest.approx(values[name].mean() - values["a"].mean())
        ours, theirs = -values[name], -values["a"]
        u = stats.mannwhitneyu(ours, theirs).statistic
        assert pair["improvement"]["probability"] == pytest.approx(u / (len(ours) * len(theirs)))
    errors = {n[0].name[0]: np.stack([run.arrays["predictions"] - run.arrays["targets"] for run in n]) for n in (a, b)}
    tested = recipes.test_crossed(errors["b"].astype(float) ** 2, errors["a"].astype(float) ** 2, True)
    assert (of_b["p"], of_b["interval"]) == (
        pytest.approx(tested.p, rel=1e-3),
        pytest.approx(tested.interval, rel=1e-3),
    )
    assert of_b["sentence"].startswith("b beats a by ")
    assert of_b["sentence"].endswith("; over 6 seeds and 60 examples, paired by seed)")
    assert of_c["sentence"].endswith("; over 5 and 6 seeds and 60 examples)")
    assert of_d["sentence"].startswith("this run of d.seed0 did better than the runs of a by ")
    assert of_d.get("improvement") is None
    assert constant["sentence"].startswith("no evidence of a difference between baseline: constant 1 and a in MSE ")


def test_a_group_is_not_tested_against_its_own_recipe() -> None:
    """With each run by itself, runs of the reference's recipe have no test, and the comparison says so."""
    a, b = draw_runs("a", 3, 0.5), draw_runs("b", 1, 0.2)
    comparison = compare_networks([*a, *b], CompareConfig(group=False))
    assert [row.name for row in comparison.rows[:4]] == ["a.seed0", "a.seed1", "a.seed2", "b.seed0"]
    assert [pair.name for pair in comparison.pairs] == ["b.seed0", "baseline: constant 1"]
    assert comparison.untested == [
        "a.seed1, a.seed2 are runs of the same recipe as a.seed0, and not tested against it."
    ]
    assert compare_networks([*a, *b]).untested == []
    with pytest.raises(SettingError, match="reference"):
        compare([*a, *b], reference="x")
    assert compare([*a, *b], reference="a.seed2")["reference"] == "a", "a run stands for its row"


def test_the_same_run_twice_is_refused() -> None:
    """Two checkpoints of one recipe and seed are not two runs."""
    [a] = draw_runs("a", 1, 0.5)
    with pytest.raises(DlcvError, match=r"a.seed0 and copy are the same run, seed 0 of one recipe: .*--no-group"):
        compare([a, replace(a, name="copy")])


@pytest.mark.parametrize(
    ("names", "group"),
    [
        (["runs/head.seed0", "runs/head.seed10"], "runs/head"),
        (["head.fold1.seed0", "head.fold2.seed0"], "head"),
        (["hs0", "hs7"], "hs"),
        (["gru-1", "gru-2"], "gru"),
        (["one", "two"], "one and 1 more"),
        (["alone.seed3"], "alone.seed3"),
    ],
)
def test_group_names(names: list[str], group: str) -> None:
    """A group is named by what its runs' names share, without the numbers of seed and fold."""
    assert name_group(names) == group


def draw_folds(name: str, right: float, folds: int = 5, seeds: int = 1) -> list[Network]:
    """Return runs on the folds of one split, each of other images."""
    return [
        evaluate_images(
            f"{name}.fold{f}.seed{s}", draw_logits(100 * ord(name) + 10 * f + s, LABELS, right), LABELS,
            draw_keys(400 * (f + 1))[-400:], str(f) * 64, seed=s, fold=f,
        )
        for f in range(1, folds + 1) for s in range(seeds)
    ]  # fmt: skip


def test_folds_are_compared_by_the_corrected_resampled_t() -> None:
    """Over folds the folds' mean differences are tested, with Nadeau and Bengio's variance; no image counts twice."""
    a, b = draw_folds("a", 0.8, seeds=2), draw_folds("b", 0.7)
    comparison = compare([*a, *b], reference="b")
    assert (comparison["data"]["n"], comparison["rows"][0]["intervals_over"]) == (400, "splits")
    accuracies = {n: [[run.evaluation.metrics["top1_accuracy"] for run in runs if run.fold == f] for f in range(1, 6)]
                  for n, runs in (("a", a), ("b", b))}  # fmt: skip
    d = np.array([np.mean(x) - np.mean(y) for x, y in zip(accuracies["a"], accuracies["b"], strict=True)])
    pair = comparison["pairs"][0]
    t = d.mean() / np.sqrt((1 / 5 + 400 / 300) * d.var(ddof=1))
    assert (pair["over"], pair["folds"], pair["runs"], pair["paired"]) == ("splits", 5, (10, 5), True)
    assert pair["difference"] == pytest.approx(d.mean())
    assert pair["p"] == pytest.approx(2 * stats.t.sf(abs(t), 4))
    assert pair["sentence"].endswith("; over 5 folds, paired by fold)")
    assert pair["details"][0] == f"a is better than b in {sum(d > 0)} of 5 folds"
    worse = compare([*a, *draw_folds("c", 0.4)])["pairs"][0]
    assert worse["details"][0] == "c is better than a in none of 5 folds"
    few = compare([*a, *b[:3]], reference="b")["pairs"][0]
    assert (few["folds"], few["difference"]) == (3, pytest.approx(d[:3].mean())), "the folds that both have"
    with pytest.raises(DlcvError, match="b and a have no fold in common: train both with the same folds"):
        compare([*a[:4], *b[3:]])
    plain = evaluate_images("p", draw_logits(0, LABELS, 0.7), LABELS, draw_keys(400))
    with pytest.raises(DlcvError, match="one of the splits has folds and the other has none"):
        compare([*a, plain])
    with pytest.raises(SettingError, match="--common"):
        compare([*a, *b], common=True)


def test_failed_runs_are_seen_by_ranks() -> None:
    """Where failed runs blur the means, the verdict says that the runs of one recipe are better than the other's."""
    rng = np.random.default_rng(0)
    good = [evaluate_cell(f"g.seed{s}", 0.05 * rng.normal(0, 1, 60), seed=s) for s in range(32)]
    failed = [
        evaluate_cell(f"f.seed{s}", scale * rng.normal(0, 1, 60), seed=s) for s, scale in enumerate((1, 3, 9, 99))
    ]
    comparison = compare([*good, *failed])
    better = comparison["pairs"][0]["improvement"]
    values = [[run.evaluation.metrics["mse"] for run in runs] for runs in (failed, good)]
    exact = stats.mannwhitneyu(*values, method="exact").pvalue
    assert exact == pytest.approx(3.4e-5, rel=0.01)
    assert better["p_rank"] == pytest.approx(exact)
    assert better["p_rank_holm"] == pytest.approx(2 * exact), "of three tests the second smallest p"
    sentence = comparison["pairs"][0]["sentence"]
    assert sentence.startswith("no evidence of a difference between f and g in mean MSE (")
    assert ", but a run of g is better than one of f with a probability of 100 % (" in sentence
    assert "rank test" not in " ".join(comparison["pairs"][0]["details"])


def test_equivalence_needs_a_margin() -> None:
    """Two one-sided tests say whether a difference is within the margin, in points of a metric in percent."""
    a, b = (evaluate_images(n, draw_logits(s, LABELS, 0.9), LABELS, draw_keys(400)) for n, s in (("a", 0), ("b", 1)))
    right_a, right_b = (e.arrays["logits"].argmax(1) == LABELS for e in (a, b))
    d = right_b.astype(float) - right_a
    [pair] = [p for p in compare([a, b], margin=20)["pairs"] if (p["name"], p["metric"]) == ("b", "top1_accuracy")]
    low = stats.ttest_1samp(d, -0.2, alternative="greater").pvalue
    high = stats.ttest_1samp(d, 0.2, alternative="less").pvalue
    assert (pair["margin"], pair["p_equivalent"]) == (0.2, pytest.approx(max(low, high)))
    assert "is within 20 points" in " ".join(pair["details"])
    assert compare([a, b])["pairs"][0].get("p_equivalent") is None


def test_a_detectable_difference_has_its_power() -> None:
    """Where nothing is shown, a sentence says which difference would have been, in 4 of 5 comparisons."""
    a, b = (evaluate_images(n, draw_logits(s, LABELS, 0.9), LABELS, draw_keys(400)) for n, s in (("a", 0), ("b", 1)))
    pair = compare([a, b])["pairs"][0]
    error = (
        np.std(
            (b.arrays["logits"].argmax(1) == LABELS).astype(float) - (a.arrays["logits"].argmax(1) == LABELS), ddof=1
        )
        / 20
    )
    effect = pair["detectable"] / error
    critical = stats.t.ppf(0.975, 399)
    power = stats.nct.sf(critical, 399, effect) + stats.nct.cdf(-critical, 399, effect)
    assert power == pytest.approx(0.8, abs=0.005)
    assert pair["times"] == pytest.approx((pair["detectable"] / 0.01) ** 2, rel=0.02), (
        "errors fall with the square root"
    )
    assert f"{100 * pair['detectable']:.1f} points would be shown in 4 of 5" in " ".join(pair["details"])


def test_collapsed_runs_are_counted() -> None:
    """A row says how many of its runs collapsed; it counts as collapsed from half of them on, and is then no best."""
    a, b = draw_runs("a", 4, 0.1), draw_runs("b", 4, 0.5)

    def fell(network: Network) -> Network:
        fallen = replace(GOOD, collapsed=True, why="the same answer")
        return replace(network, evaluation=msgspec.structs.replace(network.evaluation, collapse=fallen))

    comparison = compare_networks([fell(a[0]), *a[1:], *b])
    assert (comparison.rows[0].collapsed, comparison.rows[0].best[:1]) == (False, ["mse"])
    assert comparison.collapses[0].startswith(
        "1 of 4 runs of a has collapsed (success rate 75 %, 95 % interval 30 to 95 %): the same answer; "
    )
    assert comparison.pairs[0].sentence.endswith("; 1 of 4 runs of a collapsed")
    low, high = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert msgspec.to_builtins(comparison.rows[0].success) == pytest.approx((low, high))
    comparison = compare_networks([fell(a[0]), fell(a[1]), *a[2:], *b])
    assert (comparison.rows[0].collapsed, comparison.rows[0].best) == (True, [])
    assert comparison.rows[1].best != []


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
    networks = [evaluate_cell("a", np.full(9, 3.0)), evaluate_cell("b", np.full(9, 3.0))]
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
    a, b, c = (evaluate_cell(name, np.full(9, 3.0)) for name in "abc")
    data = msgspec.structs.replace(c.evaluation.data, **{key: "different" * 8})
    c = replace(c, evaluation=msgspec.structs.replace(c.evaluation, data=data))
    with pytest.raises(DlcvError, match=rf"c and a were evaluated on different data \(another {what}: "):
        compare([a, b, c])


def test_groups_of_images_are_drawn_as_wholes() -> None:
    """Where images belong to groups, intervals and tests are over the groups: a clustered sample."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    hard = np.repeat(rng.random(40), 10)  # the images of a group are as hard
    labels, networks = np.tile([0, 1], 200), []
    for name, right in (("a", 0.5), ("b", 0.7)):
        answers = np.where(hard < right, labels, 1 - labels)
        [network] = [evaluate_images(name, np.eye(2)[answers] * 3, labels, draw_keys(400))]
        networks.append(replace(network, arrays={**network.arrays, "groups": groups}))
    pair = compare(networks)["pairs"][0]
    means = (networks[1].arrays["logits"].argmax(1) == labels) * 1.0 - (
        networks[0].arrays["logits"].argmax(1) == labels
    )
    of_groups = means.reshape(40, 10).mean(1)
    expected = stats.ttest_1samp(of_groups, 0)
    assert (pair["groups"], pair["n"]) == (40, 400)
    assert pair["difference"] == pytest.approx(of_groups.mean())
    assert pair["p"] >= expected.pvalue - 1e-12, "Student's t, or the bootstrap's where that is wider"
    assert pair["p"] == pytest.approx(expected.pvalue, rel=0.6)
    assert "over 400 examples in 40 groups" in pair["sentence"]
    row = compare(networks)["rows"][0]
    plain = compare([replace(n, arrays={k: a for k, a in n.arrays.items() if k != "groups"}) for n in networks])["rows"]
    width, alone = (r["intervals"]["top1_accuracy"][1] - r["intervals"]["top1_accuracy"][0] for r in (row, plain[0]))
    assert width > 2 * alone, "ten equal images are one observation"
