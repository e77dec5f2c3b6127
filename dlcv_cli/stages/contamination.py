"""What a checkpoint has seen: the examples that it, and every checkpoint it comes from, was trained or chosen on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dlcv_cli.context import Reporter
from dlcv_cli.errors import DlcvError, FileError, list_names
from dlcv_cli.files import sequences, splits, tensors
from dlcv_cli.files.disk import JSON, as_object, hash_file
from dlcv_cli.sequences.tasks import TASKS

Digests = Callable[[Path], dict[str, list[str]]]  # data file -> of each part, each example's sha256


@dataclass
class Seen:
    """The examples of a line of checkpoints by sha256, and how far back that could be followed."""

    trained: set[str] = field(default_factory=set)
    chosen: set[str] = field(default_factory=set)  # the validation parts: which epoch was kept depended on them
    checked: list[str] = field(default_factory=list)
    unchecked: list[JSON] = field(default_factory=list)  # name, why: files that are not as they were
    unrecorded: list[str] = field(default_factory=list)  # weights that do not say what they have seen


def _of_split(path: Path) -> dict[str, list[str]]:
    return {part: [example.sha256 for example in examples] for part, examples in splits.read(path).parts.items()}


def _of_sequences(path: Path) -> dict[str, list[str]]:
    parts = sequences.read(path).parts
    return {part: [digest.hex() for digest in sequences.digests(data)] for part, data in parts.items()}


def check_contamination(checkpoint: Path, record: JSON, data: Path, part: str, allowed: bool) -> tuple[list[str], JSON]:
    """The sha256 of each of a data file's examples of that part, and the evaluation's `contamination`.

    Raises:
        FileError: `data` is not what the checkpoint's study needs.
    """
    images = str(record.get("stage")).startswith("vgg.")
    digests = _of_split if images else _of_sequences
    examples = digests(data)[part]
    by_chance = not images and coincides(record.get("task"))
    return examples, contamination(
        trace_training_data(checkpoint, record, data, digests), examples, part, by_chance, allowed
    )


def trace_training_data(checkpoint: Path, record: JSON, data: Path, digests: Digests) -> Seen:
    """Follows a checkpoint's inputs, and theirs, to the data of each generation; files count by their sha256.

    Args:
        record: the checkpoint's. data: a data file that may stand for a recorded one of the same content.
    """
    found, known, here = Seen(), {hash_file(data): data}, [(checkpoint, record)]
    while here:
        child, record = here.pop()
        for role, given in as_object(record.get("inputs")).items():
            recorded = as_object(given)
            if isinstance(recorded.get("name"), str):
                found.unrecorded.append(recorded["name"])
                continue
            place, digest = recorded.get("path"), recorded.get("sha256")
            path = known.get(str(digest)) or child.parent / str(place)
            try:
                if not isinstance(place, str) or hash_file(path) != digest:
                    raise FileError(path, f"has changed since {child.name} was made from it")
                if role in ("split", "data"):
                    parts = digests(path)
                    found.trained.update(parts["train"])
                    found.chosen.update(parts["val"])
                    found.checked.append(path.name)
                elif role == "weights" and not _is_ours(path):
                    found.unrecorded.append(path.name)
                else:
                    here.append((path, tensors.read_metadata(path, tensors.CHECKPOINT)))
            except (DlcvError, OSError) as error:
                found.unchecked.append({"name": path.name, "why": str(error).removeprefix(f"{path}: ")})
    return found


def _is_ours(path: Path) -> bool:
    """Whether a file of weights has a record of ours: torchvision's, and others', have none."""
    try:
        tensors.read_metadata(path, tensors.CHECKPOINT)
    except FileError:
        return False
    return True


def contamination(found: Seen, examples: Sequence[str], part: str, by_chance: bool, allowed: bool) -> JSON:
    """The evaluation file's `contamination`: how many of the evaluated examples were trained on.

    Args:
        examples: the sha256 of each. part: which one is evaluated; `train` is contaminated because it was asked for.
        by_chance: the task has so few different sequences that equal ones are no leak.
    """
    return {
        "checked": sorted(found.checked),
        "unchecked": found.unchecked,
        "unrecorded": sorted(found.unrecorded),
        "examples": sum(digest in found.trained for digest in examples),
        "chosen": sum(digest in found.chosen for digest in examples),
        "of": len(examples),
        "by_chance": by_chance,
        "allowed": allowed or part == "train",
    }


def report_contamination(checkpoint: Path, found: JSON, part: str, allowed: bool, report: Reporter) -> None:
    """Says what a `contamination` means.

    Raises:
        DlcvError: evaluated examples were trained on, and neither asked for nor allowed.
    """
    count, of = found["examples"], found["of"]
    if found["unchecked"]:
        listed = list_names(f"{one['name']} ({one['why']})" for one in found["unchecked"])
        report.warn(
            f"{checkpoint}: could not be checked whether it was trained on these {part} examples: {listed}; "
            "restore what is missing, and evaluate with --force"
        )
    if found["chosen"] and part == "test" and not found["by_chance"]:
        report.warn(
            f"{checkpoint}: {found['chosen']:,} of the {of:,} test examples are validation examples of its training, "
            "by which the best epoch was chosen: its figures are too good"
        )
    if not count or found["by_chance"]:
        return
    if part == "train":
        report.note(f"{checkpoint}: train was asked for: {count:,} of its {of:,} examples were trained on")
    elif not allowed:
        raise DlcvError(
            f"{checkpoint}: {count:,} of the {of:,} {part} examples were trained on, by it or a checkpoint it comes "
            f"from (data: {list_names(found['checked'])}): evaluate it on others with --data, or --allow-contaminated"
        )
    else:
        report.warn(f"CONTAMINATED: {checkpoint} was trained on {count:,} of these {of:,} {part} examples")


def coincides(task: object) -> bool:
    """Whether a task draws from so few sequences that two are equal by chance."""
    return isinstance(task, str) and task in TASKS and TASKS[task].finite
