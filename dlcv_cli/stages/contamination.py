"""Which of the evaluated examples a checkpoint, or one that it comes from, was trained or chosen on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dlcv_cli.context import Reporter
from dlcv_cli.errors import DlcvError, FileError, list_names
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import JSON, as_object, hash_file
from dlcv_cli.results.evaluation import Contamination, Unchecked
from dlcv_cli.studies.base import Study

DigestExamples = Callable[[Path], dict[str, list[str]]]  # data file -> of each part, each example's sha256


@dataclass
class Lineage:
    """The examples that a line of checkpoints has seen, by sha256, and how far back it could be followed."""

    trained: set[str] = field(default_factory=set)
    chosen: set[str] = field(default_factory=set)  # of the validation parts, which decided which weights were kept
    checked: list[str] = field(default_factory=list)
    unchecked: list[Unchecked] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)


def trace_training_data(
    checkpoint: Path, metadata: JSON, data: Path, data_role: str, digest_examples: DigestExamples
) -> Lineage:
    """Follow a checkpoint's inputs, and theirs, to the data of each generation. Files count by their sha256.

    Args:
        metadata: the checkpoint's. data: a data file that may stand for a recorded one of the same content.
        data_role: the role of data among a checkpoint's inputs.
    """
    lineage, known, pending = Lineage(), {hash_file(data): data}, [(checkpoint, metadata)]
    while pending:
        child, metadata = pending.pop()
        for role, recorded in as_object(metadata.get("inputs")).items():
            source = as_object(recorded)
            if isinstance(source.get("name"), str):
                lineage.unrecorded.append(source["name"])
                continue
            place, digest = source.get("path"), source.get("sha256")
            path = known.get(str(digest)) or child.parent / str(place)
            try:
                if not isinstance(place, str) or hash_file(path) != digest:
                    raise FileError(path, f"has changed since {child.name} was made from it")
                if role == data_role:
                    parts = digest_examples(path)
                    lineage.trained.update(parts["train"])
                    lineage.chosen.update(parts["val"])
                    lineage.checked.append(path.name)
                elif role == "weights" and not _is_checkpoint(path):
                    lineage.unrecorded.append(path.name)
                else:
                    pending.append((path, tensors.read_metadata(path, tensors.CHECKPOINT)))
            except (DlcvError, OSError) as error:
                lineage.unchecked.append(Unchecked(name=path.name, why=str(error).removeprefix(f"{path}: ")))
    return lineage


def _is_checkpoint(path: Path) -> bool:
    """Return whether a file of weights has our metadata: torchvision's, and others', have none."""
    try:
        tensors.read_metadata(path, tensors.CHECKPOINT)
    except FileError:
        return False
    return True


def check_contamination(
    study: Study[object], checkpoint: Path, metadata: JSON, data: Path, part: str, allowed: bool
) -> tuple[list[str], Contamination]:
    """Return the sha256 of each evaluated example, and how many of them the checkpoint has seen.

    Args:
        part: the one that is evaluated; `train` is contaminated by definition, and allowed.

    Raises:
        FileError: `data` is not what the checkpoint's study needs.
    """
    examples: Sequence[str] = study.digest_examples(data)[part]
    lineage = trace_training_data(checkpoint, metadata, data, study.data_role, study.digest_examples)
    return list(examples), Contamination(
        checked=sorted(lineage.checked),
        unchecked=lineage.unchecked,
        unrecorded=sorted(lineage.unrecorded),
        examples=sum(digest in lineage.trained for digest in examples),
        chosen=sum(digest in lineage.chosen for digest in examples),
        of=len(examples),
        by_chance=study.repeats_examples(metadata),
        allowed=allowed or part == "train",
    )


def report_contamination(checkpoint: Path, leak: Contamination, part: str, allowed: bool, reporter: Reporter) -> None:
    """Report in words what a contamination means.

    Raises:
        DlcvError: evaluated examples were trained on, which was neither requested nor allowed.
    """
    if leak.unchecked:
        files = list_names(f"{file.name} ({file.why})" for file in leak.unchecked)
        reporter.warn(
            f"{checkpoint}: cannot check whether it was trained on these {part} examples: {files}; "
            "restore the files, and evaluate with --force"
        )
    if leak.chosen and part == "test" and not leak.by_chance:
        reporter.warn(
            f"{checkpoint}: {leak.chosen:,} of the {leak.of:,} test examples are validation examples of its training, "
            "which decided which weights were kept: its figures are too good"
        )
    if not leak.leaks:
        return
    if part == "train":
        reporter.note(f"{checkpoint}: evaluated on its training part: {leak.examples:,} of {leak.of:,} examples")
    elif not allowed:
        raise DlcvError(
            f"{checkpoint}: {leak.examples:,} of the {leak.of:,} {part} examples were trained on, by it or a "
            f"checkpoint that it comes from (data: {list_names(leak.checked)}): "
            "evaluate it on other data with --data, or use --allow-contaminated"
        )
    else:
        reporter.warn(
            f"CONTAMINATED: {checkpoint} was trained on {leak.examples:,} of these {leak.of:,} {part} examples"
        )
