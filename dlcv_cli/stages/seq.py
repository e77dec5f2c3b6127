"""`seq gen` and `seq train`."""

from __future__ import annotations

import atexit
import math
import os
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from dlcv_cli.artifacts import sequences, tensors
from dlcv_cli.artifacts.files import check_output, mapping, sha256, sha256_of, writable
from dlcv_cli.artifacts.lineage import Input, Recipe, Run, up_to_date, versions
from dlcv_cli.artifacts.store import KERNELS
from dlcv_cli.config import GenConfig, SeqTrainConfig
from dlcv_cli.errors import DlcvError, FileError, SettingError, lookup
from dlcv_cli.evaluation.collapse import of_numbers
from dlcv_cli.sequences import training
from dlcv_cli.sequences.cells import CELLS, Cell, Parameters, initial_parameters, shapes
from dlcv_cli.sequences.tasks import TASKS, Task, generate
from dlcv_cli.sequences.training import DivergedError, Record, begin, fit
from dlcv_cli.stages.reporting import Outcome, Reporter
from dlcv_cli.stages.trained import finish, finished
from dlcv_cli.vision.splits import PARTS, held_out

PACKAGES = {
    engine: (package, "numpy", "safetensors") for engine, package in (("compiled", "numba"), ("torch", "torch"))
}


def gen(output: Path, config: GenConfig, *, force: bool = False) -> Outcome:
    """Writes a sequence file.

    Raises:
        DlcvError: an unknown task, or an output made differently.
    """
    check_output(output, ".safetensors")
    lookup(TASKS, config.task, "task")
    test = held_out(config.count, config.test_fraction)
    val = held_out(config.count - test, config.val_fraction)
    counts = {"train": config.count - test - val, "val": val, "test": test}
    if min(counts.values()) < 1:
        raise SettingError(f"count is {config.count}: that leaves a part empty ({counts}); give more")
    recipe = Recipe("seq.gen", config.to_json())
    if up_to_date(output, recipe, lambda path: tensors.read_record(path, tensors.SEQUENCES), force):
        return Outcome(output, False, {"counts": counts})
    parts = {part: generate(config, counts[part], stream) for stream, part in enumerate(PARTS)}
    sequences.write(output, parts, {**recipe.to_json(output.parent), "versions": versions("numpy")})
    return Outcome(output, True, {"counts": counts})


