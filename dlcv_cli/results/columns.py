"""One table from several evaluations of the same data, and a tested sentence a pair. Letters: N examples, K runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.errors import DlcvError, look_up
from dlcv_cli.statistics import measurement
from dlcv_cli.statistics.metrics import recall_of, scores
from dlcv_cli.statistics.significance import Statistic, bca, holm, mcnemar, mean_of, paired_shares, sign_flips, t_test

JSON = dict[str, Any]
Array = NDArray[Any]


@dataclass(frozen=True)
class Column:
    """A metric in the table: its key in the files, its heading, and whether more is better; percent on screen only."""

    key: str
    heading: str
    higher_is_better: bool
    percent: bool = False
    noun: str = ""  # in a sentence; metrics that have one are tested
    interval: bool = True  # whether there is one that holds
    small: bool = True  # whether values near 0 are shown by their first digits that count


# The first column of a study is the one whose difference to the reference is shown.
COLUMNS: dict[str, tuple[Column, ...]] = {
    "images": (
        Column("top1_accuracy", "top-1 %", True, percent=True, noun="top-1 accuracy"),
        Column("top5_accuracy", "top-5 %", True, percent=True),
        Column("mean_per_class_recall", "per-class recall %", True, percent=True, noun="per-class recall"),
        Column("expected_calibration_error", "ECE %", False, percent=True, interval=False),
        Column("loss", "loss", False),
    ),
    "sequences": (
        Column("mse", "MSE", False, noun="MSE"),
        Column("mae", "MAE", False),
        Column("close", "within 0.04 %", True, percent=True),
        Column("r2", "R2", True, small=False),
    ),
}
QUESTIONS = {
    "examples": "these trained networks, on other examples of the same kind: would one still be better?",
    "seeds": "the recipes, trained anew with other seeds: would one be better on average, on these examples?",
}
PERMUTATION = "paired permutation"
ALARM = 0.05


@dataclass(frozen=True)
class Evaluated:
    """One network's evaluation: its name, `dlcv.eval/1` document, and the arrays of its predictions file."""

    name: str
    document: JSON
    arrays: Mapping[str, Array]


def compare(evaluations: Sequence[Evaluated], reference: str | None = None, common: bool = False) -> JSON:
    """The comparison of evaluations, the baselines last.

    Args:
        reference: the name that the others are tested against; None: the first.
        common: where they were measured on different examples, compare on those they share.

    Returns: study, split, n, data, common (how many examples each had, where only the shared ones count), reference,
        metric, rows (networks, then baselines) and pairs: each tested metric of each row but the reference.

    Raises:
        DlcvError: they were measured on different data; names which. SettingError: no row has the reference's name.
    """
    names = {one.name: number for number, one in enumerate(evaluations)}
    chosen = look_up(names, reference, "reference") if reference else 0
    _require_one_study(evaluations)
    counts = None
    if len({one.document["data"]["fingerprint"] for one in evaluations}) > 1:
        evaluations, counts = _shared(evaluations, common)
    first = evaluations[0]
    data = {**first.document["data"], "n": first.arrays["examples"].shape[0]}
    columns = COLUMNS[data["study"]]
    rows = _rows(evaluations, columns, chosen)
    systems = _systems(evaluations, rows)
    pairs = []
    for column in columns:
        if column.noun:
            pairs += _tested(column, systems, chosen)
    return {
        "study": data["study"],
        "split": data["split"],
        "n": data["n"],
        "data": data,
        "common": counts,
        "reference": rows[chosen]["name"],
        "metric": columns[0].key,
        "rows": rows,
        "pairs": pairs,
    }


def _require_one_study(evaluations: Sequence[Evaluated]) -> None:
    first = evaluations[0]
    for one in evaluations[1:]:
        for key, what in (("study", "kind of study"), ("split", "part")):
            if one.document["data"][key] != first.document["data"][key]:
                raise _different(one, first, what, "compare them separately")


def _different(one: Evaluated, other: Evaluated, what: str, remedy: str) -> DlcvError:
    places = [
        f"{data['split']} of {data['path']} ({data['fingerprint'][:8]})"
        for data in (one.document["data"], other.document["data"])
    ]
    where = f"another {what}: {' and '.join(places)}"
    return DlcvError(f"{one.name} and {other.name} were measured on different data ({where}): {remedy}")


