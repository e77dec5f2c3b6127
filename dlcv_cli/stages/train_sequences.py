"""`seq gen` and `seq train`."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dlcv_cli.config import GenConfig, Saving, SeqTrainConfig
from dlcv_cli.context import Outcome, Reporter, count_processors
from dlcv_cli.errors import DlcvError, FileError, SettingError, look_up
from dlcv_cli.files import sequences, tensors
from dlcv_cli.files.disk import as_object, check_output, hash_file
from dlcv_cli.files.locks import claim_outputs
from dlcv_cli.files.recipes import Input, Recipe, RunInfo, installed_versions, is_up_to_date
from dlcv_cli.sequences.cells import CELLS, Cell, Parameters, shapes
from dlcv_cli.sequences.tasks import TASKS, Task, generate
from dlcv_cli.sequences.training import begin
from dlcv_cli.stages.seed_runs import OneRun, Runs
from dlcv_cli.stages.snapshots import SnapshotFile, hold_signals, raise_if_signalled
from dlcv_cli.stages.training import claim_training, find_finished, write_training
from dlcv_cli.statistics.collapse import of_numbers
from dlcv_cli.studies.sequences.compiled_kernels import prepare_kernels
from dlcv_cli.vision.splits import PARTS, count_held_out

PACKAGES = {
    engine: (package, "numpy", "safetensors") for engine, package in (("compiled", "numba"), ("torch", "torch"))
}


def gen(output: Path, config: GenConfig, *, force: bool = False) -> Outcome:
    """Writes a sequence file.

    Raises:
        DlcvError: an unknown task, or an output made differently.
    """
    check_output(output, ".safetensors")
    look_up(TASKS, config.task, "task")
    test = count_held_out(config.count, config.test_fraction)
    val = count_held_out(config.count - test, config.val_fraction)
    counts = {"train": config.count - test - val, "val": val, "test": test}
    if min(counts.values()) < 1:
        raise SettingError(f"count is {config.count}: that leaves a part empty ({counts}); give more")
    recipe = Recipe("seq.gen", config)
    if is_up_to_date(output, recipe, lambda path: tensors.read(path, tensors.SEQUENCES).metadata, force):
        return Outcome(output, False, {"counts": counts})
    with claim_outputs(output):
        parts = {part: generate(config, counts[part], stream) for stream, part in enumerate(PARTS)}
        sequences.write(output, parts, {**recipe.to_json(output.parent), "versions": installed_versions("numpy")})
    return Outcome(output, True, {"counts": counts})


def train(
    data: Path,
    output: Path,
    config: SeqTrainConfig,
    *,
    saving: Saving | None = None,
    cache: Path | None = None,
    force: bool = False,
    report: Reporter | None = None,
) -> Outcome:
    """Trains one cell on a sequence file, once for each seed; writes its checkpoint and metrics.

    Args:
        cache: where compiled code is kept between runs; None: nowhere.

    Raises:
        DlcvError: a bad input, an output made differently, or a loss that stopped being finite: the best weights so far
            are written all the same.
    """
    run = RunInfo()
    report = report or Reporter()
    check_output(output, ".safetensors")
    cell = look_up(CELLS, config.cell, "cell")
    if config.engine == "compiled" and not cell.compiled:
        raise SettingError(f"the cell {config.cell!r} has no compiled kernels: train it with --engine torch")
    if config.chrono and cell.keeps is None:
        raise SettingError(f"--chrono sets gates that keep a state, and the cell {config.cell!r} has none")
    file = sequences.read(data)
    task = known_task(file)
    recipe = Recipe("seq.train", config, {"data": Input(hash_file(data), data)})
    if done := find_finished(output, recipe, force, report):
        _complain(output)
        return done
    with claim_training(output):
        bits = {"processor": platform.machine(), **installed_versions(*PACKAGES[config.engine])}
        partial = SnapshotFile(output, recipe, bits, (saving or Saving()).save_every, report)
        left = partial.load(force)
        sizes = shapes(cell, file.parts["train"].inputs.shape[1], config.hidden_size)
        count = 0 if cell.module is None else sum(math.prod(shape) for shape in sizes.values())
        partial.require_space(16 * count * config.seeds, 4 * count * config.seeds)
        times = f", {config.seeds} times" if config.seeds > 1 else ""
        report.note(
            f"trains {count:,} parameters ({config.cell}) on {len(file.parts['train'].lengths):,} sequences{times}"
        )
        if config.engine == "compiled" and cell.module:
            prepare_kernels(cache, report)
        with hold_signals() as caught:
            runs = Runs(cell, task, file.parts["train"], file.parts["val"], config, partial, left).finish(
                caught, report
            )
            _look(cell, [one.best for one in runs.values()], file, config, report)
            outcome = _finish(output, recipe, run, file.task, count, runs, config, partial)
            raise_if_signalled(caught, output)
    _complain(output)
    return outcome


def _finish(
    output: Path,
    recipe: Recipe,
    run: RunInfo,
    task: str,
    count: int,
    runs: dict[int, OneRun],
    config: SeqTrainConfig,
    partial: SnapshotFile,
) -> Outcome:
    """Writes the weights of all runs, one beside the other."""
    records = [{"seed": seed, **asdict(record)} for seed, one in runs.items() for record in one.records]
    bests = [[r for r in records if r["seed"] == seed and r["best"]][-1] for seed in runs]
    diverged = {str(seed): one.diverged for seed, one in runs.items() if one.diverged}
    arrays = next(iter(runs.values())).best
    if len(runs) > 1:
        arrays = {name: np.stack([one.best[name] for one in runs.values()]) for name in arrays}
    about = {"seeds": list(runs), **({"diverged": diverged} if diverged else {})}
    best = min(bests, key=lambda record: float(record["val_loss"]))
    threads = min(count_processors(), len(runs)) if config.engine == "compiled" else 1
    return write_training(
        output, recipe, run, arrays, {"task": task}, about, {"total": count, "trainable": count}, records, best,
        PACKAGES[config.engine], partial, threads=threads,
    )  # fmt: skip


def _look(
    cell: Cell, kept: list[Parameters], file: sequences.SequenceFile, config: SeqTrainConfig, report: Reporter
) -> None:
    """Warns of a cell whose kept weights answer the validation sequences no better than a constant."""
    if cell.module is None:
        return
    val = file.parts["val"]
    answers = np.stack([begin(cell, weights, config).answers(val) for weights in kept])
    found = of_numbers(answers, val.targets, known_task(file).constant)
    if found["collapsed"]:
        remedy = "try more --epochs, another --lr, --clip-norm 1, a gated --cell, or --chrono"
        report.warn(f"collapsed on the validation part: {found['why']}; {remedy}")


def _complain(output: Path) -> None:
    """DlcvError when a training of this checkpoint came to a loss that was not finite."""
    diverged = as_object(tensors.read_metadata(output, tensors.CHECKPOINT).get("diverged"))
    if diverged:
        seed, iteration = next(iter(diverged.items()))
        if type(iteration) is not int:
            raise FileError(output, "damaged: its divergence is no iteration")
        raise DlcvError(
            f"{output}: the loss was no longer a finite number at iteration {iteration:,} of seed {seed}"
            f"{f' (and of {len(diverged) - 1} others)' if len(diverged) > 1 else ''}; the file has the best weights "
            "before that: try a lower --lr, or --clip-norm 1"
        )


def known_task(file: sequences.SequenceFile) -> Task:
    """The file's task. FileError when this version does not know it, or its sequences are not of its width."""
    if file.task not in TASKS:
        raise FileError(file.path, f"is of the task {file.task!r}, which this version does not know")
    task, found = TASKS[file.task], file.parts["train"].inputs.shape[1]
    if found != task.inputs:
        raise FileError(file.path, f"damaged: {found} inputs a step, where {file.task} has {task.inputs}")
    return task


def runs_of(file: tensors.Tensors) -> dict[int, Parameters]:
    """The weights of each run of a checkpoint, by seed. ValueError when they are not there."""
    seeds = file.metadata.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ValueError("its record lists no seeds")
    if len(seeds) == 1:
        return {seeds[0]: file.arrays}
    if any(array.shape[:1] != (len(seeds),) for array in file.arrays.values()):
        raise ValueError(f"its tensors are not those of {len(seeds)} runs")
    return {seed: {name: array[k] for name, array in file.arrays.items()} for k, seed in enumerate(seeds)}
