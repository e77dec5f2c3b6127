"""Which evaluations belong together: the runs of one recipe, by seed and fold. Letters: K runs, N examples."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlcv_cli.errors import DlcvError, look_up
from dlcv_cli.files import tensors
from dlcv_cli.files.recipes import identify_run
from dlcv_cli.results.evaluation import AnyEvaluation
from dlcv_cli.studies.base import Study, summarize

NO_FOLD = 0  # stands for the fold of splits that have none


@dataclass(frozen=True)
class Network:
    """A stored evaluation, and the arrays of its predictions file."""

    name: str
    evaluation: AnyEvaluation
    arrays: Mapping[str, NDArray[Any]]

    @property
    def fold(self) -> int:
        """The fold of its split; NO_FOLD if that has none."""
        return self.evaluation.trained.fold or NO_FOLD


@dataclass(frozen=True)
class RunGroup:
    """The runs of one recipe, or a single run."""

    name: str
    networks: list[Network]

    def by_fold(self) -> dict[int, list[Network]]:
        """Return the networks of each fold, by seed."""
        ordered = sorted(self.networks, key=lambda network: (network.fold, network.evaluation.trained.seed))
        return {fold: list(own) for fold, own in itertools.groupby(ordered, lambda network: network.fold)}


def group_runs(networks: Sequence[Network], grouped: bool = True) -> list[RunGroup]:
    """Return the networks, those of one recipe together, in the order in which they come first.

    Args:
        grouped: False: each network stays alone.

    Raises:
        DlcvError: two networks of a group are the same run.
    """
    if not grouped:
        return [RunGroup(network.name, [network]) for network in networks]
    by_recipe: dict[str, list[Network]] = {}
    for network in networks:
        by_recipe.setdefault(network.evaluation.trained.recipe, []).append(network)
    for members in by_recipe.values():
        runs: dict[tuple[int, int], Network] = {}
        for network in members:
            other = runs.setdefault((network.fold, network.evaluation.trained.seed), network)
            if other is not network:
                fold = f" of fold {network.fold}" if network.fold else ""
                raise DlcvError(
                    f"{other.name} and {network.name} are the same run, seed {network.evaluation.trained.seed}{fold} "
                    "of one recipe: give one of them, or compare each run by itself with --no-group"
                )
    names = [name_group([network.name for network in members]) for members in by_recipe.values()]
    counts = Counter(names)
    return [
        RunGroup(name if counts[name] == 1 else members[0].name, members)
        for name, members in zip(names, by_recipe.values(), strict=True)
    ]


def check_reference(checkpoints: Sequence[tuple[str, Path]], reference: str) -> None:
    """Raise SettingError if no row of these (name, checkpoint) pairs, and none of its runs, has this name."""
    by_recipe: dict[str, list[str]] = {}
    for name, path in checkpoints:
        if path.suffix.lower() == ".csv":
            continue
        by_recipe.setdefault(identify_run(tensors.read_metadata(path, tensors.CHECKPOINT)).recipe, []).append(name)
    look_up(
        dict.fromkeys([*(name for name, _ in checkpoints), *map(name_group, by_recipe.values())]),
        reference,
        "reference",
    )


def name_group(names: Sequence[str]) -> str:
    """Return a name for runs of these names: what they have in common, without the numbers of seed and fold."""
    if len(names) == 1:
        return names[0]
    stems = {re.sub(r"\.(fold|seed)\d+", "", name) for name in names}
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = stems.pop() if len(stems) == 1 else "".join(first for first, *_ in alike).rstrip("0123456789")
    return common.rstrip(".-_/ ") or f"{names[0]} and {len(names) - 1} more"


def different(network: Network, other: Network, what: str, remedy: str) -> DlcvError:
    """Return the error that two evaluations are of different data."""
    both = (network.evaluation.data, other.evaluation.data)
    places = " and ".join(f"{data.part} of {data.path} ({data.fingerprint[:8]})" for data in both)
    where = f"another {what}: {places}"
    return DlcvError(f"{network.name} and {other.name} were evaluated on different data ({where}): {remedy}")


def require_same_data(networks: Sequence[Network]) -> None:
    """Raise DlcvError unless all networks are of one study and part, and those of a fold of the same examples."""
    for network, key in itertools.product(networks[1:], ("study", "part")):
        if getattr(network.evaluation.data, key) != getattr(networks[0].evaluation.data, key):
            raise different(network, networks[0], key, "compare them separately")
    if len({network.fold == NO_FOLD for network in networks}) > 1:
        without = next(network for network in networks if network.fold == NO_FOLD)
        with_folds = next(network for network in networks if network.fold != NO_FOLD)
        raise different(without, with_folds, "split", "one of the splits has folds and the other has none")
    first: dict[int, Network] = {}
    for network in networks:
        other = first.setdefault(network.fold, network)
        if other.evaluation.data.fingerprint != network.evaluation.data.fingerprint:
            raise different(network, other, f"fold {network.fold}", "train and evaluate them with the same split")


def select_shared(study: Study[Any], networks: Sequence[Network], common: bool) -> tuple[list[Network], dict[str, int]]:
    """Return the networks on the examples that all have, each once, summarized anew, and how many each had."""
    first = networks[0]
    other = next(n for n in networks if n.evaluation.data.fingerprint != first.evaluation.data.fingerprint)
    places = [{row.tobytes(): i for i, row in enumerate(network.arrays["examples"])} for network in networks]
    shared = [digest for digest in places[0] if all(digest in place for place in places)]
    again = "evaluate them on the same file with --data"
    if not shared:
        raise different(other, first, "data file", f"they share no example; {again}")
    if not common:
        remedy = f"use --common to compare them on the {len(shared):,} examples that they share, or {again}"
        raise different(other, first, "data file", remedy)
    selected: list[Network] = []
    for network, place in zip(networks, places, strict=True):
        index = np.array([place[digest] for digest in shared])
        axes = {name: array.axis for name, array in study.expected_arrays(network.evaluation).items()}
        arrays = {name: np.take(a, index, axis=axes.get(name, 0)) for name, a in network.arrays.items()}
        if selected and not np.array_equal(arrays[study.truth], selected[0].arrays[study.truth]):
            raise different(network, first, f"set of {study.truth}", again)
        if study.class_names(network.evaluation) != study.class_names(first.evaluation):
            raise different(network, first, "list of classes", again)
        summary = vars(summarize(study, arrays, [rule.name for rule in network.evaluation.baselines]))
        data = msgspec.structs.replace(network.evaluation.data, n=len(shared), fingerprint="common")
        evaluation = msgspec.structs.replace(network.evaluation, data=data, **summary)
        selected.append(replace(network, evaluation=evaluation, arrays=arrays))
    return selected, {network.name: len(place) for network, place in zip(networks, places, strict=True)}
