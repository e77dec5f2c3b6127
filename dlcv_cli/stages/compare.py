"""`eval --compare`: stored evaluations of the same data in, one table and its tests out.

Nothing is predicted again. A row holds the runs of one recipe, by seed and fold. Letters: K runs, N examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dlcv_cli.config import CompareConfig
from dlcv_cli.errors import DlcvError, FileError, SettingError, list_names, look_up
from dlcv_cli.results.comparison import Comparison, Improvement, Pair, Row
from dlcv_cli.results.evaluation import Interval, Over
from dlcv_cli.stages import imported
from dlcv_cli.stages.groups import Network, RunGroup, group_runs, require_same_data, select_shared
from dlcv_cli.stages.scored import Scored, describe_run
from dlcv_cli.stages.sentences import POINT, QUESTIONS, Verdict, describe_details, describe_verdict
from dlcv_cli.statistics.paired import Difference, Fold
from dlcv_cli.statistics.paired import compare as compare_samples
from dlcv_cli.statistics.recipes import compute_crossed_interval, compute_resampled_interval, judge_runs
from dlcv_cli.statistics.significance import compute_wilson_interval, correct_by_holm
from dlcv_cli.statistics.verdicts import (
    compute_effect_size,
    compute_improvement,
    compute_power_limit,
    count_needed,
    run_rank_test,
    test_equivalence,
)
from dlcv_cli.studies import study_named
from dlcv_cli.studies.base import Metric, Study
from dlcv_cli.studies.stored import read_evaluation, read_predictions


def compare(evaluations: Sequence[tuple[str, Path]], config: CompareConfig = CompareConfig()) -> Comparison:
    """Return the comparison of (name, `*.eval.json`) pairs, from their stored predictions.

    A pair may also be (name, CSV): predictions of another program for the examples of the first evaluation.

    Raises:
        DlcvError: a damaged file, predictions of another evaluation, or evaluations of different data.
    """
    stored: dict[Path, Network] = {}
    for name, path in evaluations:
        if path.suffix.lower() != imported.ENDING:
            evaluation = read_evaluation(path)
            stored[path] = Network(name, evaluation, read_predictions(path, evaluation))
    if not stored:
        raise SettingError("give at least one checkpoint: its data says what the predictions in CSV files are of")
    (first_path, first), *_ = stored.items()
    networks = [
        stored.get(path) or imported.import_network(name, path, first_path, first) for name, path in evaluations
    ]
    known: dict[str, tuple[Path, Network]] = {}
    for (_, path), network in zip(evaluations, networks, strict=True):
        other_path, other = known.setdefault(network.evaluation.data.fingerprint, (path, network))
        unshared = other.evaluation.metrics.keys() ^ network.evaluation.metrics.keys()
        if unshared and path in stored and other_path in stored:
            keys = list_names(sorted(unshared))
            raise FileError(path, f"{keys} is in this evaluation or in {other_path}, not in both: use --force")
        for key in ("examples", study_named(network.evaluation.data.study).truth):
            if not np.array_equal(network.arrays[key], other.arrays.get(key, ())):
                raise FileError(path, f"damaged: its {key} differ from those of {other_path}, of the same fingerprint")
    return compare_networks(networks, config)


def compare_networks(networks: Sequence[Network], config: CompareConfig = CompareConfig()) -> Comparison:
    """Return the comparison of evaluations, the baselines last.

    Raises:
        DlcvError: they are of different data; names which. SettingError: no row has the reference's name.
    """
    study = study_named(networks[0].evaluation.data.study)
    counts = None
    of_folds = any(network.fold for network in networks)
    if of_folds and config.common:
        raise SettingError("--common is of splits without folds: runs of folds are compared fold by fold")
    if not of_folds and len({n.evaluation.data.fingerprint for n in networks if _alike(n, networks[0])}) > 1:
        networks, counts = select_shared(study, networks, config.common)
    require_same_data(networks)
    table = _Table(study, group_runs(networks, config.group), config)
    first = networks[0].evaluation.data
    return Comparison(
        data=msgspec.structs.replace(first, n=table.mean_n),
        common=counts,
        reference=table.reference.name,
        metric=table.columns[0].key,
        columns=table.columns,
        rows=table.make_rows(),
        pairs=table.test(),
    )


def _alike(network: Network, other: Network) -> bool:
    return (network.evaluation.data.study, network.evaluation.data.part) == (
        other.evaluation.data.study,
        other.evaluation.data.part,
    )


class _Table:
    """Rows and tests of groups of runs and of their baselines."""

    def __init__(self, study: Study[Any], groups: Sequence[RunGroup], config: CompareConfig) -> None:
        self.config = config
        self.first = groups[0].networks[0].evaluation
        keys = {key for group in groups for network in group.networks for key in network.evaluation.metrics}
        self.metrics = [metric for metric in study.metrics if metric.column.key in keys]
        self.columns = [metric.column for metric in self.metrics]
        self.rows: list[Scored] = []
        rules: dict[int, list[Any]] = {}
        self.sizes: dict[int, tuple[int, int]] = {}  # of each fold: examples, training examples
        for group in groups:
            scores: dict[int, list[Any]] = {}
            for fold, networks in group.by_fold().items():
                for network in networks:
                    own, of_rules = study.score(network.arrays)
                    scores.setdefault(fold, []).append(own)
                    rules.setdefault(fold, of_rules)
                    size = (len(network.arrays["examples"]), network.evaluation.trained.examples)
                    self.sizes.setdefault(fold, size)
            ordered = [network for networks in group.by_fold().values() for network in networks]
            self.rows.append(Scored(group.name, ordered[0].evaluation.trained.recipe, scores, ordered))
        for number, rule in enumerate(self.first.baselines):
            of_rule = {fold: [own[number]] for fold, own in rules.items()}
            self.rows.append(Scored(f"baseline: {rule.name}", "", of_rule, []))
        named = {row.name: row for row in self.rows if row.networks}
        named |= {network.name: row for row in self.rows for network in row.networks if network.name not in named}
        self.reference = look_up(named, config.reference, "reference") if config.reference else self.rows[0]

    @property
    def mean_n(self) -> int:
        """The number of examples, of a fold on average."""
        return round(float(np.mean([n for n, _ in self.sizes.values()])))

    def _average(self, row: Scored, metric: Metric[Any]) -> float:
        return float(np.mean([runs.mean() for runs in row.measure(metric).values()]))

    def _folds(self, metric: Metric[Any]) -> dict[int, Fold]:
        """Return what a metric's tests need to know of each fold."""
        folds = {}
        for fold, (n, trained) in self.sizes.items():
            scores = next(row.scores[fold][0] for row in self.rows if fold in row.scores)
            folds[fold] = metric.describe(scores, n, trained)
        return folds

    def make_rows(self) -> list[Row]:
        """Return a row per group, then a row per baseline; the best values are starred unless at least half fell."""
        made = [self._make_row(row) for row in self.rows]
        standing = [row for row in made if row.runs and not row.collapsed]
        for column in self.columns if standing else ():
            choose = max if column.higher_is_better else min
            best = choose(row.metrics[column.key] for row in standing if column.key in row.metrics)
            for row in standing:
                if row.metrics.get(column.key) == best:
                    row.best.append(column.key)
        return made

    def _make_row(self, row: Scored) -> Row:
        key = self.columns[0].key
        keys = row.networks[0].evaluation.metrics.keys() if row.networks else ()
        metrics = [m for m in self.metrics if (m.column.key in keys if row.networks else m.of_baselines)]
        values = {metric.column.key: self._average(row, metric) for metric in metrics}
        several = len(row.networks) > 1
        spread = {metric.column.key: row.measure_spread(metric) for metric in metrics} if several else {}
        runs = [describe_run(network) for network in row.networks]
        standing = sum(not run.collapsed for run in runs)
        intervals, over = self._estimate(row, metrics)
        return Row(
            name=row.name,
            baseline=not row.networks,
            metrics=values,
            intervals=intervals,
            intervals_over=over,
            runs=runs,
            spread=spread,
            doubt=judge_runs(np.concatenate([*row.measure(self.metrics[0]).values()])) if several else "",
            success=Interval(*compute_wilson_interval(standing, len(runs))) if several else None,
            contaminated=any(network.evaluation.contamination.leaks for network in row.networks),
            tries=max((network.evaluation.tries for network in row.networks), default=0),
            difference=values[key] - self._average(self.reference, self.metrics[0]),
            best=[],
        )

    def _estimate(self, row: Scored, metrics: Sequence[Metric[Any]]) -> tuple[dict[str, Interval], Over]:
        """Return a row's intervals, and what they take as drawn at random.

        A baseline has none over folds, which hardly move it.
        """
        if len(row.scores) > 1 and not row.networks:
            return {}, "splits"
        if len(row.scores) > 1:
            share = float(np.mean([n / trained for n, trained in self.sizes.values()]))
            by_fold = {m: np.array([runs.mean() for runs in row.measure(m).values()]) for m in metrics}
            return {
                m.column.key: _clip(compute_resampled_interval(values, share), m.range) for m, values in by_fold.items()
            }, "splits"
        [(fold, runs)] = row.scores.items()
        if len(runs) == 1:
            own = {m.column.key: m.estimate(runs[0]) for m in metrics}
            return {key: interval for key, interval in own.items() if interval}, "examples"
        intervals = {}
        for metric in metrics:
            if metric.values:
                of = self._folds(metric)[fold]
                values = of.sum_groups(np.stack([*map(metric.values, runs)]))
                ends = compute_crossed_interval(values, labels=of.strata if of.groups is None else None)
                intervals[metric.column.key] = _clip(ends, metric.range)
        return intervals, "seeds and examples"

    def test(self) -> list[Pair]:
        """Return the tests of each row against the reference, corrected for the number of all of them.

        A row is not tested against one of its own recipe: that would ask whether two seeds differ, and they do.

        Raises:
            DlcvError: a row shares no fold with the reference.
        """
        base, pending = self.reference, list[tuple[Metric[Any], Scored, Difference]]()
        for row in self.rows:
            if not row.scores.keys() & base.scores.keys():
                raise DlcvError(f"{row.name} and {base.name} have no fold in common: train both with the same folds")
        for metric in self.metrics:
            if not metric.tested:
                continue
            folds, of_base = self._folds(metric), base.sample(metric)
            for row in self.rows:
                if row is not base and not (row.recipe and row.recipe == base.recipe):
                    pending.append((metric, row, compare_samples(row.sample(metric), of_base, folds)))
        pairs = [self._make_pair(*own) for own in pending]
        ranked = [place for place, pair in enumerate(pairs) if pair.improvement]
        ranks = [own.improvement.p_rank for own in pairs if own.improvement]
        corrected = correct_by_holm([*(pair.p for pair in pairs), *ranks])
        of_ranks = dict(zip(ranked, corrected[len(pairs) :], strict=True))
        return [
            self._describe(metric, row, pair, corrected[place], of_ranks.get(place))
            for place, ((metric, row, _), pair) in enumerate(zip(pending, pairs, strict=True))
        ]

    def _describe(self, metric: Metric[Any], row: Scored, pair: Pair, p_holm: float, p_rank_holm: float | None) -> Pair:
        """Return a pair with its corrected p and its sentences."""
        pair = msgspec.structs.replace(pair, p_holm=p_holm)
        if pair.improvement:
            improvement = msgspec.structs.replace(pair.improvement, p_rank_holm=p_rank_holm)
            pair = msgspec.structs.replace(pair, improvement=improvement)
        fallen = {
            own.name: sum(network.evaluation.collapse.collapsed for network in own.networks)
            for own in (row, self.reference)
        }
        verdict = Verdict(metric.column, pair, fallen)
        return msgspec.structs.replace(pair, sentence=describe_verdict(verdict), details=describe_details(verdict))

    def _make_pair(self, metric: Metric[Any], row: Scored, of: Difference) -> Pair:
        base, tested, column, span = self.reference, of.tested, metric.column, metric.range[1] - metric.range[0]
        is_first = metric is self.metrics[0]
        margin = self.config.margin if is_first else None
        if margin and column.percent:
            margin /= 100
        aim = margin or (POINT if is_first and column.percent else None)
        certain = not row.networks or not base.networks
        detectable = compute_power_limit(tested) or None if tested and not certain else None  # 0: no spread to say it
        several = len(row.networks) > 1 and len(base.networks) > 1
        return Pair(
            name=row.name,
            reference=base.name,
            metric=column.key,
            difference=of.difference,
            interval=_clip(of.interval, (-span, span)),
            p=of.p,
            p_holm=of.p,
            test=of.test,
            over=of.over,
            n=of.n,
            runs=(len(row.networks), len(base.networks)),
            groups=of.groups,
            folds=of.folds,
            folds_won=self._count_won(metric, row) if of.over == "splits" else None,
            paired=of.paired,
            p_exact=of.p_exact,
            only_row=of.only_row,
            only_reference=of.only_reference,
            improvement=self._improve(metric, row) if several and of.over != "splits" else None,
            detectable=detectable,
            margin=margin,
            p_equivalent=test_equivalence(tested, margin) if tested and margin else None,
            times=self._count_times(row, of, aim) if tested and aim and not certain else None,
            doubt=of.doubt,
            question=QUESTIONS[of.over],
            sentence="",
        )

    def _count_times(self, row: Scored, of: Difference, aim: float) -> float | None:
        """Return how many times as many examples (and runs) would show a difference; None of a single one."""
        runs = [len(own.networks) for own in (row, self.reference) if len(own.networks) > 1]
        per = {"examples": of.groups or of.n, "splits": of.folds, "seeds and examples": min(runs, default=0)}[of.over]
        return count_needed(of.tested, aim, per) / per if of.tested and per > 1 else None

    def _improve(self, metric: Metric[Any], row: Scored) -> Improvement:
        """Return run against run, on the fold that both have."""
        sign = 1 if metric.column.higher_is_better else -1
        a, b = row.measure(metric), self.reference.measure(metric)
        fold = next(fold for fold in a if fold in b)
        ours, theirs = sign * a[fold], sign * b[fold]
        probability, interval = compute_improvement(ours, theirs)
        effect = compute_effect_size(ours, theirs)
        return Improvement(
            probability=probability,
            interval=Interval(*interval),
            p_rank=run_rank_test(ours, theirs, False),
            effect=effect if math.isfinite(effect) else None,
        )

    def _count_won(self, metric: Metric[Any], row: Scored) -> int:
        """Return in how many of the folds that both have the row is better on average."""
        sign = 1 if metric.column.higher_is_better else -1
        a, b = row.measure(metric), self.reference.measure(metric)
        return sum(bool(sign * (a[fold].mean() - b[fold].mean()) > 0) for fold in a if fold in b)


def _clip(interval: tuple[float, float], range: tuple[float, float]) -> Interval:
    """Return an interval without what lies beyond a metric's range."""
    low, high = np.clip(interval, *range).tolist()
    return Interval(low, high)
