"""The top of a section: what was compared, on which data, what came out, and what does not follow from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import msgspec

from dlcv_cli.report.kinds import Table
from dlcv_cli.report.reported import Gallery, Reported, ReportedRow
from dlcv_cli.results.comparison import Comparison, Pair, format_number
from dlcv_cli.settings import name_stage

ALARM = 0.05
FINDINGS = 3  # sentences on top
ENOUGH = 5  # runs; of fewer, their spread is little known
SETTINGS = ("stage", "task", "arch", "precision", "config", "chosen", "parameters", "inputs")
PLACES = {"config.seed", "inputs.checkpoint", "inputs.data", "inputs.split"}  # no settings: run, files, data


@dataclass(frozen=True)
class Limit:
    """What cannot be concluded, or what a reader has to know first; `grave` ones stand out."""

    kind: str
    text: str
    grave: bool = False


def choose_findings(comparison: Comparison) -> list[Pair]:
    """Return the tests of the first metric, the strongest first; against baselines only if there are no other rows.

    That a row is better than a collapsed one is said last.
    """
    baselines = {row.name for row in comparison.rows if row.baseline}
    collapsed = {row.name for row in comparison.rows if row.collapsed}
    pairs = [pair for pair in comparison.pairs if pair.metric == comparison.metric]
    learned = [pair for pair in pairs if pair.name not in baselines] or pairs
    ordered = sorted(learned, key=lambda p: (p.name in collapsed, p.p_holm >= ALARM, -abs(p.difference)))
    return ordered[:FINDINGS]


def list_details(pair: Pair) -> list[str]:
    """Return a pair's details without its doubt, which is among the limits."""
    return [detail for detail in pair.details if not (pair.doubt and detail.endswith(pair.doubt))]


def list_limits(comparison: Comparison, rows: Sequence[ReportedRow], galleries: Sequence[Gallery]) -> list[Limit]:
    """Return what cannot be concluded, the grave ones first."""
    networks = [network for row in rows for network in row.networks]
    limits = [Limit("Collapse", sentence, grave=True) for sentence in comparison.collapses]
    for network in networks:
        limits += _check_leaks(network, comparison.data.part)
    pictures = [picture for gallery in galleries for strip in gallery.rows for picture in strip.pictures]
    problems = {picture.example.path: picture.problem for picture in pictures if picture.problem}
    if problems:
        reasons = ", ".join(sorted(set(problems.values())))
        text = f"{len(problems):,} images are not as they were when evaluated ({reasons})."
        limits.append(Limit("Pictures missing", text, grave=True))
    limits += _judge_runs(comparison)
    limits += _judge_equality(comparison)
    limits += _judge_cause(comparison, rows)
    nouns = {column.key: column.noun for column in comparison.columns}
    doubts: dict[str, list[str]] = {}
    for pair in comparison.pairs:
        if pair.doubt:
            doubts.setdefault(pair.doubt, []).append(f"{pair.name} - {pair.reference} in {nouns[pair.metric]}")
    limits += [Limit("Doubt", f"Interval and p of {'; '.join(who)} may be off: {why}.") for why, who in doubts.items()]
    limits += [Limit("Selection", sentence) for sentence in comparison.searches]
    if comparison.data.part == "val":
        text = "These examples also decided which weights were kept, so figures on new examples will be lower."
        limits.append(Limit("Selection", text))
    return limits


def _check_leaks(network: Reported, part: str) -> Iterator[Limit]:
    leak = network.evaluation.contamination
    if leak.leaks:
        trained = f"{network.name} was trained on {leak.examples:,} of the {leak.of:,} examples of this part"
        yield Limit("Contamination", f"{trained}: its metrics say nothing about unseen data.", grave=True)
    if leak.chosen and part == "test" and not leak.by_chance:
        text = f"{leak.chosen:,} of the {leak.of:,} examples chose the weights of {network.name}"
        yield Limit("Contamination", f"{text}: its metrics are too good.", grave=True)
    if leak.unchecked and not leak.by_chance:
        files = ", ".join(f"{file.name} ({file.why})" for file in leak.unchecked)
        text = f"some files that {network.name} was made from could not be read: {files}."
        yield Limit("Not checked", f"{text} It may have been trained on examples of this part.", grave=True)


def _judge_cause(comparison: Comparison, rows: Sequence[ReportedRow]) -> Iterator[Limit]:
    """Yield that rows may differ in several settings, and that rows beside the reference are not compared."""
    different = compare_settings(rows)
    if different and len(different.rows) > 1:
        text = f"The rows differ in {len(different.rows)} settings: which of them makes a difference does not follow."
        yield Limit("Cause", text)
    others = [row.name for row in comparison.rows if row.runs and row.name != comparison.reference]
    if len(others) > 1:
        yield Limit("One reference", f"Rows are tested against {comparison.reference}, not against each other.")


