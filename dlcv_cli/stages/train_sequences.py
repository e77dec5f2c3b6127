"""`seq gen` and `seq train`."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

from dlcv_cli.config import GenConfig, SeqTrainConfig
from dlcv_cli.context import Context, Outcome, Reporter, count_processors, list_facts
from dlcv_cli.errors import DivergedError, FileError, SettingError, look_up
from dlcv_cli.files import sequences, tensors
from dlcv_cli.files.disk import JSON, as_object, check_output, hash_file
from dlcv_cli.files.locks import claim_outputs
from dlcv_cli.files.recipes import Input, Recipe, RunInfo, is_up_to_date, read_versions
from dlcv_cli.sequences.cells import CELLS, Cell, Parameters, list_shapes
from dlcv_cli.sequences.engines import ENGINES, build_engine
from dlcv_cli.sequences.tasks import TASKS, generate
from dlcv_cli.stages.repeats import PlannedRun, list_runs, raise_diverged, require_one
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
    """Train one cell on a sequence file; write its checkpoint and metrics.

    Raises:
        DlcvError: a bad input, or an output made by another recipe.
        DivergedError: a loss was no longer finite: the best weights before that are written all the same.
    """
    require_one(list_runs(config, output), "train_sequence_runs")
    [outcome] = train_sequence_runs(data, output, config, context=context)
    return outcome


def train_sequence_runs(
    data: Path, output: Path, config: SeqTrainConfig, *, context: Context = Context()
) -> Iterator[Outcome]:
    """Train one cell once for each seed, side by side on the processors; then yield the outcomes in that order.

    Each run writes what its own command would write, under its name by `name_run`. What exists is checked before the
    first training starts.

    Raises:
        DlcvError, DivergedError: as `train_sequences`; the other runs are finished all the same.
    """
    cell, plans = _find_cell(config), list_runs(config, output)
    file = sequences.read(data)
    setup = SeedSetup(cell, look_up_task(file), file.parts["train"], file.parts["val"], config)
    source = Input(hash_file(data), data)
    runs = [_RunFiles(setup, file.task, plan, source, context) for plan in plans]
    outcomes = {run.seed: find_finished(run.output, run.recipe, context) for run in runs}
    waiting = {run.seed: run for run in runs if not outcomes[run.seed]}
    diverged: list[tuple[Path, DivergedError]] = []
    if waiting:
        announce = cache(lambda: _announce(setup, len(waiting), context))  # once
        with hold_signals() as caught, contextlib.ExitStack() as claims:

            def begin(seed: int) -> SeedRun:
                return waiting[seed].begin(claims, announce)

            def end(run: SeedRun) -> None:
                outcomes[run.seed] = waiting[run.seed].end(run)

            SeedRuns(setup, [*waiting], begin, end).finish(caught, context.reporter)
            raise_if_signalled(caught, runs[-1].output)
    for run in runs:
        try:
            run.require_finite()
        except DivergedError as error:
            diverged.append((run.output, error))
        else:
            if outcome := outcomes[run.seed]:
                yield outcome
    raise_diverged(diverged, len(runs))


def _announce(setup: SeedSetup, count: int, context: Context) -> None:
    """Say what is to train so many times, and prepare the kernels."""
    config, reporter = setup.config, context.reporter
    engine = ENGINES[config.engine]
    threads = min(count_processors(), count) if engine.compiled else 1
    reporter.detail(list_facts({"engine": config.engine, "threads": threads, **_describe_machine(config)}))
    times = f", {count} times" if count > 1 else ""
    parameters = f"{_count_parameters(setup):,} parameters ({config.cell})"
    reporter.note(f"training {parameters} on {len(setup.train.lengths):,} sequences{times}")
    if engine.compiled and setup.cell.module:
        prepare_kernels(context.cache, reporter)


def _describe_machine(config: SeqTrainConfig) -> JSON:
    return {"processor": platform.machine(), **read_versions(*PACKAGES[config.engine])}


def _count_parameters(setup: SeedSetup) -> int:
    """Return how many numbers one seed trains."""
    cell = setup.cell
    sizes = list_shapes(cell, setup.task.inputs, setup.config.hidden_size) if cell.module else {}
    return sum(math.prod(shape) for shape in sizes.values())


class _RunFiles:
    """The files of one run: its snapshot, and what it leaves."""

    def __init__(
        self, setup: SeedSetup, task: str, plan: PlannedRun[SeqTrainConfig], source: Input, context: Context
    ) -> None:
        self.setup, self.task, self.output, self.context = setup, task, plan.output, context
        self.recipe = Recipe("seq.train", plan.config, {"data": source})
        self.config, self.seed, self.several = plan.config, plan.config.seed, bool(plan.labels)
        self.error: DivergedError | None = None
        self.claim = contextlib.ExitStack()

    def begin(self, claims: contextlib.ExitStack, announce: Callable[[], None]) -> SeedRun:
        """Claim the files, and return the run as its snapshot has it, or at its beginning.

        Args:
            announce: called once nothing stands in the way.
        """
        claims.enter_context(self.claim).enter_context(claim_training(self.output))
        self.info = RunInfo()
        snapshot = SnapshotFile(self.output, self.recipe, _describe_machine(self.config), self.context)
        saved = snapshot.load()
        count = _count_parameters(self.setup)
        snapshot.require_space(16 * count, 4 * count)
        announce()
        run = SeedRun(self.setup, self.seed, snapshot)
        if saved:
            run.restore(saved)
        return run

    def end(self, run: SeedRun) -> Outcome | None:
        """Write the run's files, and release them; without weights to keep, remove its snapshot."""
        self.error, outcome = run.error, None
        if run.error:
            run.file.remove()  # it would only diverge again
        else:
            warn_if_collapsed(self.setup, run.best, self.context.reporter, f"{self.output}: " if self.several else "")
            outcome = write_training(self.output, self.recipe, self._collect_result(run), self.info, run.file)
        self.claim.close()
        return outcome

    def _collect_result(self, run: SeedRun) -> TrainingResult:
        records = [{"seed": run.seed, **asdict(record)} for record in run.records]
        count = _count_parameters(self.setup)
        return TrainingResult(
            run.best,
            {"task": self.task},
            {"seeds": [run.seed], **({"diverged": {str(run.seed): run.diverged}} if run.diverged else {})},
            {"total": count, "trainable": count},
            records,
            [record for record in records if record["best"]][-1],
            PACKAGES[self.config.engine],
            {"threads": 1},
        )

    def require_finite(self) -> None:
        """Raise DivergedError if the run ended early because its loss was no longer finite."""
        if self.error:
            raise self.error
        metadata = tensors.read_metadata(self.output, tensors.CHECKPOINT)
        for seed, iteration in as_object(metadata.get("diverged")).items():
            if type(iteration) is not int:
                raise FileError(self.output, "damaged: its divergence is not an iteration")
            raise DivergedError(
                f"{self.output}: the loss was no longer a finite number at iteration {iteration:,} of seed {seed}; the "
                "file has the best weights before that: try a lower --lr, or --clip-norm 1"
            )


def _find_cell(config: SeqTrainConfig) -> Cell:
    """Return the cell of the settings. SettingError if it cannot train with them."""
    cell = look_up(CELLS, config.cell, "cell")
    if look_up(ENGINES, config.engine, "engine").compiled and not cell.compiled:
        raise SettingError(f"the cell {config.cell!r} has no compiled kernels: train it with --engine torch")
    if config.chrono and cell.keeps is None:
        raise SettingError(f"--chrono sets gates that keep a state, and the cell {config.cell!r} has none")
    return cell


def warn_if_collapsed(setup: SeedSetup, weights: Parameters, reporter: Reporter, where: str = "") -> None:
    """Warn if the best weights predict the validation sequences no better than a constant does."""
    if setup.cell.module is None:
        return
    predictions = build_engine(setup.cell, weights, setup.config).predict(setup.val)[None]
    collapse = judge_numbers(predictions, setup.val.targets, setup.task.constant)
    if collapse.collapsed:
        remedy = "try more --epochs, another --lr, --clip-norm 1, a gated --cell, or --chrono"
        reporter.warn(f"{where}collapsed on the validation part: {collapse.why}; {remedy}")
