"""A row of a comparison before it is one: the runs of a recipe, scored. Letters: K runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.results.comparison import Run, Spread
from dlcv_cli.stages.groups import Network
from dlcv_cli.statistics.paired import Sample
from dlcv_cli.statistics.verdicts import compute_iqm
from dlcv_cli.studies.base import Metric


@dataclass(frozen=True)
class Scored:
    """A row's runs scored, by fold."""

    name: str
    recipe: str  # empty for a baseline
    scores: Mapping[int, list[Any]]
    networks: list[Network]  # empty for a baseline

    @property
    def seeds(self) -> dict[int, list[int]]:
        seeds: dict[int, list[int]] = {fold: [] for fold in self.scores}
        for network in self.networks:
            seeds[network.fold].append(network.evaluation.trained.seed)
        return seeds

    def measure(self, metric: Metric[Any]) -> dict[int, NDArray[Any]]:
        """Return the metric of each run (K,), by fold."""
        return {fold: np.array([metric.value(run) for run in runs]) for fold, runs in self.scores.items()}

    def sample(self, metric: Metric[Any]) -> Sample:
        """Return what tests of a metric that is a mean over examples compare."""
        assert metric.values
        values = {fold: np.stack([*map(metric.values, runs)]) for fold, runs in self.scores.items()}
        return Sample(values, self.seeds)

    def measure_spread(self, metric: Metric[Any]) -> Spread:
        """Return how a metric varies over the runs."""
        values = np.concatenate([*self.measure(metric).values()])
        return Spread(
            mean=float(values.mean()),
            std=float(values.std(ddof=1)),
            min=float(values.min()),
            max=float(values.max()),
            iqm=compute_iqm(values),
        )


def describe_run(network: Network) -> Run:
    """Return a network as a run of a row."""
    own = network.evaluation
    why = f"{own.collapse.why}; {own.collapse.describe()}" if own.collapse.collapsed else None
    return Run(name=network.name, seed=own.trained.seed, fold=own.trained.fold, metrics=own.metrics, collapsed=why)
