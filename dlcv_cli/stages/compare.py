"""`eval --compare`: stored evaluations of the same data in, one table and its tests out.

Nothing is predicted again. Letters: N examples.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlcv_cli.errors import DlcvError, FileError, list_names, look_up
from dlcv_cli.results.comparison import Column, Comparison, Pair, Row
from dlcv_cli.results.evaluation import AnyEvaluation, Baseline, Interval
from dlcv_cli.statistics.paired import Difference
from dlcv_cli.statistics.significance import correct_by_holm
from dlcv_cli.studies import study_named
from dlcv_cli.studies.base import Metric, Study, System, summarize, systems_of
from dlcv_cli.studies.stored import read_evaluation, read_predictions

QUESTIONS = {
    "examples": "p-values treat the test examples as the random sample: they ask whether the difference between these "
    "trained networks would hold on new examples.",
    "seeds": "p-values treat the seeds as the random sample: they ask whether the mean difference on these test "
    "examples would hold if the networks were trained again with new seeds.",
}
ALARM = 0.05


@dataclass(frozen=True)
class Network:
    """A stored evaluation, and the arrays of its predictions file."""

    name: str
    evaluation: AnyEvaluation
    arrays: Mapping[str, NDArray[Any]]


def compare(
    evaluations: Sequence[tuple[str, Path]], *, reference: str | None = None, common: bool = False
) -> Comparison:
    """Return the comparison of (name, `*.eval.json`) pairs, from their stored predictions.

    Args:
        reference: the name that the others are tested against; None: the first.
        common: if they were evaluated on different examples, compare on those that they share.

    Raises:
        DlcvError: a damaged file, predictions of another evaluation, or evaluations of different data.
    """
    networks = []
    for name, path in evaluations:
        evaluation = read_evaluation(path)
        networks.append(Network(name, evaluation, read_predictions(path, evaluation)))
    known: dict[str, tuple[Path, Network]] = {}
    for (_, path), network in zip(evaluations, networks, strict=True):
        other_path, other = known.setdefault(network.evaluation.data.fingerprint, (path, network))
        if unshared := other.evaluation.metrics.keys() ^ network.evaluation.metrics.keys():
            keys = list_names(sorted(unshared))
            raise FileError(path, f"{keys} is in this evaluation or in {other_path}, not in both: use --force")
        for key in ("examples", study_named(network.evaluation.data.study).truth):
            if not np.array_equal(network.arrays[key], other.arrays.get(key, ())):
                raise FileError(path, f"damaged: its {key} differ from those of {other_path}, of the same fingerprint")
    return compare_networks(networks, reference, common)


def compare_networks(networks: Sequence[Network], reference: str | None = None, common: bool = False) -> Comparison:
    """Return the comparison of evaluations, the baselines last.

    Raises:
        DlcvError: they are of different data; names which. SettingError: no network has the reference's name.
    """
    names = {network.name: number for number, network in enumerate(networks)}
    chosen = look_up(names, reference, "reference") if reference else 0
    for network, key in itertools.product(networks[1:], ("study", "part")):
        if getattr(network.evaluation.data, key) != getattr(networks[0].evaluation.data, key):
            raise _different(network, networks[0], key, "compare them separately")
    study = study_named(networks[0].evaluation.data.study)
    counts = None
    if len({network.evaluation.data.fingerprint for network in networks}) > 1:
        networks, counts = _select_shared(study, networks, common)
    first = networks[0]
    metrics = [metric for metric in study.metrics if metric.column.key in first.evaluation.metrics]
    columns = [metric.column for metric in metrics]
    tested = [_systems_of(study, network)[0] for network in networks]
    tested += [replace(rule, name=f"baseline: {rule.name}") for rule in _systems_of(study, first)[1:]]
    return Comparison(
        data=msgspec.structs.replace(first.evaluation.data, n=len(first.arrays["examples"])),
        common=counts,
        reference=networks[chosen].name,
        metric=columns[0].key,
        columns=columns,
        rows=_make_rows(networks, columns, chosen),
        pairs=[pair for metric in metrics for pair in _test(metric, tested, chosen)],
    )


def _systems_of(study: Study[Any], network: Network) -> list[System[Any]]:
    baselines = [baseline.name for baseline in network.evaluation.baselines]
    return systems_of(study, network.arrays, network.name, network.evaluation.seeds, baselines)


def _different(network: Network, other: Network, what: str, remedy: str) -> DlcvError:
    both = (network.evaluation.data, other.evaluation.data)
    places = " and ".join(f"{data.part} of {data.path} ({data.fingerprint[:8]})" for data in both)
    where = f"another {what}: {places}"
    return DlcvError(f"{network.name} and {other.name} were evaluated on different data ({where}): {remedy}")


def _select_shared(
    study: Study[Any], networks: Sequence[Network], common: bool
) -> tuple[list[Network], dict[str, int]]:
    """Return the networks on the examples that all have, each once, summarized anew, and how many each had."""
    first = networks[0]
    other = next(n for n in networks if n.evaluation.data.fingerprint != first.evaluation.data.fingerprint)
    places = [{row.tobytes(): i for i, row in enumerate(network.arrays["examples"])} for network in networks]
    shared = [digest for digest in places[0] if all(digest in place for place in places)]
    again = "evaluate them on the same file with --data"
    if not shared:
        raise _different(other, first, "data file", f"they share no example; {again}")
    if not common:
        remedy = f"use --common to compare them on the {len(shared):,} examples that they share, or {again}"
        raise _different(other, first, "data file", remedy)
    selected: list[Network] = []
    for network, place in zip(networks, places, strict=True):
        index = np.array([place[digest] for digest in shared])
        axes = {name: array.axis for name, array in study.expected_arrays(network.evaluation).items()}
        arrays = {name: np.take(a, index, axis=axes.get(name, 0)) for name, a in network.arrays.items()}
        if selected and not np.array_equal(arrays[study.truth], selected[0].arrays[study.truth]):
            raise _different(network, first, f"set of {study.truth}", again)
        if study.class_names(network.evaluation) != study.class_names(first.evaluation):
            raise _different(network, first, "list of classes", again)
        shown = vars(summarize(study, _systems_of(study, replace(network, arrays=arrays))))
        selected.append(Network(network.name, msgspec.structs.replace(network.evaluation, **shown), arrays))
    return selected, {network.name: len(place) for network, place in zip(networks, places, strict=True)}


def _make_rows(networks: Sequence[Network], columns: Sequence[Column], reference: int) -> list[Row]:
    """Return a row per network, then a row per baseline; the best values are starred unless a network collapsed."""
    key = columns[0].key
    base = networks[reference].evaluation.metrics[key]
    standing = [network.evaluation for network in networks if not network.evaluation.collapse.collapsed]
    best = {}
    for column in columns if standing else ():
        choose = max if column.higher_is_better else min
        best[column.key] = choose(evaluation.metrics[column.key] for evaluation in standing)

    def describe(name: str, of: AnyEvaluation | Baseline, **fields: Any) -> Row:
        difference = of.metrics[key] - base
        return Row(name=name, metrics=of.metrics, intervals=of.intervals, difference=difference, **fields)

    rows = []
    for network in networks:
        own = network.evaluation
        starred = [] if own.collapse.collapsed else [k for k, value in best.items() if own.metrics.get(k) == value]
        runs = {"intervals_over": own.intervals_over, "seed_spread": own.seed_spread, "seeds": tuple(own.seeds)}
        verdict = {"collapse": own.collapse, "contaminated": own.contamination.leaks, "best": starred}
        rows.append(describe(network.name, own, baseline=False, tries=own.tries, **runs, **verdict))
    for rule in networks[0].evaluation.baselines:
        fields = {"baseline": True, "intervals_over": "examples", "contaminated": False, "best": []}
        rows.append(describe(f"baseline: {rule.name}", rule, **fields))
    return rows


def _test(metric: Metric[Any], systems: Sequence[System[Any]], reference: int) -> list[Pair]:
    """Return the tests of one metric of each row against the reference's, corrected for their number."""
    base, others = systems[reference], [system for number, system in enumerate(systems) if number != reference]
    differences = metric.compare(others, base)
    corrected = correct_by_holm([difference.p for difference in differences])
    return [
        Pair(
            name=other.name,
            reference=base.name,
            metric=metric.column.key,
            **vars(difference) | {"interval": Interval(*difference.interval)},
            p_holm=p_holm,
            question=QUESTIONS[difference.over],
            sentence=describe_difference(metric.column, other.name, base.name, difference, p_holm),
        )
        for other, difference, p_holm in zip(others, differences, corrected, strict=False)  # none without a test
    ]


def describe_difference(column: Column, name: str, reference: str, tested: Difference, p_holm: float) -> str:
    """Return a tested difference in words; `beats` only where the corrected p is below 0.05."""
    ps = f"p = {_format_p(tested.p)}"
    if _format_p(p_holm) != _format_p(tested.p):
        ps += f", corrected {_format_p(p_holm)}"
    ps = ps.replace("= <", "< ")
    value, ends = tested.difference, tested.interval
    if p_holm < ALARM and value < 0:
        value, ends = -value, (-ends[1], -ends[0])
    amount = _format(column, value) + (" points" if column.percent else "")
    details = f"95 % interval {' to '.join(_format(column, end) for end in ends)}, {ps}"
    if p_holm >= ALARM:
        sign = "+" if value >= 0 else ""
        return (
            f"no evidence of a difference between {name} and {reference} in {column.noun} ({sign}{amount}, {details})"
        )
    is_better = (tested.difference > 0) == column.higher_is_better
    winner, loser = (name, reference) if is_better else (reference, name)
    return f"{winner} beats {loser} by {amount} in {column.noun} ({details})"


def _format(column: Column, value: float) -> str:
    return f"{100 * value:.1f}" if column.percent else f"{value:.3g}"


def _format_p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.2g}"