def _judge_runs(comparison: Comparison) -> Iterator[Limit]:
    learned = [row for row in comparison.rows if row.runs]
    single = [row.name for row in learned if len(row.runs) == 1]
    if single:
        who = "Each row" if len(single) == len(learned) else ", ".join(single)
        verb = "are" if 1 < len(single) < len(learned) else "is"
        text = f"{who} {verb} a single run: its figures are of one trained network, and say nothing of the recipe."
        yield Limit("Single runs", text)
    few = [f"{row.name} has {len(row.runs)}" for row in learned if 1 < len(row.runs) < ENOUGH]
    if few:
        yield Limit("Few runs", f"{', '.join(few)}: how far runs differ is itself uncertain with fewer than {ENOUGH}.")
    yield from (Limit("Not tested", sentence) for sentence in comparison.untested)


def _judge_equality(comparison: Comparison) -> Iterator[Limit]:
    baselines = {row.name for row in comparison.rows if row.baseline}
    first = [pair for pair in comparison.pairs if pair.metric == comparison.metric and pair.name not in baselines]
    open_pairs = [
        pair for pair in first if pair.p_holm >= ALARM and (pair.p_equivalent is None or pair.p_equivalent >= ALARM)
    ]
    if open_pairs:
        names = ", ".join(pair.name for pair in open_pairs)
        text = f"{names} may still differ from {comparison.reference}: a difference that is not shown can be there."
        yield Limit("No equality", text)


def describe_rows(comparison: Comparison, rows: Sequence[ReportedRow]) -> list[str]:
    """Return for each row what it is and how many runs it has, in a sentence."""
    counts = {row.name: row.describe_runs() or "a single run" for row in comparison.rows}
    texts = []
    for row in rows:
        metrics = row.representative.metrics
        what = metrics.arch or metrics.config.get("cell") or ""
        numbers = f"{metrics.parameters.trainable:,} of {metrics.parameters.total:,} parameters trained"
        texts.append(f"{row.name}: {counts[row.name]} of dlcv {name_stage(metrics.stage)} {what}, {numbers}")
    return texts


def describe_data(comparison: Comparison, classes: int, sizes: Mapping[str, int]) -> str:
    """Return which data was used: file, classes, and examples of each part."""
    data = comparison.data
    noun = "images" if data.study == "images" else "sequences"
    folds = sorted({fold for row in comparison.rows for fold in row.folds})
    parts = ", ".join(f"{sizes[part]:,} {word}" for part, word in PARTS.items())
    text = f"{PurePath(data.path).name}: " + (f"{classes:,} classes; " if classes else "")
    text += f"{parts} {noun}" + (f" in the first of {len(folds)} folds" if len(folds) > 1 else "")
    return f"{text}. Compared on the {data.n:,} of {data.part}" + (
        ", on average over folds." if len(folds) > 1 else "."
    )


PARTS = {"train": "training", "val": "validation", "test": "test"}


def list_settings(rows: Sequence[ReportedRow]) -> Iterator[tuple[str, Table]]:
    """Yield the settings and machine of each row's training and evaluation."""
    for row in rows:
        network, texts = row.representative, list[tuple[str, ...]]()
        for what, document in (("training", network.metrics), ("evaluation", network.evaluation)):
            values = msgspec.to_builtins(document)
            texts += [(f"{what} {name}", value) for name, value in _flatten(values, (*SETTINGS, "run"))]
        yield row.shown, Table(("setting", "value"), texts)


def compare_settings(rows: Sequence[ReportedRow]) -> Table | None:
    """Return the training settings in which rows differ, a column for each row; None: they differ in none."""
    columns = []
    for row in rows:
        values = msgspec.to_builtins(row.representative.metrics)
        for role, file in values["inputs"].items():  # by name and content; where it lay is no setting
            values["inputs"][role] = f"{file.get('name') or PurePath(file['path']).name} {file['sha256'][:8]}"
        columns.append({name: text for name, text in _flatten(values, SETTINGS) if name not in PLACES})
    names = dict.fromkeys(name for column in columns for name in column)
    texts = [(name, *(column.get(name, "") for column in columns)) for name in names]
    different = [own for own in texts if len(set(own[1:])) > 1]
    return Table(("setting", *(row.name for row in rows)), different) if different else None


def _flatten(values: Mapping[str, Any], keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    for key in keys:
        value = values.get(key)
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", text) for name, text in _flatten(value, tuple(value)))
        elif value is not None:
            yield key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def list_tries(rows: Sequence[ReportedRow]) -> Iterator[tuple[str, Table]]:
    """Yield what was tried on the validation part, of rows whose settings were chosen."""
    for row in rows:
        texts = []
        for t in row.representative.metrics.tries:
            trained = ("linear", "") if t.lr is None else (f"{t.lr:g}", str(t.epochs))
            scores = (format_number(t.val_loss), format_number(t.val_accuracy, percent=True))
            texts.append((t.resize, t.augment, f"{t.weight_decay:g}", *trained, *scores))
        headings = ("resize", "augment", "weight decay", "lr", "epochs", "validation loss", "validation top-1 %")
        if texts:
            yield f"{row.shown}: {len(texts)} tries", Table(headings, texts)