def _shared(evaluations: Sequence[Evaluated], common: bool) -> tuple[list[Evaluated], dict[str, int]]:
    """The evaluations on the examples that all have, each once, and how many each had."""
    first = evaluations[0]
    other = next(e for e in evaluations if e.document["data"]["fingerprint"] != first.document["data"]["fingerprint"])
    places = [{row.tobytes(): i for i, row in enumerate(one.arrays["examples"])} for one in evaluations]
    names = [key for key in places[0] if all(key in place for place in places)]
    again = "evaluate them on the same file with --data and --force"
    if not names:
        raise _different(other, first, "data", f"they share no example; {again}")
    if not common:
        raise _different(
            other, first, "data", f"--common compares on the {len(names):,} examples they share; or {again}"
        )
    found: list[Evaluated] = []
    for one, place in zip(evaluations, places, strict=True):
        index = np.array([place[key] for key in names])
        last = {"predictions", "baselines"}  # whose last axis are the examples
        arrays = {key: a[..., index] if key in last else a[index] for key, a in one.arrays.items()}
        known = "labels" if "labels" in arrays else "targets"
        if found and not np.array_equal(arrays[known], found[0].arrays[known]):
            raise _different(one, first, f"set of {known}", again)
        if _classes(one) != _classes(first):
            raise _different(one, first, "list of classes", again)
        found.append(replace(one, arrays=arrays, document=one.document | _measured(one.document, arrays)))
    return found, {one.name: len(place) for one, place in zip(evaluations, places, strict=True)}


def _classes(one: Evaluated) -> list[str]:
    return [row["class"] for row in one.document.get("per_class", [])]


def _measured(document: JSON, arrays: Mapping[str, Array]) -> JSON:
    names = [baseline["name"] for baseline in document["baselines"]]
    if "logits" in arrays:
        labels = arrays["labels"]
        return measurement.images(scores(arrays["logits"], labels), labels, arrays["baselines"], names)
    predictions = np.atleast_2d(arrays["predictions"])
    return measurement.sequences(predictions, arrays["targets"], arrays["baselines"], names)


def _rows(evaluations: Sequence[Evaluated], columns: Sequence[Column], reference: int) -> list[JSON]:
    rows: list[JSON] = []
    for one in evaluations:
        document, leak = one.document, one.document["contamination"]
        row = {"name": one.name, "baseline": False, **{key: document[key] for key in ("metrics", "intervals")}}
        row |= {key: document[key] for key in ("intervals_over", "seeds", "runs") if key in document}
        contaminated = leak["examples"] > 0 and not leak["by_chance"]
        rows.append(row | {"collapse": document["collapse"], "contaminated": contaminated})
    best = {}
    for column in columns:
        choose = max if column.higher_is_better else min
        best[column.key] = choose(row["metrics"][column.key] for row in rows)
    for baseline in evaluations[0].document["baselines"]:
        row = {"name": f"baseline: {baseline['name']}", "baseline": True}
        rows.append(row | {key: baseline[key] for key in ("metrics", "intervals")} | {"contaminated": False})
    key = columns[0].key
    for row in rows:
        row["difference"] = row["metrics"][key] - rows[reference]["metrics"][key]
        row["best"] = [k for k, value in best.items() if not row["baseline"] and row["metrics"].get(k) == value]
    return rows


@dataclass(frozen=True)
class _System:
    """A row, as the tests see it: images: right (1, N) and labels (N,); sequences: squared errors (K, N) and seeds."""

    name: str
    values: Array
    labels: Array | None
    seeds: list[int]
    baseline: bool


def _systems(evaluations: Sequence[Evaluated], rows: Sequence[JSON]) -> list[_System]:
    first = evaluations[0].arrays
    labels = first.get("labels")
    answers = [one.arrays["predictions"] for one in evaluations] if labels is None else []
    if labels is not None:
        answers = [scores(one.arrays["logits"], labels).answers for one in evaluations]
    found = []
    for row, answer in zip(rows, [*answers, *first["baselines"]], strict=True):
        if labels is not None:
            values: Array = answer[None] == labels
        else:
            values = (np.atleast_2d(answer).astype(np.float64) - first["targets"]) ** 2
        found.append(_System(row["name"], values, labels, row.get("seeds", [0]), row["baseline"]))
    return found


