"""Counts the evaluated examples that a checkpoint, or one of its ancestors, was trained or selected on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from dlcv_cli.context import Reporter
from dlcv_cli.errors import DlcvError, FileError, list_names
from dlcv_cli.files.disk import JSON, hash_file
from dlcv_cli.results.evaluation import Contamination, Unchecked
from dlcv_cli.stages.lineage import Source, trace_sources
from dlcv_cli.studies.base import Study


def _walk(sources: Iterable[Source], data_role: str) -> Iterator[Source]:
    """Yield all files that a checkpoint comes from, back to the data, whose own sources are no examples."""
    for source in sources:
        yield source
        if source.role != data_role:
            yield from _walk(source.sources, data_role)


def check_contamination(
    study: Study[object], checkpoint: Path, metadata: JSON, data: Path, part: str, allowed: bool
) -> tuple[list[str], Contamination]:
    """Return the sha256 of each evaluated example, and how many of them the checkpoint has seen.

    Args:
        part: the evaluated part; `train` is contaminated by definition, and allowed.

    Raises:
        FileError: `data` is not what the checkpoint's study needs.
    """
    examples = study.digest_examples(data)[part]
    seen: dict[str, set[str]] = {"train": set(), "val": set()}  # validation examples decided which weights to keep
    checked: list[str] = []
    unchecked: list[Unchecked] = []
    unrecorded: list[str] = []
    for source in _walk(trace_sources(checkpoint, metadata, {hash_file(data): data}), study.data_role):
        problem = source.problem
        if source.path is None or (source.role == "weights" and not problem and not source.metadata):
            unrecorded.append(source.name)
        elif source.role == study.data_role and not problem:
            try:
                parts = study.digest_examples(source.path)
            except FileError as error:
                problem = str(error).removeprefix(f"{source.path}: ")
            else:
                checked.append(source.name)
                for name, digests in seen.items():
                    digests.update(parts[name])
        if problem:
            unchecked.append(Unchecked(name=source.name, why=problem))
    return examples, Contamination(
        checked=sorted(checked),
        unchecked=unchecked,
        unrecorded=sorted(unrecorded),
        examples=sum(digest in seen["train"] for digest in examples),
        chosen=sum(digest in seen["val"] for digest in examples),
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
