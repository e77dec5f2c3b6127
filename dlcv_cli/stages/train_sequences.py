"""`seq gen` and `seq train`."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dlcv_cli.config import GenConfig, SeqTrainConfig
from dlcv_cli.context import Context, Outcome, Reporter, count_processors, list_facts
from dlcv_cli.errors import DlcvError, FileError, SettingError, look_up
from dlcv_cli.files import sequences, tensors
from dlcv_cli.files.disk import as_object, check_output, hash_file
from dlcv_cli.files.locks import claim_outputs
from dlcv_cli.files.recipes import Input, Recipe, RunInfo, is_up_to_date, read_versions
from dlcv_cli.sequences.cells import CELLS, Cell, Parameters, list_shapes
from dlcv_cli.sequences.engines import ENGINES, build_engine
from dlcv_cli.sequences.tasks import TASKS, generate
from dlcv_cli.stages.seed_runs import SeedRun, SeedRuns, SeedSetup
from dlcv_cli.stages.snapshots import SnapshotFile, hold_signals, raise_if_signalled
from dlcv_cli.stages.training import TrainingResult, claim_training, find_finished, write_training
from dlcv_cli.statistics.collapse import judge_numbers
from dlcv_cli.studies.sequences.compiled_kernels import prepare_kernels
from dlcv_cli.studies.sequences.study import PACKAGES, look_up_task
from dlcv_cli.vision.splits import PARTS, count_held_out


def generate_sequences(output: Path, config: GenConfig, *, context: Context = Context()) -> Outcome:
    """Write a sequence file. DlcvError: an unknown task, or an output made by another recipe."""
    check_output(output, ".safetensors")
    look_up(TASKS, config.task, "task")
    test = count_held_out(config.count, config.test_fraction)
    val = count_held_out(config.count - test, config.val_fraction)
    counts = {"train": config.count - test - val, "val": val, "test": test}
    if min(counts.values()) < 1:
        raise SettingError(f"--count {config.count} leaves a part empty ({counts}): increase it")
    recipe = Recipe("seq.gen", config)
    if is_up_to_date(output, recipe, lambda path: tensors.read(path, tensors.SEQUENCES).metadata, context.force):
        return Outcome(output, False, {"counts": counts})
    with claim_outputs(output):
        parts = {part: generate(config, counts[part], stream) for stream, part in enumerate(PARTS)}
        sequences.write(output, parts, {**recipe.to_json(output.parent), "versions": read_versions("numpy")})
    return Outcome(output, True, {"counts": counts})


def train_sequences(data: Path, output: Path, config: SeqTrainConfig, *, context: Context = Context()) -> Outcome:
    """Train one cell on a sequence file, once for each seed; write its checkpoint and metrics.

    Raises:
        DlcvError: a bad input, an output made by another recipe, or a loss that was no longer finite: the best weights
            before that are written all the same.
    """
    run = RunInfo()
    check_output(output, ".safetensors")
    cell = _find_cell(config)
    file = sequences.read(data)
    task = look_up_task(file)
    recipe = Recipe("seq.train", config, {"data": Input(hash_file(data), data)})
    if finished := find_finished(output, recipe, context):
        _require_finite(output)
        return finished
    with claim_training(output):
        machine = {"processor": platform.machine(), **read_versions(*PACKAGES[config.engine])}
        context.reporter.detail(list_facts({"engine": config.engine, "threads": _count_threads(config), **machine}))
        snapshot = SnapshotFile(output, recipe, machine, context)
        saved = snapshot.load()
        sizes = list_shapes(cell, task.inputs, config.hidden_size) if cell.module else {}
        count = sum(math.prod(shape) for shape in sizes.values())  # of numbers that one seed trains
        snapshot.require_space(16 * count * config.seeds, 4 * count * config.seeds)
        times = f", {config.seeds} times" if config.seeds > 1 else ""
        context.reporter.note(
            f"training {count:,} parameters ({config.cell}) on {len(file.parts['train'].lengths):,} sequences{times}"
        )
        if ENGINES[config.engine].compiled and cell.module:
            prepare_kernels(context.cache, context.reporter)
        with hold_signals() as caught:
            setup = SeedSetup(cell, task, file.parts["train"], file.parts["val"], config)
            runs = SeedRuns(setup, snapshot, saved).finish(caught, context.reporter)
            warn_if_collapsed(setup, [seed_run.best for seed_run in runs.values()], context.reporter)
            outcome = write_training(output, recipe, _result(runs, file.task, count, config), run, snapshot)
            raise_if_signalled(caught, output)
    _require_finite(output)
    return outcome


def _find_cell(config: SeqTrainConfig) -> Cell:
    """Return the cell of the settings. SettingError if it cannot train with them."""
    cell = look_up(CELLS, config.cell, "cell")
    if look_up(ENGINES, config.engine, "engine").compiled and not cell.compiled:
        raise SettingError(f"the cell {config.cell!r} has no compiled kernels: train it with --engine torch")
    if config.chrono and cell.keeps is None:
        raise SettingError(f"--chrono sets gates that keep a state, and the cell {config.cell!r} has none")
    return cell


def _result(runs: dict[int, SeedRun], task: str, count: int, config: SeqTrainConfig) -> TrainingResult:
    """Return what is written of all runs; several runs' weights are stacked."""
    records = [{"seed": seed, **asdict(record)} for seed, run in runs.items() for record in run.records]
    best_of_each = [[r for r in records if r["seed"] == seed and r["best"]][-1] for seed in runs]
    arrays = next(iter(runs.values())).best
    if len(runs) > 1:
        arrays = {name: np.stack([run.best[name] for run in runs.values()]) for name in arrays}
    diverged = {str(seed): run.diverged for seed, run in runs.items() if run.diverged}
    return TrainingResult(
        arrays,
        {"task": task},
        {"seeds": list(runs), **({"diverged": diverged} if diverged else {})},
        {"total": count, "trainable": count},
        records,
        min(best_of_each, key=lambda record: float(record["val_loss"])),
        PACKAGES[config.engine],
        {"threads": _count_threads(config)},
    )


def _count_threads(config: SeqTrainConfig) -> int:
    return min(count_processors(), config.seeds) if ENGINES[config.engine].compiled else 1


def warn_if_collapsed(setup: SeedSetup, weights: list[Parameters], reporter: Reporter) -> None:
    """Warn if the best weights predict the validation sequences no better than a constant does."""
    if setup.cell.module is None:
        return
    predictions = np.stack([build_engine(setup.cell, run, setup.config).predict(setup.val) for run in weights])
    collapse = judge_numbers(predictions, setup.val.targets, setup.task.constant)
    if collapse.collapsed:
        remedy = "try more --epochs, another --lr, --clip-norm 1, a gated --cell, or --chrono"
        reporter.warn(f"collapsed on the validation part: {collapse.why}; {remedy}")


def _require_finite(output: Path) -> None:
    """Raise DlcvError if a run of this checkpoint ended early because its loss was no longer finite."""
    diverged = as_object(tensors.read_metadata(output, tensors.CHECKPOINT).get("diverged"))
    if diverged:
        seed, iteration = next(iter(diverged.items()))
        if type(iteration) is not int:
            raise FileError(output, "damaged: its divergence is not an iteration")
        raise DlcvError(
            f"{output}: the loss was no longer a finite number at iteration {iteration:,} of seed {seed}"
            f"{f' (and of {len(diverged) - 1} others)' if len(diverged) > 1 else ''}; the file has the best weights "
            "before that: try a lower --lr, or --clip-norm 1"
        )