def _tested(column: Column, systems: Sequence[_System], reference: int) -> list[JSON]:
    """One metric of each row against the reference's: difference, interval, p, Holm's p over the rows, sentence."""
    base = systems[reference]
    others = [system for number, system in enumerate(systems) if number != reference]
    test = {"top1_accuracy": _shares, "mean_per_class_recall": _recalls, "mse": _errors}[column.key]
    pairs: list[JSON] = [
        {"name": other.name, "reference": base.name, "metric": column.key, **found}
        for other, found in zip(others, test(others, base), strict=True)
    ]
    for pair, p in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
        pair["p_holm"] = p
        pair["question"] = QUESTIONS[pair["over"]]
        pair["sentence"] = sentence(column, pair)
    return pairs


def _result(difference: float, interval: Sequence[float], p: float, test: str, n: int, over: str = "examples") -> JSON:
    return {"difference": float(difference), "interval": list(interval), "p": p, "test": test, "over": over, "n": n}


def _shares(others: Sequence[_System], base: _System) -> list[JSON]:
    found = []
    for other in others:
        only, lost = (int((a & ~b).sum()) for a, b in ((other.values, base.values), (base.values, other.values)))
        n = base.values.size
        mid, exact = mcnemar(only, lost)
        result = _result((only - lost) / n, paired_shares(only, lost, n), mid, "McNemar, mid-p", n)
        found.append(result | {"p_exact": exact, "only_row": only, "only_reference": lost})
    return found


def _recalls(others: Sequence[_System], base: _System) -> list[JSON]:
    labels = base.labels
    assert labels is not None, "an image study has labels"
    differences = [other.values[0].astype(np.float64) - base.values[0] for other in others]
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights = 1 / (counts[index] * len(counts))
    statistics = [recall_of(d, labels) for d in differences]
    return _over_examples(statistics, np.array([d * weights for d in differences]).reshape(-1, len(labels)))


def _errors(others: Sequence[_System], base: _System) -> list[JSON]:
    found: list[JSON | None] = [_over_seeds(other, base) for other in others]
    rest = [other.values.mean(0) - base.values.mean(0) for other, done in zip(others, found, strict=True) if not done]
    over_examples = iter(_over_examples([mean_of(d) for d in rest], np.array(rest))) if rest else iter(())
    return [done or next(over_examples) for done in found]


def _over_examples(statistics: Sequence[Statistic], differences: Array) -> list[JSON]:
    if not statistics:
        return []
    return [
        _result(statistic.estimate, interval, p, PERMUTATION, differences.shape[1])
        for statistic, interval, p in zip(statistics, bca(statistics), sign_flips(differences), strict=True)
    ]


def _over_seeds(other: _System, base: _System) -> JSON | None:
    """The test over seeds, where both have several, or one has and the other is a baseline, with nothing to draw."""
    a, b = other.values.mean(1), base.values.mean(1)
    if len(a) > 1 and len(b) > 1:
        paired = other.seeds == base.seeds
        difference, interval, p = t_test(a, b, paired)
        return _result(difference, interval, p, "paired t" if paired else "Welch's t", min(len(a), len(b)), "seeds")
    if len(b) > 1 and other.baseline:
        difference, (low, high), p = t_test(b, float(a[0]), paired=False)
        return _result(-difference, (-high, -low), p, "t", len(b), "seeds")
    return None


def sentence(column: Column, pair: Mapping[str, Any]) -> str:
    """What a pair's numbers come to, in words; `beats` only where the corrected p is below 0.05."""
    low, high = pair["interval"]
    value, p = pair["difference"], pair["p_holm"]
    corrected = f", p = {_p(pair['p'])}, corrected {_p(p)}" if _p(p) != _p(pair["p"]) else f", p = {_p(p)}"
    corrected = corrected.replace("= <", "< ")
    if p >= ALARM:
        shown = f"{'+' if value >= 0 else ''}{_amount(column, value)}"
        about = f"{shown}, 95 % interval {_plain(column, low)} to {_plain(column, high)}{corrected}"
        return f"no evidence of a difference between {pair['name']} and {pair['reference']} in {column.noun} ({about})"
    winner, loser = pair["name"], pair["reference"]
    if (value > 0) != column.higher_is_better:
        winner, loser = loser, winner
    if value < 0:
        value, low, high = -value, -high, -low
    about = f"95 % interval {_plain(column, low)} to {_plain(column, high)}{corrected}"
    return f"{winner} beats {loser} by {_amount(column, value)} in {column.noun} ({about})"


def _plain(column: Column, value: float) -> str:
    return f"{100 * value:.1f}" if column.percent else f"{value:.3g}"


def _amount(column: Column, value: float) -> str:
    return _plain(column, value) + (" points" if column.percent else "")


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.2g}"