def train(
    data: Path,
    output: Path,
    config: SeqTrainConfig,
    *,
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
    run = Run()
    report = report or Reporter()
    check_output(output, ".safetensors")
    cell = lookup(CELLS, config.cell, "cell")
    if config.engine == "compiled" and not cell.compiled:
        raise SettingError(f"the cell {config.cell!r} has no compiled kernels: train it with --engine torch")
    if config.chrono and cell.keeps is None:
        raise SettingError(f"--chrono sets gates that keep a state, and the cell {config.cell!r} has none")
    file = sequences.read(data)
    known_task(file)
    recipe = Recipe("seq.train", config.to_json(), {"data": Input(sha256(data), data)})
    if done := finished(output, recipe, force, report):
        _complain(output)
        return done
    writable(output)
    sizes = shapes(cell, file.parts["train"].inputs.shape[1], config.hidden_size)
    count = 0 if cell.module is None else sum(math.prod(shape) for shape in sizes.values())
    times = f", {config.seeds} times" if config.seeds > 1 else ""
    report.note(f"trains {count:,} parameters ({config.cell}) on {len(file.parts['train'].lengths):,} sequences{times}")
    if config.engine == "compiled" and cell.module and not any(compiled_code(cache).rglob("*.nbc")):
        report.note("compiling the kernels for this processor, once (some 10 seconds)")
    runs = _runs(cell, file, config, report)

    _look(cell, [one.best for one in runs.values()], file, config, report)
    records = [{"seed": seed, **asdict(record)} for seed, one in runs.items() for record in one.records]
    bests = [[r for r in records if r["seed"] == seed and r["best"]][-1] for seed in runs]
    diverged = {str(seed): one.diverged for seed, one in runs.items() if one.diverged}
    arrays = next(iter(runs.values())).best
    if len(runs) > 1:
        arrays = {name: np.stack([one.best[name] for one in runs.values()]) for name in arrays}
    about = {"seeds": list(runs), **({"diverged": diverged} if diverged else {})}
    best = min(bests, key=lambda record: float(record["val_loss"]))
    threads = min(os.cpu_count() or 1, len(runs)) if config.engine == "compiled" else 1
    outcome = finish(
        output, recipe, run, arrays, {"task": file.task}, about, {"total": count, "trainable": count}, records, best,
        PACKAGES[config.engine], threads=threads,
    )  # fmt: skip
    _complain(output)
    return outcome


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


@dataclass
class _OneRun:
    """What became of one seed."""

    best: Parameters = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    diverged: int | None = None  # the iteration at which the loss was not finite


def _runs(cell: Cell, file: sequences.SequenceFile, config: SeqTrainConfig, report: Reporter) -> dict[int, _OneRun]:
    """One training for each seed, side by side on the cores; each depends on its own seed alone."""
    train, val = file.parts["train"], file.parts["val"]
    runs = {seed: _OneRun() for seed in range(config.seed, config.seed + config.seeds)}
    stop = threading.Event()
    total = math.ceil(config.epochs * len(train.lengths) / config.batch_size)

    def one(seed: int, alone: bool = False) -> None:
        width, constant = train.inputs.shape[1], known_task(file).constant
        start = initial_parameters(cell, width, config.hidden_size, constant, seed, config.chrono)
        engine, found = begin(cell, start, config, train), runs[seed]
        try:
            for record in fit(engine, len(train.lengths), val, config, seed, found.best):
                found.records.append(record)
                if stop.is_set():
                    return
                if alone:
                    report.record(asdict(record))
                    report.progress("training", record.iteration, total)
        except DivergedError as error:
            if not found.best:  # nothing to keep
                raise DlcvError(f"seed {seed}: {error}") from None
            found.diverged = error.iteration

    if config.seeds == 1:
        one(config.seed, alone=True)
        return runs
    with ThreadPoolExecutor(os.cpu_count() if config.engine == "compiled" else 1) as pool:
        try:
            for number, (seed, done) in enumerate([(seed, pool.submit(one, seed)) for seed in runs], 1):
                done.result()
                last = [record for record in runs[seed].records if record.best][-1]
                report.record({"seed": seed, **asdict(last), "best": False})
                report.progress("runs", number, len(runs))
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return runs


def _complain(output: Path) -> None:
    """DlcvError when a training of this checkpoint came to a loss that was not finite."""
    diverged = mapping(tensors.read_record(output, tensors.CHECKPOINT).get("diverged"))
    if diverged:
        seed, iteration = next(iter(diverged.items()))
        raise DlcvError(
            f"{output}: the loss was no longer a finite number at iteration {iteration:,} of seed {seed}"
            f"{f' (and of {len(diverged) - 1} others)' if len(diverged) > 1 else ''}; the file has the best weights "
            "before that: try a lower --lr, or --clip-norm 1"
        )


def compiled_code(cache: Path | None) -> Path:
    """Where numba keeps compiled code: has to be said before the kernels are imported.

    In the cache folder, because the installed package may not be writable; without one, in a folder of this process.
    """
    if "NUMBA_CACHE_DIR" not in os.environ:
        source = Path(training.__file__).with_name("kernels.py")
        version = sha256_of([sha256(source), versions("numba")])[:16]
        folder = cache and cache / KERNELS / version
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                writable(folder / "any")
        except OSError:
            folder = None
        if not folder:
            folder = Path(tempfile.mkdtemp(prefix="dlcv-kernels-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["NUMBA_CACHE_DIR"] = str(folder)
    return Path(os.environ["NUMBA_CACHE_DIR"])


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
    seeds = file.record.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ValueError("its record lists no seeds")
    if len(seeds) == 1:
        return {seeds[0]: file.arrays}
    if any(array.shape[:1] != (len(seeds),) for array in file.arrays.values()):
        raise ValueError(f"its tensors are not those of {len(seeds)} runs")
    return {seed: {name: array[k] for name, array in file.arrays.items()} for k, seed in enumerate(seeds)}
