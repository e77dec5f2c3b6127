"""The runs of one training command: one for each fold and seed, each with the file that a command of its own writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from dlcv_cli.config import SeqTrainConfig, TrainConfig
from dlcv_cli.errors import DivergedError, SettingError, list_names
from dlcv_cli.files import splits
from dlcv_cli.files.disk import JSON, check_output, replace_ending
from dlcv_cli.files.splits import Split

C = TypeVar("C", bound=TrainConfig | SeqTrainConfig)


@dataclass(frozen=True)
class PlannedRun(Generic[C]):
    """One run: the settings that its own command would have, its file, and what tells its records from the others'."""

    config: C
    output: Path
    labels: JSON


def name_run(output: Path, fold: int | None, seed: int | None) -> Path:
    """Return the file of one run: `runs/head.safetensors` -> `runs/head.fold1.seed0.safetensors`. None is left out."""
    labels = [f".{name}{number}" for name, number in (("fold", fold), ("seed", seed)) if number is not None]
    return replace_ending(output, f"{''.join(labels)}.safetensors")


def list_runs(config: C, output: Path, folds: Sequence[int | None] = (None,)) -> list[PlannedRun[C]]:
    """Return a run for each fold and seed, fold by fold. Only what differs among them is in their names.

    Raises:
        DlcvError: the output's name has not the ending of checkpoints.
    """
    check_output(output, ".safetensors")
    runs: list[PlannedRun[C]] = []
    for fold in folds:
        for seed in range(config.seed, config.seed + config.seeds):
            labels = {
                **({"fold": fold} if len(folds) > 1 else {}),
                **({"seed": seed} if config.seeds > 1 else {}),
            }
            own: dict[str, Any] = {"seed": seed, "seeds": 1, **({} if fold is None else {"fold": str(fold)})}
            file = name_run(output, labels.get("fold"), labels.get("seed"))
            runs.append(PlannedRun(replace(config, **own), file, labels))
    return runs


def read_folds(split: Path, root: Path | None, text: str | None) -> list[Split]:
    """Return the folds of a split file that `--fold` names, each once, or the one division of a file without folds.

    Raises:
        FileError: the file is damaged, has no such fold, or has folds and `text` names none.
    """
    if text is None:
        return [splits.read(split, root)]
    each = splits.read_each(split, root)
    if text == "all" and each[0].folds:
        return each
    numbers = [1] if text == "all" else _list_numbers(text)
    if not each[0].folds or max(numbers) > each[0].folds:
        splits.read(split, root, max(numbers))  # raises, and says which
    return [each[number - 1] for number in numbers]


def _list_numbers(text: str) -> list[int]:
    """Return the numbers of `1,3-5`, each once, in order."""
    numbers: set[int] = set()
    for piece in text.split(","):
        first, _, last = piece.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return sorted(numbers)


def require_one(outputs: Sequence[object], function: str) -> None:
    """Raise SettingError if the settings ask for several runs of a function that makes one."""
    if len(outputs) > 1:
        raise SettingError(f"these settings are of {len(outputs)} runs, and this makes one: use {function}")


def raise_diverged(diverged: Sequence[tuple[Path, DivergedError]], count: int) -> None:
    """Raise the error of the runs that diverged, if any did; of several runs it says which.

    Args:
        count: the number of all runs.
    """
    if not diverged:
        return
    path, error = diverged[0]
    if count == 1:
        raise error
    others = f" (and {list_names(path for path, _ in diverged[1:])})" if len(diverged) > 1 else ""
    reason = str(error).removeprefix(f"{path}: ")
    raise DivergedError(f"{len(diverged)} of {count} runs diverged: {path}{others}: {reason}")
